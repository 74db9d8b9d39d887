"""Rows of every accepted form as documents: texts, instructions, chat, prompts with completions, preferences."""

import math
import os.path
from typing import Any

from ...system.errors import InputError
from .document import Document
from .questions import BESIDE, Row, answer, conversation, question, template_keys
from .tally import DROPPED, UNLABELLED, UNUSED, Tally
from .turns import TURN_KEYS, NullText, Turn, kind_of

CHATS = ("messages", "conversations", "conversation")
PAIRS = (("instruction", "output"), ("question", "answer"))
"""These come before `text`; the others, of a prompt and a reply each, after it."""
SOURCES = (
    ("source", "target"), ("inputs", "targets"), ("document", "summary"), ("article", "highlights"),
    ("article", "summary"), ("dialogue", "summary"),
)  # fmt: skip
"""Of data for sequence-to-sequence models; alone, `source` more often says where a row is from."""
PROMPTS = ("instruction", "question", "prompt", "query", "problem", "input")
REPLIES = ("output", "answer", "completion", "response", "chosen", "solution", "target", "answerKey", "answers")
ROW_KEYS = frozenset(
    {*CHATS, *PROMPTS, *REPLIES, *BESIDE, "text", "rejected", "label", *(key for pair in SOURCES for key in pair)}
)
NULL, UNWANTED = "null in place of a text", "`label: false`, a reply that is not to be learnt"
EXPECTED = (
    "expected `text`, or `instruction` (+ `input`) and `output`, or `question` and `answer`, or `prompt` and "
    "`completion`, or `messages`"
)


def document_of(row: Any, origin: str, tally: Tally) -> Document | None:
    """A row of any accepted form as a document; None, and counted, where there is nothing in it to train on.

    Raises:
        InputError: a row of another form.
    """
    if not isinstance(row, dict):
        raise InputError(f"{origin}: {EXPECTED}; found {kind_of(row)}.")
    if ROW_KEYS.isdisjoint(row):  # `Question`, or a header with blanks in it
        row = {name if (name := str(key).strip().lower()) in ROW_KEYS else key: value for key, value in row.items()}
    found = Row({key: value for key, value in row.items() if not _is_null(value)}, origin, tally)
    try:
        return _of_its_form(found, row)
    except NullText:
        return _dropped(found, NULL)


def _is_null(value: Any) -> bool:
    """Whether a value is null; pandas writes NaN for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _of_its_form(found: Row, row: dict[str, Any]) -> Document | None:
    origin = found.origin
    prompt, reply = _pair_of(found.values)
    if key := found.first(*CHATS):
        return _conversation(found, key)
    if "text" in found.values and (prompt, reply) not in PAIRS:
        return _done(found, Document("text", origin, found.string("text")))
    if prompt and reply:
        return _pair(found, prompt, reply)
    if "chosen" in found.values:
        return _preference(found)
    if key := next((key for key in CHATS if key in found.values), None):
        found.turns(key)  # says what is wrong with an empty one
    if prompt and any(key in row for key in REPLIES):
        return _dropped(found, "empty reply")
    if (ROW_KEYS.isdisjoint(found.values) and not ROW_KEYS.isdisjoint(row)) or (reply and _has_null(found, row)):
        return _dropped(found, NULL)
    keys = ", ".join(map(repr, list(row)[:10])) or "none"
    raise InputError(f"{origin}: {EXPECTED}; found the keys {keys}. Rename them or convert the row.")


def _has_null(found: Row, row: dict[str, Any]) -> bool:
    """Whether a row has a prompt's key, and nothing in it."""
    return any(key in row and key not in found.values for key in PROMPTS)


def _conversation(row: Row, key: str) -> Document | None:
    """Turns; a `chosen` beside turns that end with a question is their reply (LLaMA-Factory's form)."""
    turns = row.turns(key)
    if row.values.get("label") is False:
        row.used.add("label")
        return _dropped(row, UNWANTED)
    chosen = row.values.get("chosen")
    if not chosen or turns[-1].role == "assistant":
        return _chat(row, conversation(row, turns))
    row.used.update(("chosen", "rejected"))
    replies = [Turn("assistant", row.string("chosen"))] if isinstance(chosen, str) else row.turns("chosen")
    if replies[0].role != "assistant":  # the reply repeats its prompt
        return _chat(row, conversation(row, replies))
    asking = conversation(row, turns)
    return _chat(row, [*asking, *replies], len(asking))


