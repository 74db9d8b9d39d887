"""Rows of every accepted form as documents: texts, instructions and chat."""

from dataclasses import dataclass
from typing import Any, Literal

from ..system.errors import InputError
from ..system.registry import did_you_mean

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


def document_of(row: Any, origin: str) -> Document:
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
