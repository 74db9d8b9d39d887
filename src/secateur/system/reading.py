"""Files whose names a user gives: regular ones only, UTF-8, and whatever a parser says of them is one of ours."""

import json
import stat
from pathlib import Path
from typing import Any

import yaml

from .errors import InputError

PARSER_ERRORS = (ValueError, RecursionError, OverflowError)
"""What `json` raises: besides its own class, for numbers of more digits than Python converts and for deep nesting."""

POINTER = b"version https://git-lfs"


def read_text(path: Path, place: str) -> str:
    """The text of a file; a pipe or a device is refused, as reading one may never end.

    A byte-order mark at its start is no text, and lines end with one newline whichever way the file has them.

    Args:
        place: what the message calls it, such as `--config run.yaml`.
    Raises:
        InputError: it cannot be read, or is not UTF-8.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            kind = "a folder" if path.is_dir() else "a pipe or a device"
            raise InputError(f"{place} is {kind}, no regular file: give one.")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{place} cannot be read ({error.strerror}): check the path and its permissions.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{place} cannot be read: byte {error.start} is not UTF-8; convert it.") from None


def parse_json(text: str, place: str, remedy: str, **options: Any) -> Any:
    """JSON from a file, its contents of unknown origin.

    Raises:
        InputError: `place` is not valid JSON; with the reason and the remedy.
    """
    try:
        return json.loads(text, **options)
    except PARSER_ERRORS as error:
        raise InputError(f"{place} is not valid JSON ({reason_of(error)}): {remedy}") from None


TAB = "found character '\\t' that cannot start any token"
"""PyYAML's words."""


def read_mapping(path: Path, place: str) -> dict[str, Any]:
    """The YAML file of `key: value` lines that a user gives.

    Args:
        place: what the message calls it.
    Raises:
        InputError: it cannot be read, is no YAML, no mapping with names as keys, or has one of them twice.
    """
    text = read_text(path, place)
    try:
        loader = yaml.SafeLoader(text)
        document = loader.get_single_node()
        _refuse_twice(document, place)
        loaded = loader.construct_document(document) if document is not None else None
    except yaml.YAMLError as error:
        if getattr(error, "problem", None) == TAB and (mark := getattr(error, "problem_mark", None)):
            raise InputError(
                f"{place}: line {mark.line + 1} has a tab, which YAML does not take: put blanks in its place."
            ) from None
        raise InputError(f"{place}: not valid YAML ({' '.join(str(error).split())}).") from None
    # Its constructors leak Python's own errors: of dates (2024-13-45), of numbers with a tag, of deep nesting.
    except (*PARSER_ERRORS, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{place}: not valid YAML ({reason_of(error)}).") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise InputError(f"{place}: expected `option: value` lines, found {type(loaded).__name__}.")
    if (other := next((key for key in loaded if not isinstance(key, str)), loaded)) is not loaded:
        raise InputError(f"{place}: expected `option: value` lines, found {str(other)[:200]!r} as an option's name.")
    return loaded


def _refuse_twice(document: yaml.Node | None, place: str) -> None:
    """PyYAML takes the last of several values without a word; `seq-len` and `seq_len` are one name."""
    lines: dict[str, int] = {}
    for key, _ in document.value if isinstance(document, yaml.MappingNode) else ():
        name, line = str(key.value).replace("-", "_"), key.start_mark.line + 1
        if name in lines:
            raise InputError(f"{place}: {name[:200]} is in lines {lines[name]} and {line}: leave one out.")
        lines[name] = line


def damaged(path: Path, reason: object) -> InputError:
    """The error for a file that cannot be read for what it is; a pointer that Git LFS left in its place is one."""
    if is_pointer(path):
        return InputError(
            f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in its folder, or download it again."
        )
    return InputError(f"{path} is corrupt or truncated ({reason}): copy or download it again.")


def is_pointer(path: Path) -> bool:
    """Whether a file is what `git clone` leaves in place of a large one without Git LFS."""
    try:
        with path.open("rb") as file:
            return file.read(len(POINTER)) == POINTER
    except OSError:
        return False


def shown(value: Any) -> str:
    """A value for a message: whole where it is short; Python does not write out numbers of thousands of digits."""
    try:
        words = " ".join(repr(value).split())
    except PARSER_ERRORS:
        return f"a {type(value).__name__} beyond any measure"
    return words if len(words) <= 200 else words[:200] + " ..."


def reason_of(error: BaseException) -> str:
    """A parser's error in few words."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return " ".join(str(error).split())[:200] or type(error).__name__
