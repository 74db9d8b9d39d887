"""Reading data: texts, instructions and chat from a file, a folder, the hub or the standard library."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..system.errors import InputError
from ..system.progress import phase
from ..system.quiet import quiet_datasets
from ..system.registry import did_you_mean
from .embedded import stdlib_docs
from .forms.document import Document
from .forms.tally import Tally
from .sources.files import FILE_TYPES, PACKED, documents_of, read_file, type_of
from .sources.folders import check_folder, read_folder
from .sources.tables import without_nulls

STDLIB = "stdlib-docs"
STDLIB_SPLITS = ("train", "held-out")
HUB_NAME = re.compile(  # org/name:config:split, where a split may be a slice: train[:10%]
    r"(?P<name>[A-Za-z0-9][\w.-]*(/[\w.-]+)?)(:(?P<config>[^:/\\\[\]]+)(?=:))?"
    r"(:(?P<split>[\w.+-]+(\[[\d:%-]*\])?))?"
)


def check_spec(spec: str) -> None:
    """Check one data spec without reading it: known split, existing path, known file type.

    Raises:
        InputError: with the value and the remedy.
    """
    name, _, split = spec.partition(":")
    if name == STDLIB:
        if split not in ("", *STDLIB_SPLITS):
            hint = did_you_mean(split, STDLIB_SPLITS)
            raise InputError(f"data {spec!r}: unknown split {split!r}. {hint}Choose from: train, held-out.")
        return
    path = Path(spec).expanduser()
    if path.is_dir():
        check_folder(path)
    elif path.exists():
        if not type_of(path):
            kind = repr(path.suffix) if path.suffix else "without a type"
            types = ", ".join(FILE_TYPES)
            raise InputError(
                f"data file {spec} is {kind}: expected {types} (all but the last two also packed: "
                f"{', '.join(PACKED)}); rename or convert it."
            )
        if not path.is_file():
            raise InputError(f"data {spec} is no regular file (a pipe or a device): write its text to a file first.")
    elif _looks_like_path(spec):
        raise InputError(f"data {spec!r}: no such file or folder. Check the path, or give a hub data set (org/name).")
    elif "/" not in name and (hint := did_you_mean(name, [STDLIB])):
        raise InputError(f"unknown data {spec!r}. {hint}")
    elif not HUB_NAME.fullmatch(spec):
        raise InputError(
            f"data {spec!r} is no file, no folder and no valid hub data set: "
            f"give one of these (org/name, org/name:split, org/name:config:split), or {STDLIB}."
        )


def read_documents(spec: str, *, evaluation: bool = False) -> list[Document]:
    """All documents of one data spec, in file order; what is left out of it, `read_data` tells.

    A spec that could name a split and does not means the training split, or with `evaluation` the other one
    (hub: test; stdlib-docs: held-out), so that one name in both places never tests on what was trained on.

    Raises:
        InputError: what `check_spec` refuses; an empty or non-UTF-8 file; a row that is not JSON or has not the
            expected fields (line number named); a hub data set that cannot be loaded.
    """
    return read_data(spec, evaluation=evaluation)[0]


def read_data(spec: str, *, evaluation: bool = False) -> tuple[list[Document], Tally]:
    """`read_documents`, and a count of what was left out: rows without a reply, keys of no known meaning, files."""
    check_spec(spec)
    tally = Tally()
    name, _, split = spec.partition(":")
    if name == STDLIB:
        held_out = split == "held-out" or (evaluation and not split)
        topics = stdlib_docs("held-out" if held_out else "train")
        return [Document("text", f"{STDLIB}:{topic}", text) for topic, text in topics], tally
    path, part = Path(spec).expanduser(), "test" if evaluation else "train"
    if path.exists():
        return (read_folder if path.is_dir() else read_file)(path, tally, part), tally
    rows = ((without_nulls(row), f"{spec}, row {i}") for i, row in enumerate(_hub_rows(spec, part), 1))
    documents = documents_of(rows, tally)
    if not any(document.raw.strip() for document in documents):
        raise InputError(f"data set {spec} has no text: give another one.")
    return documents, tally


def with_split(spec: str, *, evaluation: bool = False) -> str:
    """The name with the split that it stands for where it names none; a path as it is."""
    name, _, split = spec.partition(":")
    if name == STDLIB:
        return spec if split else f"{STDLIB}:{'held-out' if evaluation else 'train'}"
    parts = HUB_NAME.fullmatch(spec)
    if Path(spec).expanduser().exists() or parts is None or parts["split"]:
        return spec
    return f"{spec}:{'test' if evaluation else 'train'}"


def fingerprint(specs: Sequence[str], *, evaluation: bool = False) -> list[dict[str, Any]]:
    """Per spec: name, rows, characters and the sha256 of the texts one after the other (`Document.identity`, UTF-8)."""
    found = []
    for spec in specs:
        documents = read_documents(spec, evaluation=evaluation)
        digest = hashlib.sha256("".join(document.identity for document in documents).encode()).hexdigest()
        characters = sum(len(document.raw) for document in documents)
        found.append({"name": spec, "rows": len(documents), "characters": characters, "sha256": digest})
    return found


def _looks_like_path(spec: str) -> bool:
    return (
        spec.startswith((".", "/", "~"))
        or spec.count("/") > 1
        or "\\" in spec
        or spec.endswith("/")
        or type_of(Path(spec)) is not None
        or ("/" in spec and Path(spec).parent.is_dir())
    )


def _hub_rows(spec: str, split: str) -> Iterator[dict[str, Any]]:
    """Rows of `name`, `name:split` or `name:config:split` from the hub (or its cache)."""
    from datasets import load_dataset

    parts = HUB_NAME.fullmatch(spec)
    assert parts is not None  # check_spec
    split = parts["split"] or split
    try:
        with phase(f"getting {spec} from the hub or its cache"), quiet_datasets():
            rows = load_dataset(parts["name"], parts["config"], split=split)
        yield from rows
    except Exception as error:  # datasets raises its own classes, OSError, ValueError and the HTTP client's
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(
            f"data {spec!r} is no local file, and as a hub data set its split {split!r} cannot be loaded "
            f"({reason.rstrip('.')}): check the name, the split (name:split or name:config:split) and the network."
        ) from None
