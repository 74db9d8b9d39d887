"""Turns of a conversation in every accepted form: roles, contents, calls of tools, and whether they are trained on."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...system.errors import InputError
from ...system.reading import PARSER_ERRORS
from ...system.registry import did_you_mean
from .tally import UNUSED, Tally

Message = tuple[str, str]
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
    "bot": "assistant",
    "ai": "assistant",
    "prompter": "user",
    "function_call": "assistant",
    "tool_call": "assistant",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "ipython": "tool",
}
CALL_ROLES = ("function_call", "tool_call")
"""ShareGPT's turns that are a call of a tool: JSON with `name` and `arguments`."""
THOUGHTS = ("reasoning_content", "thinking", "reasoning")
CONTENTS = ("tool_calls", *THOUGHTS)
"""Keys of a turn whose values the model reads or writes, beside its content."""
PAIRED = (("human", "assistant"), ("input", "output"))
"""Keys of turns that are a question and its reply in one (Firefly's, XTuner's)."""
SWITCHES = ("train", "trainable", "training", "train_on_turn", "loss")
"""Keys of a turn that say whether it is trained on."""


class NullText(InputError):
    """A null where a text should be."""


@dataclass(frozen=True)
class Turn:
    """One turn: `keys` is what else the chat template is given of it."""

    role: str
    content: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    trained: bool = True

    @property
    def empty_reply(self) -> bool:
        return self.role == "assistant" and not self.content.strip() and not self.keys.get("tool_calls")


def turns_of(given: Any, key: str, origin: str, tally: Tally) -> list[Turn]:
    """Turns with `role` and `content` (OpenAI) or `from` and `value` (ShareGPT), or those as JSON in a string.

    Raises:
        InputError: no list, or a turn that is none of these.
        NullText: a turn of which nothing is known but the role.
    """
    if isinstance(given, str) and given.lstrip().startswith("["):
        given = parsed(given, key, origin)
    if isinstance(given, dict) and given and all(isinstance(column, list) for column in given.values()):
        given = [
            dict(zip(given, turn, strict=False)) for turn in zip(*given.values(), strict=False)
        ]  # a sequence's columns
    elif isinstance(given, dict) and any(given.keys() >= {*names} for names in TURN_KEYS):
        given = [given]
    if not isinstance(given, list) or not given:
        found = "an empty list" if given == [] else kind_of(given)
        raise InputError(f"{origin}: `{key}` is {found}: expected a list of turns with `role` and `content`.")
    single = [one for turn in given for one in _unpaired(turn)]
    return [_turn(turn, f"{origin}, turn {number}", tally) for number, turn in enumerate(single, 1)]


def _unpaired(turn: Any) -> list[Any]:
    """A turn that is a question and its reply in one as two, with its system turn; what else it has is the reply's."""
    names = next((pair for pair in PAIRED if isinstance(turn, dict) and turn.keys() >= {*pair}), None)
    if names is None or any(role in turn for role, _ in TURN_KEYS):
        return [turn]
    rest = {key: value for key, value in turn.items() if key not in (*names, "system")}
    before = [{"role": role, "content": turn.get(key)} for role, key in (("system", "system"), ("user", names[0]))]
    return [*(one for one in before if one["content"]), {"role": "assistant", "content": turn[names[1]], **rest}]


