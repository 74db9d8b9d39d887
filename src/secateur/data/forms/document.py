"""What a row becomes: one text, one conversation, or a prompt with its completion."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .turns import CONTENTS, Message


@dataclass(frozen=True)
class Document:
    """One text, one conversation of (role, content) turns, or a prompt and its completion in one `text`; `origin` is
    file:line (or row) for messages."""

    kind: Literal["text", "chat", "completion"]
    origin: str
    text: str = ""
    messages: tuple[Message, ...] = ()
    turn_keys: tuple[Mapping[str, Any], ...] = ()
    """Of each turn, what else the chat template is given; empty where no turn has any."""
    template_keys: Mapping[str, Any] = field(default_factory=dict)
    """What the chat template is given beside the turns: `tools`, `documents`, ..."""
    untrained: frozenset[int] = frozenset()
    """Turns without a label."""
    reply_from: int = 0
    """The first turn, or of a completion the first character, that is a response."""

    @property
    def raw(self) -> str:
        """The text, or the contents of the turns (and of their keys and the row's) joined by blank lines."""
        if self.kind != "chat":
            return self.text
        parts = [_as_json(self.template_keys)] if self.template_keys else []
        for i, (_, content) in enumerate(self.messages):
            keys = self.turn_keys[i] if self.turn_keys else {}
            said = {key: keys[key] for key in CONTENTS if key in keys}
            parts += [content, *([_as_json(said)] if said else [])]
        return "\n\n".join(parts)

    @property
    def identity(self) -> str:
        """What a hash of the data is taken of: `raw`, and which turns have no label."""
        return self.raw + (f"\0{sorted(self.untrained)}" if self.untrained else "")


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
