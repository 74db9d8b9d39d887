"""Token ids and labels of one document: everything, or the assistant's words and the token that ends them."""

from collections.abc import Iterator
from typing import Any

from ..system.errors import InputError
from .chat import render
from .encoding import encode, encode_document
from .rows import Document

MARK = "=@secateur@="  # stands for a response while its place in the chat template's output is looked for
IGNORED = -100  # the label that torch's cross entropy leaves out


def tokenise(document: Document, tokenizer: Any, response_only: bool) -> tuple[list[int], list[int]]:
    """Token ids and labels of one document."""
    if document.kind == "text":
        if response_only:
            raise InputError(
                f"--response-only needs instruction or chat rows, and {document.origin} is plain text: "
                "leave out the option or that data."
            )
        ids = encode_document(tokenizer, document.text)
        return ids, ids
    text = render(document.messages, tokenizer, document.origin)
    if not response_only:
        ids = encode(tokenizer, text, special=False)
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
        before, _, after = render(marked, tokenizer, document.origin).partition(MARK)
        for written in (content, content.strip()):  # templates may trim the content
            if text == before + written + after:
                yield len(before), len(before) + len(written)
                break
        else:
            raise InputError(
                f"{document.origin}: --response-only cannot follow the tokenizer's chat template, which does not "
                f"write turn {i + 1} as it is in the data: leave out the option, or use another template."
            )
