"""Rows of a source and a target as an encoder-decoder reads them: no packing, batches padded on the right."""

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..system.errors import InputError
from ..system.progress import phase
from .documents import read_data, with_split
from .forms.document import Document
from .forms.tally import CUT, DROPPED, UNUSED, Tally
from .packing import IGNORED

if TYPE_CHECKING:
    import torch

EXPECTED = (
    "an encoder-decoder learns a target from a source: give rows of two texts, such as `source` and `target`, `prompt` "
    "and `completion`, or `question` and `answer`."
)


@dataclass(frozen=True)
class PairForm:
    """How a pair becomes tokens."""

    source_len: int
    """Most tokens of a source, its end included."""
    target_len: int
    """Most tokens of a target, its end included."""
    start: int
    """What the decoder begins with."""
    pad: int


@dataclass(frozen=True)
class Pairs:
    """Sources and targets; a torch map-style data set of {"input_ids", "decoder_input_ids"}, each as long as it is.

    `decoder_input_ids` begin with the decoder's start token and have the target's end, which is read in vain: so the
    decoder is a causal model of them, and its loss, shifts included, is that of every other model here.
    """

    form: PairForm
    input_ids: list[list[int]]
    decoder_input_ids: list[list[int]] = field(repr=False)
    left_out: Tally = field(default_factory=Tally, repr=False)
    enders: list[int] = field(default_factory=list, repr=False)
    """None: a target ends with the end-of-sequence token."""
    n_dropped_tokens: int = 0

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {"input_ids": self.input_ids[index], "decoder_input_ids": self.decoder_input_ids[index]}

    @property
    def seq_len(self) -> int:
        return self.form.source_len

    @property
    def n_documents(self) -> int:
        return len(self)

    @property
    def n_tokens(self) -> int:
        """Of sources and targets."""
        return sum(map(len, self.input_ids)) + self.n_label_tokens

    @property
    def n_label_tokens(self) -> int:
        return sum(self.target_tokens)

    @property
    def target_tokens(self) -> list[int]:
        """Of each pair, its end included."""
        return [len(ids) - 1 for ids in self.decoder_input_ids]

    @property
    def tokens_a_row(self) -> float:
        """Of a source and its target, on average."""
        return self.n_tokens / len(self)

    @property
    def largest_token(self) -> int:
        return max(max(ids) for ids in (*self.input_ids, *self.decoder_input_ids))

    def first(self, tokens: int) -> "Pairs":
        """As many pairs, one at least, as have so many tokens of targets at most."""
        total, count = 0, 0
        for more in self.target_tokens:
            total, count = total + more, count + (total + more <= tokens)
        count = max(1, count)
        return Pairs(self.form, self.input_ids[:count], self.decoder_input_ids[:count], self.left_out)

    def collate(self, rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, "torch.Tensor"]:
        """Rows as one batch, padded on the right to the longest, with masks and labels: (rows, tokens) each.

        The first label is that of the start token, which nothing predicts.
        """
        import torch

        found: dict[str, torch.Tensor] = {}
        for prefix in ("", "decoder_"):
            ids = [list(row[f"{prefix}input_ids"]) for row in rows]
            longest = max(map(len, ids))
            found[f"{prefix}input_ids"] = torch.tensor([row + [self.form.pad] * (longest - len(row)) for row in ids])
            mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
            found[f"{prefix}attention_mask"] = mask
        labels = found["decoder_input_ids"].masked_fill(mask == 0, IGNORED)
        labels[:, 0] = IGNORED
        return found | {"labels": labels}

    def batch(self, rows: Iterable[Any], device: Any = None) -> tuple[dict[str, "torch.Tensor"], "torch.Tensor"]:
        """What the model is given of these rows, and their labels."""
        columns = {name: column.to(device) for name, column in self.collate([self[int(row)] for row in rows]).items()}
        return columns, columns.pop("labels")


def form_of(model_config: Any, tokenizer: Any, source_len: int, target_len: int) -> PairForm:
    """How pairs become tokens of an encoder-decoder.

    Raises:
        InputError: its configuration does not say what the decoder begins with.
    """
    start = getattr(model_config, "decoder_start_token_id", None)
    if start is None:
        raise InputError(
            f"the {model_config.model_type}'s config.json has no decoder_start_token_id, and an encoder-decoder's "
            "target begins with that token: add it."
        )
    pad = model_config.pad_token_id if model_config.pad_token_id is not None else tokenizer.pad_token_id
    return PairForm(source_len, target_len, int(start), int(pad or 0))


