"""Reading data: texts, instructions and chat from a file, a folder, the hub or the standard library."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..system.errors import InputError
from ..system.registry import did_you_mean
from .embedded import stdlib_docs
from .files import FILE_TYPES, files_of, read_file
from .rows import Document, document_of

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
        if not files_of(path):
            raise InputError(f"data folder {spec} has no {', '.join(FILE_TYPES)} file: give one that has.")
    elif path.exists():
        if path.suffix.lower() not in FILE_TYPES:
            kind = repr(path.suffix) if path.suffix else "without a type"
            types = ", ".join(FILE_TYPES)
            raise InputError(f"data file {spec} is {kind}: expected {types}; rename or convert it.")
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
    """All documents of one data spec, in file order.

    A spec that could name a split and does not means the training split, or with `evaluation` the other one
    (hub: test; stdlib-docs: held-out), so that one name in both places never tests on what was trained on.

    Raises:
        InputError: what `check_spec` refuses; an empty or non-UTF-8 file; a row that is not JSON or has not the
            expected fields (line number named); a hub data set that cannot be loaded.
    """
    check_spec(spec)
    name, _, split = spec.partition(":")
    if name == STDLIB:
        held_out = split == "held-out" or (evaluation and not split)
        rows = stdlib_docs("held-out" if held_out else "train")
        return [Document("text", f"{STDLIB}:{topic}", text) for topic, text in rows]
    path = Path(spec).expanduser()
    if path.exists():
        files = [path] if path.is_file() else files_of(path)
        return [document for file in files for document in read_file(file)]
    hub_rows = _hub_rows(spec, "test" if evaluation else "train")
    documents = [document_of(row, f"{spec}, row {i}") for i, row in enumerate(hub_rows, 1)]
    if not any(document.raw.strip() for document in documents):
        raise InputError(f"data set {spec} has no text: give another one.")
    return documents


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
    """Per spec: name, rows, characters and the sha256 of the raw texts one after the other (UTF-8)."""
    found = []
    for spec in specs:
        texts = [document.raw for document in read_documents(spec, evaluation=evaluation)]
        digest = hashlib.sha256("".join(texts).encode()).hexdigest()
        found.append({"name": spec, "rows": len(texts), "characters": sum(map(len, texts)), "sha256": digest})
    return found


def _looks_like_path(spec: str) -> bool:
    return (
        spec.startswith((".", "/", "~"))
        or spec.count("/") > 1
        or "\\" in spec
        or spec.lower().endswith((*FILE_TYPES, "/"))
        or ("/" in spec and Path(spec).parent.is_dir())
    )


def _hub_rows(spec: str, split: str) -> Iterator[dict[str, Any]]:
    """Rows of `name`, `name:split` or `name:config:split` from the hub (or its cache)."""
    from datasets import load_dataset

    parts = HUB_NAME.fullmatch(spec)
    assert parts is not None  # check_spec
    split = parts["split"] or split
    try:
        yield from load_dataset(parts["name"], parts["config"], split=split)
    except Exception as error:  # datasets raises its own classes, OSError, ValueError and the HTTP client's
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(
            f"data {spec!r} is no local file, and as a hub data set its split {split!r} cannot be loaded "
            f"({reason.rstrip('.')}): check the name, the split (name:split or name:config:split) and the network."
        ) from None
