"""Reading data: texts, instructions and chat from a file, a folder, the hub or the standard library."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..system.errors import InputError
from ..system.reading import PARSER_ERRORS, reason_of
from ..system.registry import did_you_mean
from .embedded import stdlib_docs

STDLIB = "stdlib-docs"
STDLIB_SPLITS = ("train", "held-out")
TEXTS = (".txt", ".raw", ".tokens")
"""One text a file; the last two as WikiText names its own."""
FILE_TYPES = (*TEXTS, ".jsonl", ".json")
HUB_NAME = re.compile(  # org/name:config:split, where a split may be a slice: train[:10%]
    r"(?P<name>[A-Za-z0-9][\w.-]*(/[\w.-]+)?)(:(?P<config>[^:/\\\[\]]+)(?=:))?"
    r"(:(?P<split>[\w.+-]+(\[[\d:%-]*\])?))?"
)
PAIRS = (("instruction", "output"), ("question", "answer"))
CHATS = ("messages", "conversations")
TURN_KEYS = (("role", "content"), ("from", "value"))
ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "developer": "developer",
}
EXPECTED = "expected `text`, or `instruction` (+ `input`) and `output`, or `question` and `answer`, or `messages`"
Message = tuple[str, str]


@dataclass(frozen=True)
class Document:
    """One text or one conversation of (role, content) turns; `origin` is file:line (or row) for messages."""

    kind: Literal["text", "chat"]
    origin: str
    text: str = ""
    messages: tuple[Message, ...] = ()

    @property
    def raw(self) -> str:
        """The text, or the contents of the turns joined by blank lines."""
        return self.text if self.kind == "text" else "\n\n".join(content for _, content in self.messages)


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
        if not _files_of(path):
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
        files = [path] if path.is_file() else _files_of(path)
        return [document for file in files for document in _read_file(file)]
    hub_rows = _hub_rows(spec, "test" if evaluation else "train")
    documents = [_document(row, f"{spec}, row {i}") for i, row in enumerate(hub_rows, 1)]
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


def _files_of(folder: Path) -> list[Path]:
    """Data files directly in `folder`, sorted; hidden ones are left out."""
    return sorted(
        p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in FILE_TYPES and not p.name.startswith(".")
    )


def _read_file(path: Path) -> list[Document]:
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
        documents = [_document(row, f"{path}, row {i}") for i, row in enumerate(rows, 1)]
    else:
        # "\n" only: str.splitlines() also cuts at characters that JSON strings may hold, such as U+2028
        lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
        documents = [_document(_parse(line, str(path), i), f"{path}:{i}") for i, line in lines]
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


def _document(row: Any, origin: str) -> Document:
    """A row of any accepted form as a document."""
    if not isinstance(row, dict):
        raise InputError(f"{origin}: {EXPECTED}; found {_kind(row)}.")
    for key in CHATS:
        if key in row:
            return Document("chat", origin, messages=_messages(row[key], key, origin))
    for prompt, answer in PAIRS:
        if prompt in row and answer in row:
            asked = _string(row, prompt, origin)
            if row.get("input") not in (None, ""):
                asked += "\n\n" + _string(row, "input", origin)
            turns = (("user", asked), ("assistant", _string(row, answer, origin)))
            return Document("chat", origin, messages=turns)
    if "text" in row:
        return Document("text", origin, _string(row, "text", origin))
    keys = ", ".join(map(repr, list(row)[:10])) or "none"
    raise InputError(f"{origin}: {EXPECTED}; found the keys {keys}. Rename them or convert the row.")


def _messages(turns: Any, key: str, origin: str) -> tuple[Message, ...]:
    """Turns with `role` and `content` (OpenAI) or `from` and `value` (ShareGPT)."""
    if not isinstance(turns, list) or not turns:
        found = "an empty list" if turns == [] else _kind(turns)
        raise InputError(f"{origin}: `{key}` is {found}: expected a list of turns with `role` and `content`.")
    messages = []
    for number, turn in enumerate(turns, 1):
        place = f"{origin}, turn {number}"
        names = next((n for n in TURN_KEYS if isinstance(turn, dict) and n[0] in turn), None)
        if names is None:
            found = f"the keys {', '.join(map(repr, turn))}" if isinstance(turn, dict) else _kind(turn)
            raise InputError(f"{place}: expected `role` and `content` (or `from` and `value`); found {found}.")
        role = _string(turn, names[0], place)
        if role not in ROLES:
            raise InputError(f"{place}: unknown role {role!r}. {did_you_mean(role, ROLES)}Known: {', '.join(ROLES)}.")
        messages.append((ROLES[role], _string(turn, names[1], place)))
    return tuple(messages)


def _string(row: dict[str, Any], key: str, origin: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise InputError(f"{origin}: `{key}` is {_kind(value) if key in row else 'missing'}: expected text.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{origin}: `{key}` has half of a surrogate pair (\\ud800-\\udfff): remove it.") from None
    return value


def _kind(value: Any) -> str:
    names = {bool: "true/false", int: "a number", float: "a number", list: "a list", str: "text"}
    return "null" if value is None else names.get(type(value), "an object")


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