def _turn(turn: Any, place: str, tally: Tally) -> Turn:
    names = next((n for n in TURN_KEYS if isinstance(turn, dict) and n[0] in turn), None)
    if names is None:
        found = f"the keys {', '.join(map(repr, turn))}" if isinstance(turn, dict) else kind_of(turn)
        raise InputError(f"{place}: expected `role` and `content` (or `from` and `value`); found {found}.")
    given = string_of(turn, names[0], place)
    name = given if given in ROLES else given.strip().lower()
    if name not in ROLES:
        raise InputError(f"{place}: unknown role {given!r}. {did_you_mean(given, ROLES)}Known: {', '.join(ROLES)}.")
    role = ROLES[name]
    keys = {key: value for key, value in turn.items() if key not in names and value is not None}
    trained = not _is_off(keys, place, tally)
    content = turn.get(names[1])
    if isinstance(content, list):
        content, thought = _parts(content, place)
        keys |= {"reasoning_content": thought} if thought else {}
    elif (
        content is None
        and role == "assistant"
        and (names[1] in turn or "tool_calls" in keys or "function_call" in keys)
    ):
        content, keys["content"] = "", None
    elif content is None and names[1] in turn:
        raise NullText(f"{place}: `{names[1]}` is null: expected text.")
    else:
        content = string_of(turn, names[1], place)
    if name in CALL_ROLES:
        keys["tool_calls"], content = _calls_in(content, place), ""
    if "function_call" in keys:
        keys["tool_calls"] = [{"type": "function", "function": keys.pop("function_call")}]
    if "tool_calls" in keys:
        keys["tool_calls"] = _calls(keys["tool_calls"], place)
        keys = {key: value for key, value in keys.items() if key != "tool_calls" or value}
    for key in THOUGHTS:
        if key in keys:
            string_of(keys, key, place)
    return Turn(role, content, {} if keys == {"content": None} else keys, trained)


def _is_off(keys: dict[str, Any], place: str, tally: Tally) -> bool:
    """Whether a turn's keys, which are taken out, say that it is not trained on."""
    off = keys.pop("mask", False) in (True, 1)
    for key in SWITCHES:
        off |= keys.pop(key, True) in (False, 0)
    weight = keys.pop("weight", 1)
    if weight not in (0, 1):
        tally.add(UNUSED, f"`weight` of a turn other than 0 or 1, such as {weight!r}", place)
    return off or weight in (0, False)


def _parts(parts: list[Any], place: str) -> tuple[str, str]:
    """Text and thought of a content in parts, each one after the other."""
    texts, thoughts = [], []
    for part in parts:
        part = {"type": "text", "text": part} if isinstance(part, str) else part
        kind = part.get("type", "text") if isinstance(part, dict) else kind_of(part)
        if kind in ("thinking", "reasoning"):
            thoughts.append(string_of(part, "thinking" if "thinking" in part else "text", place))
        elif kind in ("text", "input_text", "output_text") and isinstance(part, dict):
            texts.append(string_of(part, "content" if "text" not in part and "content" in part else "text", place))
        else:
            raise InputError(f"{place}: `content` has a part of type {kind!r}: only text is trained on; remove it.")
    return "".join(texts), "".join(thoughts)


def _calls_in(content: str, place: str) -> list[Any]:
    found = parsed(content, "value", place)
    return [{"type": "function", "function": call} for call in (found if isinstance(found, list) else [found])]


def _calls(given: Any, place: str) -> list[Any]:
    calls = parsed(given, "tool_calls", place) if isinstance(given, str) else given
    calls = [calls] if isinstance(calls, dict) else calls
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InputError(f"{place}: `tool_calls` is no list of calls with a `function` that has a `name`.")
    return list(calls)


def parsed(text: str, key: str, place: str) -> Any:
    """JSON that stands in a string of a row."""
    try:
        return json.loads(text)
    except PARSER_ERRORS:
        raise InputError(f"{place}: `{key}` is text that is no valid JSON: {text[:60]!r}.") from None


def string_of(row: Mapping[str, Any], key: str, origin: str) -> str:
    """The text under `key`."""
    value = row.get(key)
    if not isinstance(value, str):
        raise InputError(f"{origin}: `{key}` is {kind_of(value) if key in row else 'missing'}: expected text.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{origin}: `{key}` has half of a surrogate pair (\\ud800-\\udfff): remove it.") from None
    return value


def kind_of(value: Any) -> str:
    names = {bool: "true/false", int: "a number", float: "a number", list: "a list", str: "text"}
    return "null" if value is None else names.get(type(value), "an object")
