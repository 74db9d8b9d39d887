"""How much of an evaluation text a model may have been trained on: sequences of words that both texts hold."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..system.errors import InputError
from .documents import read_documents

WORDS = 13
"""Length of the sequences: what GPT-3's authors called overlap (Brown et al. 2020, appendix C)."""


@dataclass(frozen=True)
class Overlap:
    """Distinct sequences of `words` words of the evaluation text, and how many are in the training text."""

    model: str
    training: tuple[str, ...]
    words: int
    sequences: int
    found: int
    note: str = ""
    """Why the count is not to be relied on, if so."""

    @property
    def warning(self) -> str:
        """A sentence for the user, or nothing."""
        texts = ", ".join(self.training)
        if self.note:
            return f"overlap with the text that {self.model} was trained on is not known: {self.note}."
        if not self.found:
            return ""
        return (
            f"{self.found:,} of {self.sequences:,} distinct {self.words}-word sequences of the evaluation text are in "
            f"the text that {self.model} was trained on ({texts}): its figures may flatter it."
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def overlap_with_training(text: str, model: str, words: int = WORDS) -> Overlap | None:
    """Overlap of `text` with what a checkpoint of ours was trained on, from its result.json; None without one.

    The training text is read again, one document at a time, and must have the hash of the record. Words are
    compared in lower case, white space apart.
    """
    data = _training_record(Path(model))
    if data is None:
        return None
    wanted = set(_sequences(text, words))
    found, note = _found(wanted, data, words)
    return Overlap(model, _names(data), words, len(wanted), len(found), note)


@dataclass(frozen=True)
class RowOverlap:
    """Rows of each task that share a sequence of `words` words with the training text."""

    model: str
    training: tuple[str, ...]
    words: int
    found: dict[str, int]
    rows: dict[str, int]
    """Rows that are long enough to hold a sequence."""
    note: str = ""

    @property
    def warnings(self) -> list[str]:
        """A sentence for each task that has such rows."""
        texts = ", ".join(self.training)
        if self.note:
            return [f"overlap of the tasks with the text that {self.model} was trained on is not known: {self.note}."]
        return [
            f"{count:,} of the {self.rows[task]:,} rows of {task} of {self.words} words or more share {self.words} in "
            f"a row with the text that {self.model} was trained on ({texts}): its figure may flatter it."
            for task, count in self.found.items()
            if count
        ]


def overlap_of_rows(texts: Mapping[str, Sequence[str]], model: str, words: int = WORDS) -> RowOverlap | None:
    """The same as `overlap_with_training` for the rows of tasks, {task: a text per row}."""
    data = _training_record(Path(model))
    if data is None:
        return None
    by_row = {task: [set(_sequences(text, words)) for text in rows] for task, rows in texts.items()}
    found, note = _found(set().union(*(row for rows in by_row.values() for row in rows)), data, words)
    return RowOverlap(
        model,
        _names(data),
        words,
        {task: sum(not found.isdisjoint(row) for row in rows) for task, rows in by_row.items()},
        {task: sum(bool(row) for row in rows) for task, rows in by_row.items()},
        note,
    )


def _found(wanted: set[int], data: Sequence[dict[str, Any]], words: int) -> tuple[set[int], str]:
    """Which of the wanted sequences the training text has, and why that is not to be relied on, if so."""
    found: set[int] = set()
    for part in data:
        digest = hashlib.sha256()
        try:
            for document in read_documents(str(part.get("name"))):
                digest.update(document.identity.encode())
                found.update(wanted.intersection(_sequences(document.raw, words)))
        except InputError as error:
            return found, str(error).rstrip(".")
        if digest.hexdigest() != part.get("sha256"):
            return found, f"{part.get('name')} is not what it was then"
    return found, ""


def _names(data: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(str(part.get("name")) for part in data)


def _sequences(text: str, words: int) -> Iterator[int]:
    """A hash of every sequence of `words` words; 64 bits, so that a chance match is out of the question."""
    found = text.lower().split()
    for i in range(len(found) - words + 1):
        yield hash(tuple(found[i : i + words]))


def _training_record(folder: Path) -> Sequence[dict[str, Any]] | None:
    """`data.training` of a run's result.json, or None where there is no such record."""
    try:
        record = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        training = record["data"]["training"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(training, list) or not all(isinstance(part, dict) for part in training):
        return None
    return training
