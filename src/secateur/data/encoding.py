"""Text to the tokens that a model is given: every encoding of secateur's goes through here."""

from collections.abc import Sequence
from typing import Any

from ..system.errors import InputError

PLAIN = "the cat"


def encode(tokenizer: Any, text: str, *, special: bool = True) -> list[int]:
    """Token ids of `text` as a model reads it: with what the tokenizer puts before a text, without what it puts after.

    A prompt that ends with an end-of-sequence token is not continued, and a text that was cut has no end.

    Args:
        special: False for a rendered chat template, which holds its special tokens itself.
    """
    ids = list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
    return unended(ids, around(tokenizer)[1]) if special else ids


def unended(ids: list[int], after: list[int]) -> list[int]:
    """`ids` without the tokens `after` at their end."""
    return ids[: len(ids) - len(after)] if after and ids[-len(after) :] == after else ids


def start_of(tokenizer: Any, bos: str) -> list[int]:
    """The tokens that every segment and block begins with.

    Args:
        bos: `auto`: what the tokenizer puts before a text; `always`: the beginning-of-sequence token at least; `never`.
    Raises:
        InputError: `always`, and the tokenizer has no such token.
    """
    if bos == "never":
        return []
    before = around(tokenizer)[0]
    if before or bos == "auto":
        return before
    if tokenizer.bos_token_id is None:
        raise InputError(
            "--bos always: the tokenizer has no bos_token: name it in tokenizer_config.json, or leave --bos."
        )
    return [tokenizer.bos_token_id]


def encode_document(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a whole text: as `encode`, with one end at its end.

    That is what the tokenizer puts there, and the end-of-sequence token where it puts another or none.
    """
    ids, (_, after), end = encode(tokenizer, text), around(tokenizer), tokenizer.eos_token_id
    if end is None or after[-1:] == [end]:
        return ids + after
    return ids if ids[-1:] == [end] else [*ids, end]


def around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What a tokenizer's post-processor puts before and after a text (`<s>`; `</s>`, `[SEP]`); most put nothing."""
    if not tokenizer("", verbose=False)["input_ids"]:
        return [], []
    whole = list(tokenizer(PLAIN, verbose=False)["input_ids"])
    bare = list(tokenizer(PLAIN, add_special_tokens=False, verbose=False)["input_ids"])
    start = _place_of(bare, whole)
    return ([], []) if start is None else (whole[:start], whole[start + len(bare) :])


def _place_of(part: Sequence[int], whole: Sequence[int]) -> int | None:
    places = range(len(whole) - len(part) + 1)
    return next((at for at in places if whole[at : at + len(part)] == part), None)
