"""Rows of tables: CSV and its like by Python's own reader, Parquet and Arrow by what `datasets` reads them with."""

import csv
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...system.errors import InputError
from ...system.reading import reason_of
from ..forms.rows import ROW_KEYS

DELIMITED = (".csv", ".tsv")
BINARY = (".parquet", ".arrow")
TABLES = (*DELIMITED, *BINARY)


def table_rows(path: Path, kind: str, text_of: Callable[[Path], str]) -> Iterator[tuple[Any, str]]:
    """(row, place) of each row of a table; an empty cell of CSV is null.

    Raises:
        InputError: it cannot be read, or has a row with more cells than the header.
    """
    if kind in DELIMITED:
        yield from _delimited(text_of(path), path, kind)
        return
    try:
        yield from ((without_nulls(row), f"{path}, row {i}") for i, row in enumerate(_arrow_rows(path, kind), 1))
    except (OSError, ValueError) as error:  # pyarrow's own are these
        raise InputError(f"{path} cannot be read as {kind} ({reason_of(error)}): write it again.") from None


def without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """A row without the nulls inside its values: a column of objects holds every key that one of its rows has."""
    return {key: _inside(value) for key, value in row.items()}


def _inside(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _inside(part) for key, part in value.items() if part is not None}
    return [_inside(part) for part in value] if isinstance(value, list) else value


def _delimited(text: str, path: Path, kind: str) -> Iterator[tuple[Any, str]]:
    csv.field_size_limit(sys.maxsize)
    header = text.lstrip("\r\n").split("\n", 1)[0]
    delimiters = ["\t"] if kind == ".tsv" else [",", ";", "\t", "|"]
    known = {mark: len(ROW_KEYS & set(next(csv.reader([header], delimiter=mark)))) for mark in delimiters}
    delimiter = max(delimiters, key=lambda mark: known[mark])
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if None in row:
                raise InputError(f"{path}:{reader.line_num}: more cells than the header has: quote the text in them.")
            yield {key: value or None for key, value in row.items()}, f"{path}:{reader.line_num}"
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num} is not valid CSV ({error}): quote the text in its cells.") from None


def _arrow_rows(path: Path, kind: str) -> Iterator[dict[str, Any]]:
    if kind == ".parquet":
        from pyarrow import parquet

        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(1024):
                yield from batch.to_pylist()
        return
    import pyarrow

    with pyarrow.memory_map(str(path)) as source:
        try:
            batches = pyarrow.ipc.open_stream(source)
        except pyarrow.ArrowInvalid:  # the form with a footer
            source.seek(0)
            file = pyarrow.ipc.open_file(source)
            batches = (file.get_batch(i) for i in range(file.num_record_batches))
        for batch in batches:
            yield from batch.to_pylist()
