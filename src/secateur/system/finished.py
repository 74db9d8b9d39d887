"""Which results stand where they were asked for: who is interrupted after that must not say "nothing was written"."""

import os
from pathlib import Path

_landing: list[tuple[Path, os.stat_result]] = []


def lands(temporary: Path, place: Path) -> None:
    """Say, just before, that `temporary`, which is whole, is renamed to `place`.

    A signal between the renaming and a note of it would find the note missing; what stands at `place` tells.
    """
    _landing.append((place.absolute(), temporary.stat()))


def results() -> list[Path]:
    """The results of this process that are in place now, in the order in which they came."""
    return list(dict.fromkeys(place for place, expected in _landing if _stands(place, expected)))


def forget() -> None:
    """A new command begins."""
    _landing.clear()


def _stands(place: Path, expected: os.stat_result) -> bool:
    try:
        return os.path.samestat(place.stat(), expected)
    except OSError:
        return False