def _pair_of(values: dict[str, Any]) -> tuple[str | None, str | None]:
    """The keys of question and reply."""
    for prompt, reply in PAIRS:
        if prompt in values and reply in values:
            return prompt, reply
    for source, target in SOURCES if values.keys().isdisjoint(PROMPTS) else ():
        if source in values and target in values:
            return source, target
    asked = next((key for key in PROMPTS if key in values), None)
    replies = ("solution", *REPLIES) if asked == "problem" else REPLIES  # its `answer` is the solution's last number
    return asked, next((key for key in replies if key in values), None)


def _pair(row: Row, prompt: str, reply: str) -> Document | None:
    """A question and its reply; of TRL's forms, strings stay as they are and lists are turns."""
    asked, replied = row.values[prompt], row.values[reply]
    if prompt == "prompt" and reply in ("completion", "chosen"):
        row.used.update(("rejected", "label"))
        if str(row.values.get("label")).lower() == "false":
            return _dropped(row, UNWANTED)
        if isinstance(asked, str) and isinstance(replied, str) and row.first(*BESIDE) is None:
            return _completion(row, row.string(prompt), row.string(reply))
    of_turns = reply not in ("answer", "answers") and _is_turns(replied)
    replies = row.turns(reply) if of_turns else [Turn("assistant", answer(row, reply))]
    if replies[0].role != "assistant":  # the reply repeats its prompt
        row.used.add(prompt)
        return _chat(row, conversation(row, replies))
    if isinstance(asked, list):
        asking = conversation(row, row.turns(prompt))
    else:
        asking = conversation(row, [Turn("user", question(row, prompt))], asked=True)
    return _chat(row, [*asking, *replies], len(asking) if of_turns or isinstance(asked, list) else 0)


def _is_turns(value: Any) -> bool:
    """Whether a value is a list of turns (or an empty one), or one turn."""
    if isinstance(value, dict):
        return any(role in value for role, _ in TURN_KEYS)
    return isinstance(value, list) and not (value and all(isinstance(part, str) for part in value))


def _preference(row: Row) -> Document | None:
    """`chosen` (and `rejected`) that begin with their prompt: of strings, it is what both share."""
    row.used.update(("chosen", "rejected"))
    if isinstance(row.values["chosen"], list):
        return _chat(row, conversation(row, row.turns("chosen")))
    chosen, rejected = row.string("chosen"), row.values.get("rejected")
    shared = os.path.commonprefix([chosen, rejected]) if isinstance(rejected, str) else ""  # noqa: RUF071
    shared = shared[:-1] if shared.endswith(" ") else shared
    return _completion(row, shared, chosen[len(shared) :])


def _completion(row: Row, prompt: str, reply: str) -> Document | None:
    if not reply.strip():
        return _dropped(row, "empty reply")
    return _done(row, Document("completion", row.origin, prompt + reply, reply_from=len(prompt)))


def _chat(row: Row, turns: list[Turn], reply_from: int = 0) -> Document | None:
    """A conversation without the empty replies at its end; those before have no label."""
    empty = sum(turn.empty_reply for turn in turns)
    while turns and turns[-1].empty_reply:
        turns = turns[:-1]
    if empty and not any(turn.role == "assistant" and not turn.empty_reply for turn in turns[reply_from:]):
        return _dropped(row, "empty reply")
    untrained = sum(not turn.trained for turn in turns)
    for count, why in ((empty, "empty reply"), (untrained, "`weight: 0`, `train: false` or the like")):
        if count:
            row.tally.add(UNLABELLED, why, row.origin, count)
    keys = tuple(turn.keys for turn in turns)
    document = Document(
        "chat",
        row.origin,
        messages=tuple((turn.role, turn.content) for turn in turns),
        turn_keys=keys if any(keys) else (),
        template_keys=template_keys(row),
        untrained=frozenset(i for i, turn in enumerate(turns) if not turn.trained or turn.empty_reply),
        reply_from=reply_from,
    )
    return _done(row, document)


def _dropped(row: Row, why: str) -> Document | None:
    """No document, and counted."""
    row.tally.add(DROPPED, why, row.origin)
    return None


def _done(row: Row, document: Document) -> Document:
    """The document, once the keys that nothing was made of are counted."""
    for key, value in row.values.items():
        if key not in row.used and value not in ("", [], {}):
            row.tally.add(UNUSED, f"`{key}`", row.origin)
    return document
