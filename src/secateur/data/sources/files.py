"""Files of data: which are read, how they are unpacked and decoded, and how their rows are found."""

import bz2
import gzip
import json
import lzma
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...system.errors import InputError
from ...system.reading import PARSER_ERRORS, reason_of
from ..forms.document import Document
from ..forms.rows import CHATS, ROW_KEYS, document_of
from ..forms.tally import DROPPED, Tally
from .splits import NAMES, split_of
from .tables import TABLES, table_rows

TEXTS = (".txt", ".raw", ".tokens")
"""One text a file; the last two as WikiText names its own."""
JSON_TYPES = (".jsonl", ".json", ".ndjson")
PACKED = (".gz", ".bz2", ".xz", ".zst")
"""May follow the type of a text, of JSON and of CSV."""
FILE_TYPES = (*TEXTS, *JSON_TYPES, *TABLES)
UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def type_of(path: Path) -> str | None:
    """The type by which a file is read, such as `.jsonl` of `a.jsonl.gz`; None where it is not."""
    suffix = path.suffix.lower()
    inner = Path(path.stem).suffix.lower() if suffix in PACKED else suffix
    return inner if inner in FILE_TYPES and (inner == suffix or inner not in (".parquet", ".arrow")) else None


def files_of(folder: Path) -> list[Path]:
    """Data files directly in `folder`, sorted; hidden ones are left out."""
    return [path for path in _visible(folder) if path.is_file() and type_of(path)]


def others_of(folder: Path) -> list[str]:
    """What else is directly in `folder`: names, sorted; hidden ones are left out."""
    return [path.name + "/" * path.is_dir() for path in _visible(folder) if not (path.is_file() and type_of(path))]


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def read_file(path: Path, tally: Tally, split: str = "train") -> list[Document]:
    """All documents of a file, in its order; `split` is taken of a JSON object that has several.

    Raises:
        InputError: it cannot be read, is empty, not UTF-8, or has a row of no accepted form (its line is named).
    """
    kind = type_of(path)
    if kind in TEXTS:
        return [Document("text", str(path), _text(path))]
    rows = table_rows(path, kind, _text) if kind in TABLES else _json_rows(_text(path), path, split, tally)
    documents = documents_of(rows, tally)
    if not any(document.raw.strip() for document in documents):
        dropped = tally.record().get(DROPPED, {})
        why = f" ({', '.join(f'{count} with {name}' for name, count in dropped.items())})" if dropped else ""
        count = len(documents) + sum(dropped.values())
        raise InputError(f"{path} has {count} rows and no text in them{why}: give another file.")
    return documents


def documents_of(rows: Iterator[tuple[Any, str]], tally: Tally) -> list[Document]:
    """Documents of (row, place), without the rows that have nothing to train on."""
    found = [document_of(row, place, tally) for row, place in rows]
    return [document for document in found if document is not None]


def _text(path: Path) -> str:
    """What a file holds, unpacked and without a byte-order mark."""
    content = _content(path)
    if content.startswith(UTF_16):
        raise InputError(f"{path} is UTF-16 (its first bytes say so): convert it to UTF-8.")
    try:
        text = content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}. Convert it to UTF-8."
        ) from None
    if "\0" in text:
        raise InputError(f"{path} has NUL bytes, so it is no UTF-8 text (a binary file, or UTF-16?): convert it.")
    if not text.strip():
        raise InputError(f"{path} is empty: give a file with text in it, or leave it out.")
    return text


def _content(path: Path) -> bytes:
    opens: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zstandard}
    opened = opens.get(path.suffix.lower(), Path.open)
    try:
        with opened(path, "rb") as file:
            content: bytes = file.read()
            return content
    except PermissionError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check its permissions.") from None
    except (OSError, EOFError, lzma.LZMAError, ValueError) as error:  # of the disk, or of what unpacks
        reason = getattr(error, "strerror", None) or reason_of(error)
        raise InputError(f"{path} cannot be read ({reason}): check the file and its permissions.") from None


