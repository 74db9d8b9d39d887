"""What stands beside the turns or the question of a row: system, history, context, choices, tools, documents."""

from dataclasses import dataclass, field
from typing import Any

from ...system.errors import InputError
from .tally import UNUSED, Tally
from .turns import Turn, kind_of, parsed, string_of, turns_of

SYSTEMS = ("system", "system_prompt", "system_message")
CHOICES = ("choices", "options")
TOOLS = ("tools", "functions")
OWN_ARGUMENTS = frozenset(
    {
        "conversation", "messages", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize",
        "padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask",
        "tokenizer_kwargs",
    }
)  # fmt: skip
"""Of `apply_chat_template`: what a row cannot say."""
BESIDE = frozenset({*SYSTEMS, *CHOICES, *TOOLS, "input", "context", "history", "documents", "chat_template_kwargs"})


@dataclass(frozen=True)
class Row:
    """A row without its nulls; `used` are the keys that something was made of."""

    values: dict[str, Any]
    origin: str
    tally: Tally
    used: set[str] = field(default_factory=set)

    def string(self, key: str) -> str:
        """The text under `key`, which must be one."""
        self.used.add(key)
        return string_of(self.values, key, self.origin)

    def turns(self, key: str) -> list[Turn]:
        self.used.add(key)
        return turns_of(self.values[key], key, self.origin, self.tally)

    def first(self, *keys: str) -> str | None:
        """The first of these keys that the row has with something in it."""
        return next((key for key in keys if self.values.get(key) not in (None, "", [], {})), None)


def question(row: Row, prompt: str) -> str:
    """The question under `prompt`, with what stands beside it: `input`, `context`, and choices with a letter each."""
    parts = [row.string(prompt)]
    if prompt != "input" and row.values.get("input", "") != "":
        parts.append(row.string("input"))
    return "\n\n".join([*parts, *_context(row), *_listed_choices(row)])


def answer(row: Row, reply: str) -> str:
    """The reply's text; beside choices a number is the place of the right one, and of several texts the first counts.

    Those are a list, or SQuAD's `{"text": [...]}` and TriviaQA's `{"value": ...}`; none is an empty reply.
    """
    value = row.values[reply]
    if isinstance(value, dict):
        value = value.get("text", value.get("value"))
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        value = next(iter(value), "")
    if isinstance(value, int | float) and not isinstance(value, bool):
        labels = list(_choices(row))
        value = labels[value] if isinstance(value, int) and 0 <= value < len(labels) else str(value)
    row.used.add(reply)
    return string_of({reply: value} if isinstance(value, str) else row.values, reply, row.origin)


def conversation(row: Row, turns: list[Turn], *, asked: bool = False) -> list[Turn]:
    """The turns after the row's `system` and `history`; context and choices go to the first question unless `asked`."""
    extra = [] if asked else [*_context(row), *_listed_choices(row)]
    first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
    if extra and first is not None:
        turn = turns[first]
        longer = Turn(turn.role, "\n\n".join([turn.content, *extra]), turn.keys, turn.trained)
        turns = [*turns[:first], longer, *turns[first + 1 :]]
    before = _history(row)
    key = row.first(*SYSTEMS)
    if key is None:
        return [*before, *turns]
    system = row.string(key)
    if turns and turns[0].role == "system":
        if turns[0].content.strip() != system.strip():
            system = f"{system}\n\n{turns[0].content}"
        turns = turns[1:]
    return [Turn("system", system), *before, *turns]


def template_keys(row: Row) -> dict[str, Any]:
    """What the chat template is given beside the turns.

    Raises:
        InputError: `tools` or `documents` that are no list of objects.
    """
    found: dict[str, Any] = {}
    for key in (*TOOLS, "documents"):
        if row.first(key) is None:
            continue
        value = row.values[key]
        value = parsed(value, key, row.origin) if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
            raise InputError(f"{row.origin}: `{key}` is no list of objects (or JSON of one): convert or remove it.")
        row.used.add(key)
        if value:
            found["documents" if key == "documents" else "tools"] = value
    if isinstance(given := row.values.get("chat_template_kwargs"), dict):
        row.used.add("chat_template_kwargs")
        for key in OWN_ARGUMENTS & given.keys():
            row.tally.add(UNUSED, f"`{key}` of `chat_template_kwargs`", row.origin)
        found |= {key: value for key, value in given.items() if value is not None and key not in OWN_ARGUMENTS}
    return found


def _context(row: Row) -> list[str]:
    value = row.values.get("context")
    if isinstance(value, str) and value:
        return [row.string("context")]
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        row.used.add("context")
        return value
    return []


def _listed_choices(row: Row) -> list[str]:
    choices = _choices(row)
    return ["\n".join(f"{label}. {text}" for label, text in choices.items())] if choices else []


def _choices(row: Row) -> dict[str, str]:
    """Label -> text, from a list of texts (A, B, ...), or from texts with labels in one of their usual forms."""
    key = row.first(*CHOICES)
    if key is None:
        return {}
    given = row.values[key]
    if isinstance(given, list) and all(isinstance(choice, dict) and "text" in choice for choice in given):
        labels = [choice.get("label", _letter(i)) for i, choice in enumerate(given)]
        given = {"label": labels, "text": [choice["text"] for choice in given]}
    if isinstance(given, list):
        given = {_letter(i): text for i, text in enumerate(given)}
    elif isinstance(given, dict) and isinstance(given.get("text"), list) and isinstance(given.get("label"), list):
        given = dict(zip(map(str, given["label"]), given["text"], strict=False))
    if not isinstance(given, dict) or not all(isinstance(text, str) for text in given.values()):
        raise InputError(f"{row.origin}: `{key}` is no list of texts: expected the choices of the question.")
    row.used.add(key)
    return given


def _letter(i: int) -> str:
    return chr(ord("A") + i)


def _history(row: Row) -> list[Turn]:
    """Earlier turns: pairs of question and reply, or turns with a role."""
    if row.first("history") is None:
        return []
    given = row.values["history"]
    given = parsed(given, "history", row.origin) if isinstance(given, str) else given
    row.used.add("history")
    turns: list[Turn] = []
    for pair in given if isinstance(given, list) else [given]:
        if isinstance(pair, dict):
            turns += turns_of([pair], "history", row.origin, row.tally)
        elif isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair):
            turns += [Turn("user", pair[0]), Turn("assistant", pair[1])]
        else:
            raise InputError(f"{row.origin}: `history` has {kind_of(pair)} in it: expected pairs of two texts.")
    return turns
