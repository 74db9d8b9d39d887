"""Rows of every accepted form as documents: texts, instructions, chat, prompts with completions, preferences."""

import os.path
from typing import Any

from ...system.errors import InputError
from .document import Document
from .questions import BESIDE, Row, answer, conversation, question, template_keys
from .tally import DROPPED, UNLABELLED, UNUSED, Tally
from .turns import Turn, kind_of

CHATS = ("messages", "conversations", "conversation")
PAIRS = (("instruction", "output"), ("question", "answer"))
"""These come before `text`; the others, of a prompt and a reply each, after it."""
PROMPTS = ("instruction", "question", "prompt", "query", "problem", "input")
REPLIES = ("output", "answer", "completion", "response", "chosen", "solution", "target", "answerKey")
ROW_KEYS = frozenset({*CHATS, *PROMPTS, *REPLIES, *BESIDE, "text", "rejected", "label"})
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
    found = Row({key: value for key, value in row.items() if value is not None}, origin, tally)
    prompt, reply = _pair_of(found.values)
    if key := found.first(*CHATS):
        return _chat(found, conversation(found, found.turns(key)))
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
    if ROW_KEYS.isdisjoint(found.values) and not ROW_KEYS.isdisjoint(row):
        return _dropped(found, "null in place of a text")
    keys = ", ".join(map(repr, list(row)[:10])) or "none"
    raise InputError(f"{origin}: {EXPECTED}; found the keys {keys}. Rename them or convert the row.")


def _pair_of(values: dict[str, Any]) -> tuple[str | None, str | None]:
    """The keys of question and reply."""
    for prompt, reply in PAIRS:
        if prompt in values and reply in values:
            return prompt, reply
    return next((key for key in PROMPTS if key in values), None), next((key for key in REPLIES if key in values), None)


def _pair(row: Row, prompt: str, reply: str) -> Document | None:
    """A question and its reply; of TRL's forms, strings stay as they are and lists are turns."""
    asked, replied = row.values[prompt], row.values[reply]
    if prompt == "prompt" and reply in ("completion", "chosen"):
        row.used.update(("rejected", "label"))
        if str(row.values.get("label")).lower() == "false":
            return _dropped(row, "`label: false`, a reply that is not to be learnt")
        if isinstance(asked, str) and isinstance(replied, str) and row.first(*BESIDE) is None:
            return _completion(row, row.string(prompt), row.string(reply))
    replies = row.turns(reply) if isinstance(replied, list) else [Turn("assistant", answer(row, reply))]
    if replies[0].role != "assistant":  # the reply repeats its prompt
        row.used.add(prompt)
        return _chat(row, conversation(row, replies))
    if isinstance(asked, list):
        asking = conversation(row, row.turns(prompt))
    else:
        asking = conversation(row, [Turn("user", question(row, prompt))], asked=True)
    return _chat(row, [*asking, *replies], len(asking) if isinstance(replied, list) or isinstance(asked, list) else 0)


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
