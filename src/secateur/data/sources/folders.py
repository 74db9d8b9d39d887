"""Folders of data: files side by side, what `datasets` saved to disk, a copy of a hub repository."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...system.errors import InputError
from ...system.reading import reason_of
from ..forms.document import Document
from ..forms.tally import FILES, NO_SPLIT, SPLITS, Tally
from .files import FILE_TYPES, documents_of, files_of, others_of, read_file, type_of
from .splits import named_splits, split_of
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
        found = documents_of(_saved_rows(folder, split, tally), tally)
        if not any(document.raw.strip() for document in found):
            raise InputError(f"data folder {folder} has no text in it: give another one.")
        return found
    if _is_repository(folder):
        files = _files_of_repository(folder, split, tally)
    else:
        files = _files_side_by_side(folder, split, tally)
    return [document for file in files for document in read_file(file, tally, split)]


def _files_side_by_side(folder: Path, split: str, tally: Tally) -> list[Path]:
    """The files of a folder, or of one split where all are named after one."""
    for name in others_of(folder):
        tally.add(FILES, name, str(folder))
    files = files_of(folder)
    splits = named_splits(files)
    if not splits:
        return files
    chosen = _one_of(list(splits), folder, split, tally)
    if chosen == split:
        others = " and ".join(f"`{name}`" for name in splits if name != chosen)
        tally.add(SPLITS, f"`{chosen}` of {folder}, which also has {others}", str(folder))
    return splits[chosen]


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


def _saved_rows(folder: Path, split: str, tally: Tally) -> Iterator[tuple[Any, str]]:
    from datasets import DatasetDict, load_from_disk

    try:
        found = load_from_disk(str(folder))
    except Exception as error:  # datasets raises its own classes, pyarrow's and OSError
        raise InputError(f"data folder {folder}, saved by `datasets`, cannot be read ({reason_of(error)}).") from None
    if isinstance(found, DatasetDict):
        found = found[_one_of(list(found), folder, split, tally)]
    for i, row in enumerate(found, 1):
        yield without_nulls(row), f"{folder}, row {i}"


def _files_of_repository(folder: Path, split: str, tally: Tally) -> list[Path]:
    """The files of one split, as `datasets` finds them; those that it finds in none are counted."""
    from datasets import load_dataset_builder

    with tempfile.TemporaryDirectory() as cache:
        try:
            files = load_dataset_builder(str(folder), cache_dir=cache).config.data_files or {}
        except Exception as error:  # datasets raises its own classes, ValueError and OSError
            raise InputError(
                f"data folder {folder} is laid out as on the hub, and `datasets` cannot find its files "
                f"({reason_of(error)}): give the folder or the file that is meant."
            ) from None
    chosen = _one_of(list(map(str, files)), folder, split, tally)
    found = [Path(file) for file in files[chosen]]
    if wrong := next((file for file in found if not type_of(file)), None):
        raise InputError(f"data file {wrong} of {folder} is of no known type: expected {', '.join(FILE_TYPES)}.")
    known = {str(Path(file).resolve()) for part in files.values() for file in part}
    for path in _below(folder):
        if str(path.resolve()) not in known:
            tally.add(NO_SPLIT, str(path.relative_to(folder)), str(folder))
    places = sorted({str(file.resolve().parent.relative_to(folder.resolve())) for file in found})
    if len(places) > 1:  # it may be one data set in parts, or several configurations
        tally.add(SPLITS, f"`{chosen}` of {folder}, from {', '.join(places)} together", str(folder))
    return found


def _one_of(names: list[str], folder: Path, split: str, tally: Tally) -> str:
    """The split that is read.

    Raises:
        InputError: there are several, and none is the one asked for.
    """
    chosen = split_of(names, str(folder), split, tally)
    if chosen is None:
        raise InputError(
            f"data folder {folder} has the splits {', '.join(map(repr, names))} and no {split!r}: give the "
            "folder or the file of the one that is meant."
        )
    return chosen
