"""Documents to token blocks for training, and to one run of tokens for evaluation."""

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..system.errors import InputError
from ..system.progress import phase
from .chat import Chat, TemplateError
from .documents import read_data, with_split
from .encoding import around, encode, start_of
from .endings import ending_ids
from .forms.document import Document
from .forms.system import with_system
from .forms.tally import DROPPED, UNLABELLED, Tally, sentences
from .labels import IGNORED, NOT_FOUND, Labeller
from .packing import packed, segmented
from .pairs import Pairs

if TYPE_CHECKING:
    import torch

REFUSED = "refused by the tokenizer's chat template"


@dataclass(frozen=True)
class Blocks:
    """Packed training sequences; a torch map-style data set of {"input_ids", "labels"}, each (seq_len,).

    With documents kept apart also "position_ids", which begin at 0 in each document of a block.
    """

    seq_len: int
    input_ids: list[list[int]]
    labels: list[list[int]] = field(repr=False)
    n_documents: int
    n_tokens: int  # in the blocks
    n_label_tokens: int  # of these, with a label
    n_dropped_tokens: int  # the remainder, and blocks without a label
    position_ids: list[list[int]] | None = field(default=None, repr=False)
    left_out: Tally = field(default_factory=Tally, repr=False)
    """Rows, turns and keys of the data that are not in the blocks, or have no label."""
    enders: list[int] = field(default_factory=list, repr=False)
    """Tokens that the chat template ends a reply with, if there is one in the data (`endings.ending_ids`)."""

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def tokens_a_row(self) -> float:
        return self.seq_len

    @property
    def largest_token(self) -> int:
        return max(map(max, self.input_ids))

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        row = {"input_ids": self.input_ids[index], "labels": self.labels[index]}
        return row if self.position_ids is None else row | {"position_ids": self.position_ids[index]}

    def batch(self, rows: Iterable[Any], device: Any = None) -> tuple[dict[str, "torch.Tensor"], "torch.Tensor"]:
        """What the model is given of these rows, and their labels; each (rows, seq_len)."""
        import torch

        blocks = [self[int(row)] for row in rows]
        columns = {key: torch.tensor([block[key] for block in blocks], device=device) for key in blocks[0]}
        return columns, columns.pop("labels")


def training_blocks(
    specs: Sequence[str],
    tokenizer: Any,
    *,
    seq_len: int,
    response_only: bool = False,
    packing: str = "joined",
    seed: int = 0,
    bos: str = "auto",
    system: str | None = None,
) -> Blocks:
    """Documents in an order fixed by `seed`, tokenised, one after the other, cut into blocks of `seq_len` tokens.

    A text ends with the end-of-sequence token; a conversation goes through the chat template (without one:
    an Alpaca-like prompt). `response_only`: labels on the assistant's words and the token that ends them.
    `packing`: `joined` makes one text of them; `separate` begins positions anew in each document, which transformers
    takes for the end of what attention sees, and gives its first token no label. `bos`: what each block begins with
    (`encoding.start_of`), without a label where it is put there. `system`: a prompt before each row (`with_system`).

    Raises:
        InputError: `response_only` with plain text, a template that it cannot follow, fewer tokens than one block.
    """
    documents, left_out = _read(specs, system)
    random.Random(seed).shuffle(documents)
    start, bare = start_of(tokenizer, bos), around(tokenizer)[0] if bos == "never" else []
    ids: list[int] = []
    labels: list[int] = []
    starts: list[int] = []  # of each token's document
    n_documents = 0
    for new_ids, new_labels in _tokenised(documents, Labeller(tokenizer, response_only, left_out)):
        n_documents += 1
        if bare and new_ids[: len(bare)] == bare:
            new_ids, new_labels = new_ids[len(bare) :], new_labels[len(bare) :]
        if packing == "separate":
            new_labels = [IGNORED, *new_labels[1:]]
            starts += [len(ids)] * len(new_ids)
        ids += new_ids
        labels += new_labels
    whole = [piece for piece in packed(ids, labels, starts, start, seq_len) if len(piece.ids) == seq_len]
    if not whole:
        raise InputError(
            f"the data has {len(ids)} tokens in {n_documents} documents and one sequence takes "
            f"--seq-len {seq_len}: give more data or shorter sequences."
        )
    # the first label of a block is never predicted
    kept = [piece for piece in whole if any(label != IGNORED for label in piece.labels[1:])]
    if not kept:
        raise _no_response(left_out)
    return Blocks(
        seq_len=seq_len,
        input_ids=[piece.ids for piece in kept],
        labels=[piece.labels for piece in kept],
        n_documents=n_documents,
        n_tokens=len(kept) * seq_len,
        n_label_tokens=sum(label != IGNORED for piece in kept for label in piece.labels),
        n_dropped_tokens=len(ids) - sum(piece.n_tokens for piece in kept),
        position_ids=[piece.positions for piece in kept] if starts else None,
        left_out=left_out,
        enders=ending_ids(tokenizer) * any(d.kind == "chat" for d in documents),
    )


def _read(specs: Sequence[str], system: str | None) -> tuple[list[Document], Tally]:
    read = [read_data(spec) for spec in specs]
    documents = [document for found, _ in read for document in found if document.raw.strip()]
    return with_system(documents, system) if system else documents, Tally().merge(tally for _, tally in read)


