"""Sizes in words: `80M` parameters, `24GB` of memory. Importing this module imports no torch."""

import re
from collections.abc import Callable
from typing import Any

from ..system.errors import InputError
from .options import flag

BYTES = {
    "B": 1,
    "kB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "TB": 1e12,
    "KiB": 2**10,
    "kiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
COUNTS = {"": 1, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def parse_bytes(words: str | int, option: str) -> int:
    """`24GB` or `1.5 GiB` -> bytes.

    Args:
        option: the flag that the error names.
    Raises:
        InputError: no number with a unit.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMGT]i?B|KiB|B)\s*", str(words))
    if not found:
        raise InputError(f"{option} is {words!r}: give a number with a unit, such as 24GB or 80GiB.")
    return round(float(found[1]) * BYTES[found[2]])


def parse_count(words: str | int, option: str) -> int:
    """`80M`, `1.3B` or `80000000` -> a whole number.

    Args:
        option: the flag that the error names.
    Raises:
        InputError: no number, or an unknown suffix.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMBT]?)\s*", str(words).upper())
    if not found:
        raise InputError(f"{option} is {words!r}: give a number, such as 80M, 1.3B or 80000000.")
    return round(float(found[1]) * COUNTS[found[2]])


def size_faults(config: Any, name: str, parse: Callable[[str | int, str], int]) -> list[str]:
    """The fault of an option that holds a size, if it has one."""
    try:
        if (words := getattr(config, name)) is not None:
            parse(words, flag(name))
    except InputError as error:
        return [str(error)]
    return []


def target_faults(config: Any) -> list[str]:
    """Faults of `--sparsity`, `--target-params` and `--target-bytes`, of which a run has one."""
    names = ("sparsity", "target_params", "target_bytes")
    given = [f"{flag(name)} {value}" for name in names if (value := getattr(config, name)) is not None]
    found = size_faults(config, "target_params", parse_count) + size_faults(config, "target_bytes", parse_bytes)
    if config.sparsity is not None and not 0 < config.sparsity < 1:
        found.append(
            f"--sparsity is {config.sparsity}: it is the fraction of parameters to remove, "
            "so give a number between 0 and 1, such as 0.2."
        )
    if len(given) > 1:
        found.append(f"{' and '.join(given)} each say how small the model gets: leave all but one out.")
    return found