def training_pairs(specs: Sequence[str], tokenizer: Any, form: PairForm, *, seed: int = 0) -> Pairs:
    """The data's pairs in an order fixed by `seed`.

    A source is what the tokenizer makes of it; a target ends with the end-of-sequence token. What is longer than
    `form` says is cut: a source keeps its end, a target loses it.

    Raises:
        InputError: plain text, conversations of several turns, or nothing that can be trained on.
    """
    read = [read_data(spec) for spec in specs]
    left_out, documents = Tally().merge(t for _, t in read), [d for found, _ in read for d in found]
    random.Random(seed).shuffle(documents)
    return _pairs(documents, tokenizer, form, left_out, " ".join(specs))


@phase("reading and tokenising the evaluation data")
def evaluation_pairs(
    spec: str, tokenizer: Any, form: PairForm, *, max_tokens: int | None = None
) -> tuple[Pairs, dict[str, Any]]:
    """The pairs of held-out data in the file's order, and a record of what they are.

    Args:
        max_tokens: of targets; the first pairs that have no more.
    """
    documents, left_out = read_data(spec, evaluation=True)
    pairs = _pairs(documents, tokenizer, form, left_out, spec)
    pairs = pairs if max_tokens is None else pairs.first(max_tokens)
    text = "".join(document.identity for document in documents)
    info = {
        "data": with_split(spec, evaluation=True),
        "joined": f"{len(pairs)} pairs of a source and a target",
        "pairs": len(pairs),
        "characters": len(text),
        "tokens": pairs.n_label_tokens,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    if left_out.counts:
        info["left_out"] = left_out.record()
    return pairs, info


def _pairs(documents: Sequence[Document], tokenizer: Any, form: PairForm, left_out: Tally, name: str) -> Pairs:
    sources, targets = [], []
    for document in documents:
        source, target = source_and_target(document, left_out)
        if not source.strip() or not target.strip():
            left_out.add(DROPPED, "an empty source or target", document.origin)
            continue
        ids, wanted = source_ids(tokenizer, source), target_ids(tokenizer, target)
        if len(ids) > form.source_len:
            ids = [*ids[: form.source_len - 1], ids[-1]]
            left_out.add(CUT, f"a source, to {form.source_len} tokens", document.origin)
        if len(wanted) > form.target_len:
            wanted = wanted[: form.target_len]
            left_out.add(CUT, f"a target, to {form.target_len} tokens", document.origin)
        sources.append(ids)
        targets.append([form.start, *wanted])
    if not sources:
        raise InputError(f"data {name} has no pair of a source and a target: {EXPECTED}")
    return Pairs(form, sources, targets, left_out)


def source_and_target(document: Document, left_out: Tally) -> tuple[str, str]:
    """The two texts of a row: a prompt and its completion, or a question (behind its system turn) and its reply.

    Raises:
        InputError: the row is one text, or a conversation of several turns.
    """
    if document.kind == "completion":
        return document.text[: document.reply_from], document.text[document.reply_from :]
    if document.kind == "text":
        raise InputError(f"{document.origin} is plain text, and {EXPECTED}")
    roles = [role for role, _ in document.messages]
    if roles not in (["user", "assistant"], ["system", "user", "assistant"]):
        raise InputError(f"{document.origin} is a conversation of {len(roles)} turns, and {EXPECTED}")
    if document.template_keys or any(document.turn_keys):
        left_out.add(UNUSED, "what only a chat template writes, such as `tools`", document.origin)
    return "\n\n".join(content for _, content in document.messages[:-1]), document.messages[-1][1]


def source_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a source: all that the tokenizer puts around it belongs to it."""
    return list(tokenizer(text, verbose=False)["input_ids"])


def target_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a target, which ends with the end-of-sequence token where the tokenizer has one."""
    ids, end = list(tokenizer(text_target=text, verbose=False)["input_ids"]), tokenizer.eos_token_id
    return ids if end is None or ids[-1:] == [end] else [*ids, end]
