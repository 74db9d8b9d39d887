"""Files and folders of data: which are read, and how their rows are found."""

import json
from pathlib import Path
from typing import Any

from ..system.errors import InputError
from ..system.reading import PARSER_ERRORS, reason_of
from .rows import Document, document_of

TEXTS = (".txt", ".raw", ".tokens")
"""One text a file; the last two as WikiText names its own."""
FILE_TYPES = (*TEXTS, ".jsonl", ".json")


def files_of(folder: Path) -> list[Path]:
    """Data files directly in `folder`, sorted; hidden ones are left out."""
    return sorted(
        p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in FILE_TYPES and not p.name.startswith(".")
    )


def read_file(path: Path) -> list[Document]:
    try:
        text = path.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}. Convert it to UTF-8."
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check its permissions.") from None
    if "\0" in text:
        raise InputError(f"{path} has NUL bytes, so it is no UTF-8 text (a binary file, or UTF-16?): convert it.")
    if not text.strip():
        raise InputError(f"{path} is empty: give a file with text in it, or leave it out.")
    if path.suffix.lower() in TEXTS:
        return [Document("text", str(path), text)]
    if path.suffix.lower() == ".json" and text.lstrip().startswith("["):
        rows = _parse(text, str(path), 1)
        documents = [document_of(row, f"{path}, row {i}") for i, row in enumerate(rows, 1)]
    else:
        # "\n" only: str.splitlines() also cuts at characters that JSON strings may hold, such as U+2028
        lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
        documents = [document_of(_parse(line, str(path), i), f"{path}:{i}") for i, line in lines]
    if not any(document.raw.strip() for document in documents):
        raise InputError(f"{path} has {len(documents)} rows and no text in them: give another file.")
    return documents


def _parse(text: str, path: str, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}:{first_line + error.lineno - 1} is not valid JSON ({error.msg}, column {error.colno}): "
            "expected one JSON object per line, or in a .json file a list of them."
        ) from None
    except PARSER_ERRORS as error:
        raise InputError(f"{path}:{first_line}: JSON {reason_of(error)}: expected rows of plain text.") from None
