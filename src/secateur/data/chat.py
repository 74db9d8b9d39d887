"""Conversations as the chat template writes them."""

from collections.abc import Sequence
from typing import Any

from ..system.errors import InputError
from .encoding import around
from .rows import Message


def render(messages: Sequence[Message], tokenizer: Any, origin: str) -> str:
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
    begins = tokenizer.bos_token_id is not None and around(tokenizer)[0][:1] == [tokenizer.bos_token_id]
    parts = [tokenizer.bos_token if begins else ""]
    for role, content in messages:
        if role == "assistant":
            parts.append(f"### Response:\n{content}{tokenizer.eos_token or ''}\n\n")
        else:
            parts.append(f"{content}\n\n" if role == "system" else f"### Instruction:\n{content}\n\n")
    return "".join(parts).removesuffix("\n\n")
