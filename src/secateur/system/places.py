"""Whether a place that a user names can be written to at all: looked at before any work, and nothing is created."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import InputError
from .reading import PARSER_ERRORS

NAME_BYTES, PATH_BYTES = 255, 4096
"""What Linux takes, where the file system does not say."""
BESIDE = len(".") + len(".secateur-") + 8
"""Bytes by which the name of the temporary folder beside an output is longer than its own: `replaced_whole`."""
BESIDE_OLD = BESIDE + len(".old")
BESIDE_FILE = len("..") + 8
BELOW = 256
"""Bytes that are left for the names of what an output folder has in it."""
RECORD_KEYS = ("environment", "prunable_parameters")
"""Keys of the records that are written with --output and --json."""


def check_place(option: str, path: Path, *, beside: int = BESIDE) -> None:
    """Refuse a name that the file system does not take, or that goes round in circles.

    Args:
        beside: bytes by which a temporary name beside it is longer.
    Raises:
        InputError: says how long it may be, or what is wrong.
    """
    shown = _shown(path)
    try:
        encoded = str(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"{option} {shown} is not UTF-8: choose another name.") from None
    if b"\0" in encoded:
        raise InputError(f"{option} {shown} has a NUL character in it: choose another name.")
    longest = _limit(path, "PC_NAME_MAX", NAME_BYTES)
    parts = path.parts
    for part in parts[:-1]:
        if len(part.encode()) > longest:
            raise InputError(
                f"{option} {shown}: {part[:20]}... has {len(part.encode())} bytes, and a name has {longest} at most: "
                "choose a shorter one."
            )
    if parts and len(parts[-1].encode()) + beside > longest:
        raise InputError(
            f"{option} {shown}: its name has {len(parts[-1].encode())} bytes, and {longest - beside} is the most, as a "
            "temporary one beside it is longer: choose a shorter one."
        )
    most = _limit(path, "PC_PATH_MAX", PATH_BYTES) - BELOW
    if len(os.fsencode(path.absolute())) > most:
        raise InputError(f"{option} {shown}: the whole path is longer than {most} bytes: choose a shorter one.")
    try:
        path.resolve()
        path.exists()
    except (OSError, RuntimeError):  # a loop of links is either, by the version of Python
        raise InputError(f"{option} {shown} goes through a loop of links: choose another place.") from None
    _check_parent(option, path)


def check_no_input(option: str, path: Path, inputs: Mapping[str, str]) -> None:
    """Refuse to replace what the command reads; an earlier record in a model's folder may be replaced.

    Args:
        path: of the file that is to be written.
        inputs: path -> the flag it was given with; names that are no paths do no harm.
    Raises:
        InputError: names the flag.
    """
    if not path.is_file():
        return
    target = path.resolve()
    for name, given in inputs.items():
        source = Path(name).expanduser()
        try:
            place = source.resolve()
        except (OSError, RuntimeError, ValueError):
            continue
        if target == place or (place.is_dir() and target.is_relative_to(place) and not _is_record(path)):
            raise InputError(f"{option} {path} is read by this command ({given} {name}): choose another name.")


def check_options_kept(file: str, config: Any) -> None:
    """Refuse to replace the file that a command's options were read from.

    Args:
        file: as given with --config.
        config: the options, of which `output` and `json` name what is written.
    Raises:
        InputError: it is that file, or a folder with it, which `overwrite` would delete.
    """
    for name in ("output", "json"):
        place = Path(getattr(config, name, None) or "")
        try:
            target, source = place.resolve(), Path(file).resolve()
        except (OSError, RuntimeError):
            continue
        deleted = target.is_dir() and getattr(config, "overwrite", False) and source.is_relative_to(target)
        if place.name and (target == source or deleted):
            raise InputError(
                f"--{name} {place} would replace --config {file}, the file of the options: choose another place."
            )


def _check_parent(option: str, path: Path) -> None:
    for parent in path.absolute().parents:
        if parent.is_dir():
            return
        if parent.exists() or parent.is_symlink():
            kind = "a file" if parent.exists() else "a broken link"
            raise InputError(f"{option} {path} cannot be written: {parent} is {kind}, no folder: choose another place.")


def _limit(path: Path, name: str, default: int) -> int:
    """A limit of the file system at the nearest folder that is there."""
    if not hasattr(os, "pathconf"):  # Windows
        return default
    for parent in path.absolute().parents:
        try:
            return os.pathconf(parent, name)
        except (OSError, ValueError):
            continue
    return default


def _is_record(path: Path) -> bool:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, *PARSER_ERRORS):
        return False
    return isinstance(values, dict) and any(key in values for key in RECORD_KEYS)


def _shown(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 100 else f"{text[:60]}...{text[-20:]}"
