"""Conversations as the chat template writes them, and what the template leaves out."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..system.errors import InputError
from .encoding import around
from .forms.document import Document
from .forms.tally import UNWRITTEN, Tally
from .forms.turns import THOUGHTS

MARK = "=@-@="  # stands for a content while its place in the chat template's output is looked for: no letter, no blank
TurnKeys = dict[str, Any]


@dataclass(frozen=True)
class Rendered:
    """A conversation as it was given to the template, and what came out."""

    turns: list[TurnKeys]
    keys: Mapping[str, Any]
    text: str


class TemplateError(InputError):
    """A chat template refuses one conversation."""


class Chat:
    """A tokenizer's chat template, or a plain form where it has none."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.roles: dict[str, bool] = {}  # whether the template writes a role's contents, as far as it has been seen

    def source(self, keys: Mapping[str, Any] | None = None) -> str:
        """The template's text; empty without one."""
        if self.tokenizer.chat_template is None:
            return ""
        return str(self.tokenizer.get_chat_template(None, (keys or {}).get("tools")))

    @cached_property
    def in_parts(self) -> bool:
        """Whether the template wants contents as lists of parts, as those of models that see images do."""
        for content, answer in ((MARK, False), ([{"type": "text", "text": MARK}], True)):
            try:
                if MARK in self._apply([{"role": "user", "content": content}], {}, False):
                    return answer
            except Exception:
                continue
        return False

    def write(self, turns: Sequence[TurnKeys], keys: Mapping[str, Any], *, prompt: bool = False) -> str:
        """What the template makes of these turns; with `prompt` up to where a reply begins. It may raise anything."""
        if self.tokenizer.chat_template is None:
            return _plain_prompt(turns, keys, self.tokenizer, prompt)
        return self._apply(self._given(turns), keys, prompt)

    def generated(self, rendered: Rendered) -> list[int] | None:
        """1 for each token that is the assistant's by the template's `{% generation %}`; None where it says nothing."""
        if not re.search(r"{%-?\+?\s*generation\b", self.source(rendered.keys)):
            return None
        found = self.tokenizer.apply_chat_template(
            self._given(rendered.turns), return_assistant_tokens_mask=True, return_dict=True, **rendered.keys
        )
        return list(found["assistant_masks"]) if any(found["assistant_masks"]) else None

    def _given(self, turns: Sequence[TurnKeys]) -> list[TurnKeys]:
        """The turns in the form that the template wants."""
        if not self.in_parts:
            return list(turns)
        return [
            turn | {"content": [{"type": "text", "text": turn["content"]}]} if turn["content"] else turn
            for turn in turns
        ]

    def _apply(self, turns: list[TurnKeys], keys: Mapping[str, Any], prompt: bool) -> str:
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt, **keys))

    def render(self, document: Document) -> Rendered:
        """The conversation as the chat template writes it.

        Raises:
            InputError: it refuses the conversation.
        """
        failure: Exception | None = None
        fallback = None
        for turns in _forms(document):
            try:
                text = self.write(turns, document.template_keys)
            except MemoryError:
                raise
            except Exception as error:  # jinja2's errors, and what a template raises itself
                failure = failure or error
                continue
            found = Rendered(turns, document.template_keys, text)
            if all(name in text for turn in turns for name in call_names(turn)):
                return found
            fallback = fallback or found
        if fallback:
            return fallback
        roles = ", ".join(role for role, _ in document.messages)
        reason = " ".join(str(failure).split())[:200].rstrip(".") or type(failure).__name__
        if not self.is_sound:
            raise TemplateError(
                f"the tokenizer's chat template cannot be rendered ({type(failure).__name__}: {reason}): mend it "
                "(chat_template.jinja, or chat_template in tokenizer_config.json), or remove it."
            )
        raise TemplateError(
            f"{document.origin}: the tokenizer's chat template refuses this conversation ({reason}): "
            f"its roles are {roles}; reorder or remove the row."
        )

    @cached_property
    def is_sound(self) -> bool:
        """Whether the template writes the plainest of conversations."""
        try:
            return bool(self.write([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], {}))
        except Exception:  # whatever a template raises
            return False

    def count_left_out(self, document: Document, rendered: Rendered, tally: Tally) -> None:
        """Count what a conversation has and the template does not write: turns, thoughts, calls, tools, keys."""

        def leave_out(what: str) -> None:
            tally.add(UNWRITTEN, what, document.origin)

        source, text = self.source(document.template_keys), rendered.text
        for i, turn in enumerate(rendered.turns):
            content, role = (turn["content"] or "").strip(), turn["role"]
            thought, _, said = content.rpartition("</think>")
            if content and not self._writes_role(rendered, i) and said.strip():
                leave_out(f"turns of the role `{role}`")
            elif content not in text and thought and said.strip() in text:
                leave_out("thoughts (`<think>`)")
            for key in turn.keys() - {"role", "content", "tool_call_id"} - ({"name"} if role == "tool" else set()):
                if key == "tool_calls":
                    written = all(name in text for name in call_names(turn))
                elif key in THOUGHTS:
                    written = turn[key].strip() in text
                else:
                    written = _mentions(source, key)
                if not written:
                    leave_out(f"`{key}` of a turn")
        for key, value in rendered.keys.items():
            names = [str(tool.get("function", tool).get("name", "")) for tool in value] if key == "tools" else []
            if not (any(name and name in text for name in names) or (_mentions(source, key) and not any(names))):
                leave_out(f"`{key}`")

    def _writes_role(self, rendered: Rendered, i: int) -> bool:
        """Whether the template writes this turn: looked at once a role, and where the content is not in the text."""
        turn = rendered.turns[i]
        role, content = turn["role"], (turn["content"] or "").strip()
        if content in rendered.text and self.roles.get(role):
            return True
        marked = [*rendered.turns[:i], turn | {"content": MARK}, *rendered.turns[i + 1 :]]
        try:
            written = MARK in self.write(marked, rendered.keys)
        except Exception:
            return True
        self.roles[role] = written
        return written