def _tokenised(documents: Sequence[Document], labeller: Labeller) -> Iterator[tuple[list[int], list[int]]]:
    """Token ids and labels of each document; those that the chat template refuses are counted, unless it is all.

    Raises:
        InputError: none can be used.
    """
    refused: InputError | None = None
    used = 0
    for document in documents:
        try:
            found = labeller.tokenise(document)
        except TemplateError as error:
            refused = refused or error
            labeller.tally.add(DROPPED, REFUSED, document.origin)
            continue
        used += 1
        yield found
    if refused and not used:
        raise refused


def _no_response(left_out: Tally) -> InputError:
    places = left_out.first.get((UNLABELLED, NOT_FOUND))
    if places is None:
        return InputError("no sequence has a response in it: check the roles, or leave out --response-only.")
    return InputError(
        f"{places}: --response-only cannot follow the tokenizer's chat template, which does not write this reply as it "
        "is in the data: leave out the option, or use another template."
    )


def require_batches(blocks: Blocks | Pairs, batch_size: int) -> None:
    """Refuse data that does not fill one batch of `batch_size` sequences."""
    if len(blocks) < batch_size and isinstance(blocks, Pairs):
        raise InputError(
            f"the data gives {len(blocks)} pairs, fewer than one batch: --batch-size is {batch_size}. Give more data "
            "or a smaller --batch-size."
        )
    if len(blocks) < batch_size:
        raise InputError(
            f"the data gives {len(blocks)} sequences of {blocks.seq_len} tokens, fewer tokens than one batch: "
            f"--batch-size is {batch_size}. Give more data, a smaller --batch-size or a shorter --seq-len."
        )


@phase("reading and tokenising the evaluation data")
def evaluation_tokens(
    spec: str, tokenizer: Any, *, max_tokens: int | None = None, seq_len: int | None = None, bos: str = "auto"
) -> tuple["torch.Tensor", dict[str, Any]]:
    """The text of `spec` as one run of tokens, (n,) int64, at most `max_tokens`, and a record of what it is.

    A file's text goes in as it is, rows are joined by a blank line (WikiText's usual form), no end-of-sequence
    tokens between; conversations go through the chat template. `sha256` and `characters` are of the whole text.
    A name without a split means the test (held-out) split, and the record says so.

    Args:
        seq_len: of the segments that it will be cut into, each of which begins as `bos` says (`segmented`). None: the
            run begins as the tokenizer has it, once.
    Raises:
        InputError: as `read_documents`; fewer than two tokens.
    """
    import torch

    documents, left_out = read_data(spec, evaluation=True)
    chat = any(d.kind == "chat" for d in documents)
    parts = _texts(documents, Chat(tokenizer), left_out)
    text = "\n\n".join(parts)
    ids = first_tokens(text, tokenizer, max_tokens, add_special_tokens=not chat)
    if len(ids) < 2:
        raise InputError(f"evaluation data {spec} has {len(ids)} tokens: two are needed at least.")
    joined = "one text" if len(parts) == 1 else f"{len(parts)} rows joined by a blank line"
    info = {
        "data": with_split(spec, evaluation=True),
        "joined": joined + (", through the chat template" if chat else ""),
        "characters": len(text),
        "tokens": len(ids),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    left_out.counts.pop(UNLABELLED, None)  # every token counts here
    if left_out.counts:
        info["left_out"] = left_out.record()
    if seq_len is not None:
        ids, info["begins"], unscored = segmented(ids, tokenizer, seq_len, bos)
        if unscored > 1:
            info["unscored"] = unscored
    return torch.tensor(ids, dtype=torch.long), info


def left_out_of(info: Mapping[str, Any]) -> list[str]:
    """What was left out of an evaluation text, from its record: a sentence for each kind."""
    return sentences(info.get("left_out", {}), f"evaluation data {info.get('data')}", {})


def _texts(documents: Sequence[Document], chat: Chat, left_out: Tally) -> list[str]:
    """Each document as one text; conversations that the template refuses are counted, unless it is all.

    Raises:
        InputError: none can be used.
    """
    texts, refused = [], None
    for document in documents:
        if document.kind != "chat":
            texts.append(document.text)
            continue
        try:
            rendered = chat.render(document)
        except TemplateError as error:
            refused = refused or error
            left_out.add(DROPPED, REFUSED, document.origin)
            continue
        chat.count_left_out(document, rendered, left_out)
        texts.append(rendered.text)
    if refused and not texts:
        raise refused
    return texts


def first_tokens(text: str, tokenizer: Any, max_tokens: int | None, *, add_special_tokens: bool) -> list[int]:
    """The first `max_tokens` tokens of `text`, without tokenising much more of it than that takes."""
    length = len(text) if max_tokens is None else 16 * max_tokens
    while True:
        ids = encode(tokenizer, text[:length], special=add_special_tokens)
        # a cut changes tokens near it only: with a margin, the first ones are those of the whole text
        if length >= len(text) or (max_tokens is not None and len(ids) >= max_tokens + 256):
            return ids[:max_tokens]
        length *= 2
