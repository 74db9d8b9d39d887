"""A dictionary of named things whose lookup says what was meant."""

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import TypeVar

from .errors import InputError

T = TypeVar("T")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence `Did you mean 'x'? ` for the closest known name, in whatever letters, or an empty string."""
    cased = {each.lower(): each for each in known}
    close = get_close_matches(name.lower(), cased, n=1)
    return f"Did you mean {cased[close[0]]!r}? " if close else ""


class Registry(Mapping[str, T]):
    """Names to values of one kind; an unknown name raises `InputError` with a suggestion.

    Args:
        listed_by: the command that lists the names, where they are too many for a message.
    """

    def __init__(self, kind: str, remedy: str = "", listed_by: str = "") -> None:
        self._kind = kind
        self._remedy = remedy
        self._listed_by = listed_by
        self._entries: dict[str, T] = {}

    def register(self, name: str, value: T) -> T:
        if name in self._entries:
            raise InputError(f"{self._kind} {name!r} is already registered: choose another name.")
        self._entries[name] = value
        return value

    def __getitem__(self, name: str) -> T:
        if name in self._entries:
            return self._entries[name]
        known = f"Known: {', '.join(sorted(self._entries))}."
        if self._listed_by:
            known = f"{self._listed_by} lists the {len(self._entries)} that are known."
        raise InputError(
            f"unknown {self._kind} {name!r}. {did_you_mean(name, self._entries)}{known} {self._remedy}".rstrip()
        )

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
