"""Which split of several is read; where that could be another than meant, it is counted, so that it is said."""

import re
from collections.abc import Sequence
from pathlib import Path

from ..forms.tally import SPLITS, Tally

NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""As `datasets` finds them in files' names."""


def split_of(names: Sequence[str], place: str, split: str, tally: Tally) -> str | None:
    """The split asked for, for an evaluation without `test` the validation's, or the only one; else None."""
    wanted = [split] if split == "train" else [split, *NAMES["validation"]]
    chosen = next((name for name in wanted if name in names), names[0] if len(names) == 1 else None)
    if chosen is not None and chosen != split:
        tally.add(SPLITS, f"`{chosen}` of {place}, which has no `{split}`", place)
    return chosen


def named_splits(files: Sequence[Path]) -> dict[str, list[Path]]:
    """Files side by side by the split that each is named after (`train.jsonl`, `test-2.csv`), `train` among them.

    Empty where one has another name, or all have one.
    """
    found: dict[str, list[Path]] = {}
    for file in files:
        word = re.split(r"[^a-z]", file.name.lower(), maxsplit=1)[0]
        split = next((split for split, words in NAMES.items() if word in words), None)
        if split is None or not re.fullmatch(r"[a-z]+([-_.]?\d+([-_]of[-_]\d+)?)?", file.name.lower().split(".")[0]):
            return {}
        found.setdefault(split, []).append(file)
    return found if len(found) > 1 and "train" in found else {}
