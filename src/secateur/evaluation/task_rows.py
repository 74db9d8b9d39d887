"""What rows of local tasks must hold, looked at before a model is loaded."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..system.reading import parse_json, read_text

ANSWERED = (("query",), "choices")
SHAPES: dict[str, tuple[tuple[str, ...], str | None]] = {
    **dict.fromkeys(("piqa", "hellaswag", "arc_easy", "arc_challenge", "openbookqa", "boolq"), ANSWERED),
    "mmlu": (("subject", "query"), "choices"),
    "winogrande": (("continuation",), "context_options"),
    "gsm8k": (("question", "answer"), None),
    "humaneval": (("prompt", "test", "entry_point"), None),
}
"""Task -> the keys of its texts, and the key of the list in which `gold` is the right one's place."""
MMLU_CHOICES = 4


def row_faults(task: str, paths: Sequence[Path]) -> list[str]:
    """What is wrong with the rows of a task's files: the first fault of each, with its place and key.

    Raises:
        InputError: a file that is not UTF-8 or not JSON.
    """
    found = []
    for path in paths:
        faults = [f"{place} {fault}" for place, row in numbered_rows(path) if (fault := _fault(task, row))]
        more = f" ({len(faults) - 1} other rows are wrong, too.)" if len(faults) > 1 else ""
        found += [f"task {task}: {faults[0]}{more}"] if faults else []
    return found


def numbered_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a file of JSON lines, or of one JSON list, each with its place for messages."""
    text = read_text(path, str(path))
    if text.lstrip().startswith("["):
        for number, row in enumerate(parse_json(text, str(path), "expected a list of rows."), 1):
            yield f"{path}, row {number},", row
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{path}:{number}", parse_json(line, f"{path}:{number}", "expected one row on each line.")


def _fault(task: str, row: Any) -> str | None:
    texts, listed = SHAPES[task]
    keys = ", ".join([*texts, *([listed, "gold"] if listed else [])])
    if not isinstance(row, dict):
        return f"is no row of keys: expected {keys}."
    if absent := [key for key in (*texts, *((listed, "gold") if listed else ())) if row.get(key) is None]:
        return f"has no {_named(absent)}: expected {keys}."
    for key in texts:
        if not isinstance(row[key], str | int | float):
            return f"has {_value(row[key])} as {key!r}: expected text."
    return _fault_of_choices(task, row, listed) if listed else None


def _fault_of_choices(task: str, row: dict[str, Any], listed: str) -> str | None:
    choices, gold = row[listed], row["gold"]
    if not isinstance(choices, list) or not choices:
        return f"has {_value(choices)} as {listed!r}: expected a list of texts."
    if task == "mmlu" and len(choices) != MMLU_CHOICES:
        return f"has {len(choices)} {listed!r}: expected {MMLU_CHOICES}."
    for number, choice in enumerate(choices, 1):
        if not isinstance(choice, str | int | float) or not str(choice).strip():
            return f"has {_value(choice)} as number {number} of {listed!r}: expected text."
    whole = isinstance(gold, int | float) and gold == int(gold)
    if not (whole and 0 <= gold < len(choices)) and gold not in choices:
        return f"has {_value(gold)} as 'gold': expected 0 to {len(choices) - 1}, the place in {listed!r}."
    return None


def _named(keys: Sequence[str]) -> str:
    return " and no ".join(repr(key) for key in keys)


def _value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:40] + "..."
