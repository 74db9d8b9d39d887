"""Token ids and labels of one document: everything, or the assistant's words and what ends them."""

import os.path
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..system.errors import InputError
from .chat import MARK, Chat, Rendered, is_unwritten
from .encoding import around, encode_document
from .endings import UNFINISHED_TAG, Endings, endings_of, first_token, special_tokens
from .forms.document import Document
from .forms.tally import ENDINGS, UNENDED, UNLABELLED, Tally
from .forms.turns import THOUGHTS
from .packing import IGNORED

NO_EOS = "the tokenizer has no eos_token"
NOT_FOUND = "a reply whose place in what the chat template writes is not found"


@dataclass(frozen=True)
class Span:
    """Characters of a rendered turn: its contents, and where what ends it ends."""

    start: int
    end: int
    stop: int


class Labeller:
    """Makes token ids and labels of documents; `tally` counts what gets no label."""

    def __init__(self, tokenizer: Any, response_only: bool, tally: Tally) -> None:
        self.tokenizer, self.response_only, self.tally = tokenizer, response_only, tally
        self.chat = Chat(tokenizer)

    def tokenise(self, document: Document) -> tuple[list[int], list[int]]:
        """Token ids and labels of one document.

        Raises:
            InputError: `response_only` and plain text; a conversation that the chat template refuses.
        """
        if document.kind == "chat":
            return self._conversation(document)
        if document.kind == "text" and self.response_only:
            raise InputError(
                f"--response-only needs instruction or chat rows, and {document.origin} is plain text: "
                "leave out the option or that data."
            )
        ids = encode_document(self.tokenizer, document.text)
        if self.tokenizer.eos_token_id is None and not self.ended:
            self.tally.add(UNENDED, NO_EOS, document.origin)
        if not self.response_only:
            return ids, list(ids)
        offsets = self._encode(document.text, special=True, spans=True)["offset_mapping"]
        begin = next((i for i, (_, last) in enumerate(offsets) if last > document.reply_from), len(ids))
        return ids, [IGNORED] * begin + ids[begin:]

    def _conversation(self, document: Document) -> tuple[list[int], list[int]]:
        rendered = self.chat.render(document)
        self.chat.count_left_out(document, rendered, self.tally)
        replies = [i for i, (role, _) in enumerate(document.messages) if role == "assistant"]
        hidden = set(document.untrained)
        if self.response_only:
            hidden |= {i for i in replies if i < document.reply_from}
        unwritten = {i for i in replies if is_unwritten(rendered, i)} - hidden
        for i in unwritten:
            self.tally.add(
                UNLABELLED, "a call of a tool, which leaves an empty reply", f"{document.origin}, turn {i + 1}"
            )
        hidden |= unwritten
        needed = self.response_only or bool(hidden)
        encoded = self._encode(rendered.text, special=False, spans=needed)
        ids = list(encoded["input_ids"])
        if not needed:
            return self._ended(ids, list(ids), document)
        offsets = encoded["offset_mapping"]
        labels = [IGNORED] * len(ids) if self.response_only else list(ids)
        mask = self.chat.generated(rendered) if self.response_only else None
        if mask is not None and len(mask) == len(ids):
            self._label_generated(mask, rendered, ids, labels, offsets)
        elif self.response_only:
            for i in replies:
                if i not in hidden and (span := self._found(document, rendered, i)):
                    for at in _tokens_of(span, rendered.text, offsets):
                        labels[at] = ids[at]
        for i in hidden:
            if span := self.span(rendered, i):
                for at in _tokens_of(span, rendered.text, offsets):
                    labels[at] = IGNORED
        return self._ended(ids, labels, document)

    def _ended(self, ids: list[int], labels: list[int], document: Document) -> tuple[list[int], list[int]]:
        """With the end-of-sequence token, as texts have it, where the template writes nothing at the end of a reply."""
        eos = self.tokenizer.eos_token_id
        if self.endings or (eos is not None and ids[-1:] == [eos]):
            return ids, labels
        if eos is None:
            self.tally.add(ENDINGS, NO_EOS, document.origin)
            return ids, labels
        last = len(document.messages) - 1
        trained = document.messages[last][0] == "assistant" and last not in document.untrained
        self.tally.add(ENDINGS, f"{self.tokenizer.eos_token} is put after the last one", document.origin)
        return [*ids, eos], [*labels, eos if trained or not self.response_only else IGNORED]

    @cached_property
    def ended(self) -> bool:
        """Whether the tokenizer itself puts something after a text."""
        return bool(around(self.tokenizer)[1])

    @cached_property
    def endings(self) -> Endings:
        return endings_of(self.chat)

    def _encode(self, text: str, *, special: bool, spans: bool) -> Any:
        if spans and not self.tokenizer.is_fast:
            raise InputError(
                "--response-only, and turns with `weight: 0`, need a fast tokenizer (tokenizer.json): convert it, or "
                "drop them."
            )
        options = {"return_offsets_mapping": True} if spans else {}
        return self.tokenizer(text, add_special_tokens=special, verbose=False, **options)

    def _label_generated(
        self, mask: list[int], rendered: Rendered, ids: list[int], labels: list[int], offsets: Any
    ) -> None:
        """Label what the template itself says the assistant writes, and what ends it."""
        for at, on in enumerate(mask):
            if not on:
                continue
            labels[at] = ids[at]
            if at + 1 == len(mask) or not mask[at + 1]:
                end = offsets[at][1]
                if not self._ends(rendered.text[:end], at + 1 == len(mask)):
                    span = Span(end, end, self._stop(rendered.text, end, at_end=False))
                    for after in _tokens_of(span, rendered.text, offsets):
                        labels[after] = ids[after]

    def _ends(self, text: str, at_end: bool) -> bool:
        ending = (self.endings.last if at_end else self.endings.between).strip()
        return bool(ending) and text.rstrip().endswith(ending)

    def _found(self, document: Document, rendered: Rendered, i: int) -> Span | None:
        """The place of a reply; counted where it is not found, or empty."""
        span = self.span(rendered, i)
        if span is None or not rendered.text[span.start : span.end].strip():
            self.tally.add(UNLABELLED, NOT_FOUND, f"{document.origin}, turn {i + 1}")
            return None
        return span

    def span(self, rendered: Rendered, i: int) -> Span | None:
        """Where the template has written turn `i`: what differs from the same conversation with a mark in its place.

        A thought or a call of a turn counts from where the template's own prompt for a reply ends.
        """
        text, turns = rendered.text, rendered.turns
        turn = turns[i]
        mark = MARK
        while mark in text:
            mark += MARK
        bare = {key: value for key, value in turn.items() if key not in ("tool_calls", *THOUGHTS)}
        marked = self._written([*turns[:i], bare | {"content": mark}, *turns[i + 1 :]], rendered) or ""
        before, found, after = marked.partition(mark)
        place = self._place(rendered, i, before, after) if found else None
        if place and not (bare != turn and place[1] > self._next(rendered, i, mark)):
            return Span(*place, self._stop(text, place[1], at_end=i + 1 == len(turns)))
        return self._continued(rendered, i, mark) if bare != turn else None

    def _continued(self, rendered: Rendered, i: int, mark: str) -> Span | None:
        """Where turn `i` is by what the template writes of the conversation up to it: for calls, without which it may
        refuse the rest, or leave the rest out."""
        earlier, turn, text = rendered.turns[:i], rendered.turns[i], rendered.text
        prompt = self._written(earlier, rendered, prompt=True)
        if not prompt or not text.startswith(prompt):
            return None
        unthought = {key: value for key, value in turn.items() if key not in THOUGHTS}  # as it may be once it is past
        cuts = [self._written([*earlier, last], rendered) or "" for last in (turn, unthought)]
        shared = [os.path.commonprefix([text, cut]) for cut in cuts]  # noqa: RUF071
        end = max(len((cut if cut in cuts else UNFINISHED_TAG.sub("", cut)).rstrip()) for cut in shared)
        return Span(len(prompt), end, end) if len(prompt) < end <= self._next(rendered, i, mark) else None

    def _next(self, rendered: Rendered, i: int, mark: str) -> int:
        """Where the content of the turn after turn `i` begins, or the text ends."""
        turns = rendered.turns
        marked = [*turns[: i + 1], *({**turn, "content": mark} for turn in turns[i + 1 : i + 2]), *turns[i + 2 :]]
        before, found, _ = (self._written(marked, rendered) or "").partition(mark)
        return len(before) if found and rendered.text.startswith(before) else len(rendered.text)

    def _place(self, rendered: Rendered, i: int, before: str, after: str) -> tuple[int, int] | None:
        """Start and end of a turn in the text, given what stands around the mark."""
        text = rendered.text
        if len(before) + len(after) <= len(text) and text.startswith(before) and text.endswith(after):
            return len(before), len(text) - len(after)
        start = len(before)
        if not text.startswith(before):
            shared = len(os.path.commonprefix([text, before]))  # noqa: RUF071
            prompt = self._written(rendered.turns[:i], rendered, prompt=True) if i else None
            begun = prompt is not None and text.startswith(prompt)
            start = len(prompt) if prompt is not None and begun else shared
            if not begun and self._has_others(rendered, i, before[shared:]):
                return None
        rest = text[start:]
        same = len(os.path.commonprefix([rest[::-1], after[::-1]]))  # noqa: RUF071
        if self._has_others(rendered, i, after[: len(after) - same]):
            return None
        return start, len(text) - same

    def _written(self, turns: list[dict[str, Any]], rendered: Rendered, *, prompt: bool = False) -> str | None:
        try:
            return self.chat.write(turns, rendered.keys, prompt=prompt)
        except Exception:  # whatever a template raises
            return None

    def _has_others(self, rendered: Rendered, i: int, text: str) -> bool:
        """Whether what a template writes around turn `i` and does not write twice has another turn's words."""
        others = [turn["content"] for j, turn in enumerate(rendered.turns) if j != i]
        return any(isinstance(content, str) and content.strip() and content.strip() in text for content in others)

    def _stop(self, text: str, end: int, *, at_end: bool) -> int:
        """Where what ends a reply ends, which ends at `end` itself: the template's ending, or the next added token."""
        for ending in (self.endings.last,) if at_end else (self.endings.between, self.endings.last):
            if ending and text.startswith(ending, end):
                return end + len(ending)
        token = first_token(text[end:], self.tokenizer)
        if not self.endings and token.strip() not in special_tokens(self.tokenizer):
            return end  # else it may begin the next turn and ends this one with that, as GLM's <|user|> does
        return end if token.strip() in ("", *self.endings.headers) else end + len(token)


def _tokens_of(span: Span, text: str, offsets: list[tuple[int, int]]) -> Iterator[int]:
    """Indices of the tokens of a span."""
    for i, (first, last) in enumerate(offsets):
        # a token may begin with the blank before the response (" Hello"), not with the prompt's words
        if span.start < last and first < span.stop and (first >= span.start or text[first : span.start].isspace()):
            yield i