def is_unwritten(rendered: Rendered, i: int) -> bool:
    """Whether turn `i` is a call of a tool that the template has not written, and nothing else."""
    turn = rendered.turns[i]
    names = call_names(turn)
    return not (turn["content"] or "").strip() and bool(names) and not all(name in rendered.text for name in names)


def _mentions(source: str, key: str) -> bool:
    """Whether a template has a key's name in it: as a string, or after a point or a blank."""
    return re.search(rf"[.'\" ]{re.escape(key)}\b", source) is not None


def call_names(turn: TurnKeys) -> list[str]:
    """Names of the functions that a turn calls."""
    return [str(call.get("function", call)["name"]) for call in turn.get("tool_calls", ())]


def _forms(document: Document) -> Iterator[list[TurnKeys]]:
    """The turns as a template may want them: calls' arguments as an object or as JSON, no content as null or empty."""
    keys = document.turn_keys or ({},) * len(document.messages)
    given = [
        {"role": role, "content": content, **more}
        for (role, content), more in zip(document.messages, keys, strict=True)
    ]
    if not any("tool_calls" in turn for turn in given):
        yield given
        return
    for empty in (False, True):
        for as_text in (False, True):
            yield [_form(turn, empty, as_text) for turn in given]


def _form(turn: TurnKeys, empty: bool, as_text: bool) -> TurnKeys:
    if "tool_calls" not in turn:
        return turn
    calls = []
    for call in turn["tool_calls"]:
        function = dict(call.get("function", call))
        if "arguments" in function:
            function["arguments"] = _arguments(function["arguments"], as_text)
        calls.append(call | {"function": function} if "function" in call else function)
    content = turn["content"] if turn["content"] else None if empty else turn["content"]
    return turn | {"tool_calls": calls, "content": content}


def _arguments(given: Any, as_text: bool) -> Any:
    if as_text:
        return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    try:
        found = json.loads(given) if isinstance(given, str) else given
    except ValueError:
        return given
    return found if isinstance(found, dict) else given


def _plain_prompt(turns: Sequence[TurnKeys], keys: Mapping[str, Any], tokenizer: Any, prompt: bool) -> str:
    """Alpaca-like headings, every response ended with the end-of-sequence token."""
    begins = tokenizer.bos_token_id is not None and around(tokenizer)[0][:1] == [tokenizer.bos_token_id]
    parts = [tokenizer.bos_token if begins else ""]
    parts += [f"{json.dumps(value, ensure_ascii=False)}\n\n" for value in keys.values()]
    for turn in turns:
        content = turn["content"] or ""
        if turn["role"] == "assistant":
            thought = next((turn[key] for key in THOUGHTS if key in turn), None)
            calls = [json.dumps(call.get("function", call), ensure_ascii=False) for call in turn.get("tool_calls", ())]
            said = "\n".join([*([content] if content or not calls else []), *calls])
            said = f"<think>\n{thought}\n</think>\n\n{said}" if thought else said
            parts.append(f"### Response:\n{said}{tokenizer.eos_token or ''}\n\n")
        else:
            parts.append(f"{content}\n\n" if turn["role"] == "system" else f"### Instruction:\n{content}\n\n")
    return "".join([*parts, "### Response:\n"] if prompt else parts).removesuffix("\n\n")
