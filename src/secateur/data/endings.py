"""What a chat template writes at the end of a reply, found from what it writes before one thing and another."""

import os.path
import re
from dataclasses import dataclass
from typing import Any

from .chat import MARK, Chat

UNFINISHED_TAG = re.compile(r"[<\[{][^>\]}]*$")


@dataclass(frozen=True)
class Endings:
    """What follows a reply and ends it, blanks before it included: between turns, and at the conversation's end."""

    between: str
    last: str
    headers: frozenset[str]
    """Tokens that begin the next turn and so end none; none where nothing else ends a turn."""

    def __bool__(self) -> bool:
        return bool(self.between or self.last)


def endings_of(chat: Chat) -> Endings:
    """The text that ends a reply: what a template writes behind it whatever comes next, without the blanks at its end.

    A reply is written last, before a question, and before the beginning of another reply. Where the first is how the
    others begin, it is the ending. Else (a template that writes more at the very end) what all three share is, up to a
    tag that is not finished in it; and where they share nothing, the ending differs between turns and at the end.
    """
    asked, reply = {"role": "user", "content": "a"}, {"role": "assistant", "content": MARK}
    last = _after(chat, [asked, reply])
    question = _after(chat, [asked, reply, asked])
    begun = _after(chat, [asked, reply], prompt=True)
    tails = [tail for tail in (question, begun) if tail is not None]
    if last is None or not tails:
        return Endings((last or "").rstrip(), (last or "").rstrip(), frozenset())
    if any(tail.startswith(last) for tail in tails):
        between = at_end = last
    else:
        shared = UNFINISHED_TAG.sub("", os.path.commonprefix([last, *tails]))  # noqa: RUF071
        between = at_end = shared
        if not shared.strip():
            at_end, between = last, first_token(os.path.commonprefix(tails), chat.tokenizer)  # noqa: RUF071
    heads = {first_token(tail[len(between) :], chat.tokenizer).strip() for tail in tails if tail.startswith(between)}
    found = Endings(between.rstrip(), at_end.rstrip(), frozenset(heads - {""}))
    return found if found else Endings("", "", frozenset())


def ending_ids(tokenizer: Any) -> list[int]:
    """The token that a chat template ends every reply with, between turns and last; none where that is no added token.

    Where the two differ a reply may go on after the one (gpt-oss, whose thoughts end with `<|end|>`).
    """
    endings = endings_of(Chat(tokenizer)) if tokenizer.chat_template else Endings("", "", frozenset())
    token = first_token(endings.last, tokenizer).strip()
    return [tokenizer.convert_tokens_to_ids(token)] if token and endings.between == endings.last else []


def first_token(text: str, tokenizer: Any) -> str:
    """The added token that a text begins with, with the blanks before it; empty where it begins with none."""
    said = text.lstrip()
    added = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    found = [token for token in added if token.strip() and said.startswith(token)]
    return text[: len(text) - len(said)] + max(found, key=len) if found else ""


def special_tokens(tokenizer: Any) -> set[str]:
    """Texts of the special tokens, those included that have no role."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return added | set(tokenizer.all_special_tokens)


def _after(chat: Chat, turns: list[dict[str, Any]], *, prompt: bool = False) -> str | None:
    """What a template writes after the mark; None where it refuses the turns, or does not write the mark."""
    try:
        _, mark, after = chat.write(turns, {}, prompt=prompt).partition(MARK)
    except Exception:  # whatever a template raises
        return None
    return after if mark else None
