"""Folders of data: files side by side, what `datasets` saved to disk, a copy of a hub repository."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...system.errors import InputError
from ...system.reading import reason_of
from ..forms.document import Document
from ..forms.tally import FILES, Tally
from .files import FILE_TYPES, documents_of, files_of, others_of, read_file, type_of
from .tables import without_nulls

SAVED = ("dataset_dict.json", "state.json")
"""What `DatasetDict.save_to_disk` and `Dataset.save_to_disk` leave in a folder."""


def check_folder(folder: Path) -> None:
    """Refuse a folder without data, by its files' names.

    Raises:
        InputError: there is none.
    """
    if not (_is_saved(folder) or files_of(folder) or _is_repository(folder)):
        raise InputError(f"data folder {folder} has no {', '.join(FILE_TYPES)} file: give one that has.")


def read_folder(folder: Path, tally: Tally, split: str) -> list[Document]:
    """All documents of a folder: of its files in the order of their names, or of one split of a data set.

    Raises:
        InputError: it is a data set without that split; what `read_file` refuses.
    """
    if _is_saved(folder):
        found = documents_of(_saved_rows(folder, split), tally)
        if not any(document.raw.strip() for document in found):
            raise InputError(f"data folder {folder} has no text in it: give another one.")
        return found
    if _is_repository(folder):
        files, others = _files_of_repository(folder, split)
    else:
        files, others = files_of(folder), others_of(folder)
    for name in others:
        tally.add(FILES, name, str(folder))
    return [document for file in files for document in read_file(file, tally, split)]


def _is_saved(folder: Path) -> bool:
    return any((folder / name).is_file() for name in SAVED)


def _is_repository(folder: Path) -> bool:
    """Whether a folder is laid out as on the hub: with a data set's card, or with data in folders below only."""
    card = folder / "README.md"
    try:
        if card.is_file() and card.read_bytes().removeprefix(b"\xef\xbb\xbf").startswith(b"---") and _below(folder):
            return True
    except OSError:
        return False
    return not files_of(folder) and bool(_below(folder))


def _below(folder: Path) -> list[Path]:
    """Data files in a folder and two levels below it; hidden ones are left out."""
    found = [path for pattern in ("*", "*/*", "*/*/*") for path in folder.glob(pattern) if type_of(path)]
    hidden = [any(part.startswith(".") for part in path.relative_to(folder).parts) for path in found]
    return sorted(path for path, hide in zip(found, hidden, strict=True) if not hide and path.is_file())


def _saved_rows(folder: Path, split: str) -> Iterator[tuple[Any, str]]:
    from datasets import DatasetDict, load_from_disk

    try:
        found = load_from_disk(str(folder))
    except Exception as error:  # datasets raises its own classes, pyarrow's and OSError
        raise InputError(f"data folder {folder}, saved by `datasets`, cannot be read ({reason_of(error)}).") from None
    if isinstance(found, DatasetDict):
        found = found[_split_of(list(found), folder, split)]
    for i, row in enumerate(found, 1):
        yield without_nulls(row), f"{folder}, row {i}"


def _files_of_repository(folder: Path, split: str) -> tuple[list[Path], list[str]]:
    """The files of one split, as `datasets` finds them, and the names of those that it finds in none."""
    from datasets import load_dataset_builder

    with tempfile.TemporaryDirectory() as cache:
        try:
            files = load_dataset_builder(str(folder), cache_dir=cache).config.data_files or {}
        except Exception as error:  # datasets raises its own classes, ValueError and OSError
            raise InputError(
                f"data folder {folder} is laid out as on the hub, and `datasets` cannot find its files "
                f"({reason_of(error)}): give the folder or the file that is meant."
            ) from None
    found = [Path(file) for file in files[_split_of(list(map(str, files)), folder, split)]]
    if wrong := next((file for file in found if not type_of(file)), None):
        raise InputError(f"data file {wrong} of {folder} is of no known type: expected {', '.join(FILE_TYPES)}.")
    known = {str(Path(file).resolve()) for part in files.values() for file in part}
    others = [str(path.relative_to(folder)) for path in _below(folder) if str(path.resolve()) not in known]
    return found, others


def _split_of(names: list[str], folder: Path, split: str) -> str:
    """The split that is read: the one asked for, for an evaluation without `test` the validation's, or the only one."""
    wanted = [split] if split == "train" else [split, "validation", "valid", "dev"]
    chosen = next((name for name in wanted if name in names), names[0] if len(names) == 1 else None)
    if chosen is None:
        raise InputError(
            f"data folder {folder} has the splits {', '.join(map(repr, names))} and no {split!r}: give the "
            "folder or the file of the one that is meant."
        )
    return chosen