def _open_zstandard(path: Path, mode: str) -> Any:
    import pyarrow

    return pyarrow.input_stream(str(path), compression="zstd")


def _json_rows(text: str, path: Path, split: str, tally: Tally) -> Iterator[tuple[Any, str]]:
    """(row, place): an object a line, or lists and objects over any lines."""
    # "\n" only: str.splitlines() also cuts at characters that JSON strings may hold, such as U+2028
    lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    values = None if text.lstrip()[0] == "{" and len(lines) > 1 and _is_value(lines[0][1]) else _values(text)
    is_list = path.suffix.lower() == ".json" and text.lstrip()[0] == "["
    if values is None and not is_list and _is_closed(lines[0][1]):
        # files with a byte-order mark each may have been put together
        yield from ((_parse(line.removeprefix("\ufeff"), str(path), i), f"{path}:{i}") for i, line in lines)
        return
    values = [_parse(text, str(path), 1)] if values is None else values
    rows = values if len(values) > 1 else _unwrapped(values[0], path, split, tally)
    one = len(rows) == 1 and rows[0] is values[0]
    yield from ((row, f"{path}:{lines[0][0]}" if one else f"{path}, row {i}") for i, row in enumerate(rows, 1))


def _is_value(text: str) -> bool:
    try:
        return json.loads(text) is not None
    except PARSER_ERRORS:
        return False


def _is_closed(line: str) -> bool:
    """Whether a line is meant as a value of its own, and not as the first of several."""
    return not line.strip().endswith(("{", "[", ","))


def _values(text: str) -> list[Any] | None:
    """The values that a text consists of, one after the other; None where it does not."""
    decoder, found, at = json.JSONDecoder(), list[Any](), 0
    try:
        while (at := _after_blanks(text, at)) < len(text):
            value, at = decoder.raw_decode(text, at)
            found.append(value)
    except PARSER_ERRORS:
        return None
    return found


def _after_blanks(text: str, at: int) -> int:
    found = re.compile(r"[ \t\r\n]*").match(text, at)
    assert found is not None
    return found.end()


def _is_columns(whole: dict[str, Any]) -> bool:
    """Whether an object has a list of rows' values under each key, as `Dataset.to_dict` writes it."""
    columns = list(whole.values())
    return (
        all(isinstance(column, list) and column for column in columns)
        and len({len(column) for column in columns}) == 1
        and any(all(isinstance(value, str) for value in column) for key, column in whole.items() if key not in CHATS)
    )


def _unwrapped(whole: Any, path: Path, split: str, tally: Tally) -> list[Any]:
    """The rows in one value: a list, columns, or an object with one list of rows, or one a split."""
    if isinstance(whole, list):
        return whole
    if not isinstance(whole, dict):
        return [whole]
    if not ROW_KEYS.isdisjoint(whole):
        if not _is_columns(whole):
            return [whole]
        return [dict(zip(whole, values, strict=True)) for values in zip(*whole.values(), strict=True)]
    lists = {key: value for key, value in whole.items() if isinstance(value, list) and _are_rows(value)}
    if not lists:
        return [whole]
    if len(lists) == 1 and not any(name in names for name in lists for names in NAMES.values()):
        return next(iter(lists.values()))  # `{"data": [...]}`
    chosen = split_of(list(lists), str(path), split, tally)
    if chosen is None:
        raise InputError(
            f"{path} is an object with several lists of rows ({', '.join(map(repr, lists))}) and none is {split!r}: "
            "write the rows of one of them to a file."
        )
    return lists[chosen]


def _are_rows(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(value, dict) for value in values)


def _parse(text: str, path: str, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}:{first_line + error.lineno - 1} is not valid JSON ({error.msg}, column {error.colno}): "
            "expected one JSON object per line, or a list of them."
        ) from None
    except PARSER_ERRORS as error:
        raise InputError(f"{path}:{first_line}: JSON {reason_of(error)}: expected rows of plain text.") from None
