"""Text, instructions and chat, from a file, a folder, the hub or the standard library, to token blocks."""

import hashlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .embedded import stdlib_docs
from .errors import InputError
from .registry import did_you_mean

if TYPE_CHECKING:
    import torch

STDLIB = "stdlib-docs"
STDLIB_SPLITS = ("train", "held-out")
FILE_TYPES = (".txt", ".jsonl", ".json")
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
MARK = "=@secateur@="  # stands for a response while its place in the chat template's output is looked for
IGNORED = -100  # the label that torch's cross entropy leaves out
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


@dataclass(frozen=True)
class Blocks:
    """Packed training sequences; a torch map-style data set of {"input_ids", "labels"}, each (seq_len,)."""

    seq_len: int
    input_ids: list[list[int]]
    labels: list[list[int]] = field(repr=False)
    n_documents: int
    n_tokens: int  # in the blocks
    n_label_tokens: int  # of these, with a label
    n_dropped_tokens: int  # the remainder, and blocks without a label

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {"input_ids": self.input_ids[index], "labels": self.labels[index]}


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


def fingerprint(specs: Sequence[str], *, evaluation: bool = False) -> list[dict[str, Any]]:
    """Per spec: name, rows, characters and the sha256 of the raw texts one after the other (UTF-8)."""
    found = []
    for spec in specs:
        texts = [document.raw for document in read_documents(spec, evaluation=evaluation)]
        digest = hashlib.sha256("".join(texts).encode()).hexdigest()
        found.append({"name": spec, "rows": len(texts), "characters": sum(map(len, texts)), "sha256": digest})
    return found


def training_blocks(
    specs: Sequence[str], tokenizer: Any, *, seq_len: int, response_only: bool = False, seed: int = 0
) -> Blocks:
    """Documents in an order fixed by `seed`, tokenised, one after the other, cut into blocks of `seq_len` tokens.

    A text ends with the end-of-sequence token; a conversation goes through the chat template (without one:
    an Alpaca-like prompt). `response_only`: labels on the assistant's words and the token that ends them.

    Raises:
        InputError: `response_only` with plain text, a template that it cannot follow, fewer tokens than one block.
    """
    documents = [d for spec in specs for d in read_documents(spec) if d.raw.strip()]
    random.Random(seed).shuffle(documents)
    ids: list[int] = []
    labels: list[int] = []
    for document in documents:
        new_ids, new_labels = _tokenise(document, tokenizer, response_only)
        ids += new_ids
        labels += new_labels
    cuts = range(0, len(ids) - seq_len + 1, seq_len)
    if not cuts:
        raise InputError(
            f"the data has {len(ids)} tokens in {len(documents)} documents and one sequence takes "
            f"--seq-len {seq_len}: give more data or shorter sequences."
        )
    # the first label of a block is never predicted
    kept = [i for i in cuts if any(label != IGNORED for label in labels[i + 1 : i + seq_len])]
    if not kept:
        raise InputError("no sequence has a response in it: check the roles, or leave out --response-only.")
    return Blocks(
        seq_len=seq_len,
        input_ids=[ids[i : i + seq_len] for i in kept],
        labels=[labels[i : i + seq_len] for i in kept],
        n_documents=len(documents),
        n_tokens=len(kept) * seq_len,
        n_label_tokens=sum(label != IGNORED for i in kept for label in labels[i : i + seq_len]),
        n_dropped_tokens=len(ids) - len(kept) * seq_len,
    )


def require_batches(blocks: Blocks, batch_size: int) -> None:
    """Refuse data that does not fill one batch of `batch_size` sequences."""
    if len(blocks) < batch_size:
        raise InputError(
            f"the data gives {len(blocks)} sequences of {blocks.seq_len} tokens, fewer tokens than one batch: "
            f"--batch-size is {batch_size}. Give more data, a smaller --batch-size or a shorter --seq-len."
        )


