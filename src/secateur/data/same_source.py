"""Whether two texts come from the same source, by their names."""

import re
from pathlib import Path

PARTS = frozenset(
    {
        "train", "training", "test", "testing", "valid", "validation", "val", "dev", "eval", "evaluation", "held",
        "out", "heldout", "calib", "calibration", "raw", "split", "sample", "subset", "part", "data", "dataset", "text",
        "texts", "docs", "corpus", "txt", "jsonl", "json",
    }
)  # fmt: skip
"""Words that name a part or a form of a text, not where it comes from."""


def same_source(one: str, other: str) -> bool:
    """Whether two texts' names share a word that says where they come from: `c4_calib.jsonl`, `allenai/c4:test`."""
    return bool(_words(one) & _words(other))


def _words(spec: str) -> frozenset[str]:
    """The telling words of a file's name, or else of its folder's; of a hub data set's name, without the split."""
    path = Path(spec)
    if not path.suffix and not path.exists():
        return _telling(spec.partition(":")[0])
    return _telling(path.stem) or _telling(path.absolute().parent.name)


def _telling(name: str) -> frozenset[str]:
    words = {word for word in re.split(r"[^a-z0-9]+", name.lower()) if len(word) > 1 and not word.isdigit()}
    return frozenset(words - PARTS)
