"""Figures out of a record whose origin is unknown: those that must be there, and those that may be missing."""

from dataclasses import dataclass
from typing import Any

from ..report.runs import at, number, text
from ..system.errors import InputError

DAMAGED = "was it cut short, or written by something else than secateur?"


@dataclass(frozen=True)
class Record:
    """A JSON object, and what its file is called."""

    content: dict[str, Any]
    place: str

    def number(self, *path: str | int) -> float | None:
        """The number at `path`, or None."""
        return number(self.content, *path)

    def whole(self, *path: str | int) -> int | None:
        """The same of one that counts something."""
        value = number(self.content, *path)
        return None if value is None else int(value)

    def text(self, *path: str | int) -> str | None:
        """The text at `path`, or None."""
        return text(self.content, *path)

    def needed(self, *path: str | int) -> float:
        """The number at `path`.

        Raises:
            InputError: there is none.
        """
        value = number(self.content, *path)
        if value is None:
            raise InputError(f"{self.place} has no number at {'.'.join(map(str, path))}: {DAMAGED}")
        return value

    def mapping(self, *path: str | int) -> dict[str, Any]:
        """The object at `path`.

        Raises:
            InputError: there is none.
        """
        value = at(self.content, *path)
        if not isinstance(value, dict):
            raise InputError(f"{self.place} has no object at {'.'.join(map(str, path))}: {DAMAGED}")
        return value


def whole_numbers(values: Any) -> dict[str, int]:
    """Those of an object's values that are whole numbers."""
    found = values.items() if isinstance(values, dict) else ()
    return {key: value for key, value in found if isinstance(value, int) and not isinstance(value, bool)}
