"""How much of an evaluation text a model may have been trained on: sequences of words that both texts hold."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .documents import read_documents
from .errors import InputError

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
    names = tuple(str(part.get("name")) for part in data)
    found: set[int] = set()
    note = ""
    for part in data:
        digest = hashlib.sha256()
        try:
            for document in read_documents(str(part.get("name"))):
                digest.update(document.raw.encode())
                found.update(wanted.intersection(_sequences(document.raw, words)))
        except InputError as error:
            note = str(error).rstrip(".")
            break
        if digest.hexdigest() != part.get("sha256"):
            note = f"{part.get('name')} is not what it was then"
            break
    return Overlap(model, names, words, len(wanted), len(found), note)


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