def evaluation_tokens(
    spec: str, tokenizer: Any, *, max_tokens: int | None = None
) -> tuple["torch.Tensor", dict[str, Any]]:
    """The text of `spec` as one run of tokens, (n,) int64, at most `max_tokens`, and a record of what it is.

    A file's text goes in as it is, rows are joined by a blank line (WikiText's usual form), no end-of-sequence
    tokens between; conversations go through the chat template. `sha256` and `characters` are of the whole text.
    A name without a split means the test (held-out) split.

    Raises:
        InputError: as `read_documents`; fewer than two tokens.
    """
    import torch

    documents = read_documents(spec, evaluation=True)
    chat = any(d.kind == "chat" for d in documents)
    parts = [_render(d.messages, tokenizer, d.origin) if d.kind == "chat" else d.text for d in documents]
    text = "\n\n".join(parts)
    ids = _first_tokens(text, tokenizer, max_tokens, add_special_tokens=not chat)
    if len(ids) < 2:
        raise InputError(f"evaluation data {spec} has {len(ids)} tokens: two are needed at least.")
    joined = "one text" if len(parts) == 1 else f"{len(parts)} rows joined by a blank line"
    info = {
        "data": spec,
        "joined": joined + (", through the chat template" if chat else ""),
        "characters": len(text),
        "tokens": len(ids),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    return torch.tensor(ids, dtype=torch.long), info


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
    if not text.strip():
        raise InputError(f"{path} is empty: give a file with text in it, or leave it out.")
    if path.suffix.lower() == ".txt":
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
    except RecursionError:
        raise InputError(f"{path}:{first_line}: JSON nested too deeply: expected rows of plain text.") from None


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


def _first_tokens(text: str, tokenizer: Any, max_tokens: int | None, *, add_special_tokens: bool) -> list[int]:
    """The first `max_tokens` tokens of `text`, without tokenising much more of it than that takes."""
    length = len(text) if max_tokens is None else 16 * max_tokens
    while True:
        ids = tokenizer(text[:length], add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
        # a cut changes tokens near it only: with a margin, the first ones are those of the whole text
        if length >= len(text) or (max_tokens is not None and len(ids) >= max_tokens + 256):
            return ids[:max_tokens]
        length *= 2


def _tokenise(document: Document, tokenizer: Any, response_only: bool) -> tuple[list[int], list[int]]:
    """Token ids and labels of one document."""
    if document.kind == "text":
        if response_only:
            raise InputError(
                f"--response-only needs instruction or chat rows, and {document.origin} is plain text: "
                "leave out the option or that data."
            )
        ids = list(tokenizer(document.text, verbose=False)["input_ids"])
        if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
            ids.append(tokenizer.eos_token_id)
        return ids, ids
    text = _render(document.messages, tokenizer, document.origin)
    if not response_only:
        ids = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        return ids, ids
    if not tokenizer.is_fast:
        raise InputError("--response-only needs a fast tokenizer (tokenizer.json): convert it, or drop it.")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, spans = list(encoded["input_ids"]), encoded["offset_mapping"]
    labels = [IGNORED] * len(ids)
    special = set(tokenizer.all_special_ids)
    for start, end in _responses(document, text, tokenizer):
        for i in _tokens_of(start, end, text, ids, spans, special):
            labels[i] = ids[i]
    return ids, labels


def _tokens_of(
    start: int, end: int, text: str, ids: list[int], spans: list[tuple[int, int]], special: set[int]
) -> Iterator[int]:
    """Indices of the tokens of text[start:end], and of the special token that ends the turn if one follows."""
    for i, (first, last) in enumerate(spans):
        if last <= start:
            continue
        if first < end:
            # a token may begin with the blank before the response (" Hello"), not with the prompt's words
            if first >= start or text[first:start].isspace():
                yield i
        elif ids[i] in special:
            yield i
            return
        elif text[first:last].strip():
            return


def _responses(document: Document, text: str, tokenizer: Any) -> Iterator[tuple[int, int]]:
    """Character ranges of the assistant's contents in the rendered conversation `text`."""
    for i, (role, content) in enumerate(document.messages):
        if role != "assistant":
            continue
        marked = (*document.messages[:i], (role, MARK), *document.messages[i + 1 :])
        before, _, after = _render(marked, tokenizer, document.origin).partition(MARK)
        for written in (content, content.strip()):  # templates may trim the content
            if text == before + written + after:
                yield len(before), len(before) + len(written)
                break
        else:
            raise InputError(
                f"{document.origin}: --response-only cannot follow the tokenizer's chat template, which does not "
                f"write turn {i + 1} as it is in the data: leave out the option, or use another template."
            )


def _render(messages: Sequence[Message], tokenizer: Any, origin: str) -> str:
    """The conversation as the chat template writes it, or in a plain form when the tokenizer has no template."""
    if tokenizer.chat_template is None:
        return _plain_prompt(messages, tokenizer)
    turns = [{"role": role, "content": content} for role, content in messages]
    try:
        return tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception as error:  # jinja2's errors, and what a template raises itself
        raise InputError(
            f"{origin}: the tokenizer's chat template refuses this conversation ({error}): "
            f"its roles are {', '.join(role for role, _ in messages)}; reorder or remove the row."
        ) from None


def _plain_prompt(messages: Sequence[Message], tokenizer: Any) -> str:
    """Alpaca-like headings, every response ended with the end-of-sequence token."""
    begins = tokenizer.bos_token_id is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    parts = [tokenizer.bos_token if begins else ""]
    for role, content in messages:
        if role == "assistant":
            parts.append(f"### Response:\n{content}{tokenizer.eos_token or ''}\n\n")
        else:
            parts.append(f"{content}\n\n" if role == "system" else f"### Instruction:\n{content}\n\n")
    return "".join(parts).removesuffix("\n\n")
