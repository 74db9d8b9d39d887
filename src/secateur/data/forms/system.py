"""One system prompt before all rows of some data (`--system-prompt`)."""

from collections.abc import Sequence
from dataclasses import replace

from ...system.errors import InputError
from .document import Document

PROMPTS = {
    "collaborative": "While you read this, a part of your weights is being taken out, a little at a time, so that you "
    "run faster and need less memory. What is taken out is what your answers depend on least, and you are trained all "
    "along to make up for it. Help with that: give full, correct and fluent answers as before, and let what remains of "
    "you do the work of what is gone."
}
"""Name -> text. The first is after the idea of Compresso (arXiv:2310.05015), in words of our own."""


def with_system(documents: Sequence[Document], prompt: str) -> list[Document]:
    """The rows with a system prompt before them; one that a conversation has of its own follows it.

    Args:
        prompt: a text, or a name in `PROMPTS`.
    Raises:
        InputError: a row is plain text, which has no place for one.
    """
    return [_after(document, PROMPTS.get(prompt, prompt)) for document in documents]


def _after(document: Document, text: str) -> Document:
    if document.kind == "text":
        raise InputError(
            f"--system-prompt goes before conversations and prompts, and {document.origin} is plain text: leave it "
            "out, or give rows of messages or of prompts with their replies."
        )
    if document.kind == "completion":
        return replace(document, text=f"{text}\n\n{document.text}", reply_from=document.reply_from + len(text) + 2)
    first = document.messages[0] if document.messages else None
    if first is not None and first[0] == "system":
        return replace(document, messages=(("system", f"{text}\n\n{first[1]}"), *document.messages[1:]))
    return replace(
        document,
        messages=(("system", text), *document.messages),
        turn_keys=({}, *document.turn_keys) if document.turn_keys else (),
        untrained=frozenset(turn + 1 for turn in document.untrained),
        reply_from=document.reply_from + 1,
    )
