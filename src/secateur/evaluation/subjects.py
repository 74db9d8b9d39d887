"""What `secateur eval` measures, and on which text; what makes the figures less than they seem."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ..architecture.stock import window_of
from ..config.evaluation import EvalConfig
from ..data.documents import read_documents
from ..data.overlap import Overlap, overlap_with_training
from ..data.pairs import Pairs, evaluation_pairs, form_of
from ..data.tokens import left_out_of
from ..models.source import ModelSource
from ..system.errors import InputError, all_faults
from .perplexity import token_faults


@dataclass(frozen=True)
class Subject:
    """A model to evaluate, not yet loaded."""

    name: str
    source: ModelSource
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True)
class Text:
    """What perplexity is measured on."""

    token_ids: tuple[Tensor | Pairs, ...]
    """(tokens,) of each model, or its pairs; the same where their tokenizers cut the text alike."""
    seq_len: int
    info: dict[str, Any]
    counts: dict[str, int]
    """Tokens of the text by model, without those that its segments begin with."""
    overlaps: list[Overlap]
    unscored: dict[str, int] = field(default_factory=dict)
    """Tokens by model that begin a segment and are not scored, where it is not one."""

    @property
    def cut_alike(self) -> bool:
        return all(_same(ids, self.token_ids[0]) for ids in self.token_ids)


def check_pairs(config: EvalConfig, name: str, model_type: str) -> None:
    """Refuse what an encoder-decoder is not measured on.

    Raises:
        InputError: names the option and the reason.
    """
    reasons = {
        f"--preset {config.preset}": config.preset and "a running text has no targets",
        "--tasks": config.tasks and "the tasks' prompts are those of causal models",
        "--answers": config.answers and "its rows are asked as those of causal models are",
        f"--bos {config.bos}": config.bos != "auto" and "a source begins as the tokenizer has it",
    }
    all_faults([
        f"{what}: {name} is an encoder-decoder ({model_type}), and {why}: give --data with pairs of texts."
        for what, why in reasons.items()
        if why
    ])  # fmt: skip


def pairs_text(config: EvalConfig, subjects: list[Subject], seq_len: int) -> Text:
    """The evaluation data as each encoder-decoder's pairs.

    Args:
        seq_len: most tokens of a source, and of a target.
    Raises:
        InputError: one of two models is no encoder-decoder; more positions or tokens than a model has.
    """
    if causal := [subject.name for subject in subjects if not subject.config.is_encoder_decoder]:
        raise InputError(
            f"{causal[0]} is a causal model and the other an encoder-decoder, which read the data each in its way: "
            "evaluate them apart."
        )
    found = [
        evaluation_pairs(
            config.data[0], s.tokenizer, form_of(s.config, s.tokenizer, seq_len, seq_len), max_tokens=config.max_tokens
        )
        for s in subjects
    ]
    faults = []
    for subject, (pairs, _) in zip(subjects, found, strict=True):
        faults += token_faults(torch.tensor([pairs.largest_token]), subject.config.vocab_size, subject.name)
        longest = getattr(subject.config, "max_position_embeddings", None)
        if longest is not None and seq_len > longest:
            faults.append(f"--seq-len {seq_len} is more than the {longest} positions of {subject.name}: lower it.")
    all_faults(faults)
    raw = "\n\n".join(document.raw for document in read_documents(config.data[0], evaluation=True))
    overlaps = [overlap_with_training(raw, subject.name) for subject in subjects]
    counts = {s.name: pairs.n_label_tokens for s, (pairs, _) in zip(subjects, found, strict=True)}
    info = found[0][1] | {"bytes": len(raw.encode("utf-8", "replace"))}
    pairs_of_each = tuple(pairs for pairs, _ in found)
    return Text(pairs_of_each, seq_len, info, counts, [overlap for overlap in overlaps if overlap])


def _same(one: Tensor | Pairs, other: Tensor | Pairs) -> bool:
    if isinstance(one, Pairs) or isinstance(other, Pairs):
        return one == other
    return torch.equal(one, other)


def find_warnings(subjects: list[Subject], text: Text | None) -> list[str]:
    """What makes the figures less than they seem, as far as models and text tell."""
    found = [overlap.warning for overlap in text.overlaps if overlap.warning] if text else []
    found += left_out_of(text.info) if text else []
    for subject in subjects:
        if text is not None and (window := window_of(subject.config)) is not None and window < text.seq_len:
            found.append(
                f"{subject.name} sees at most the last {window} tokens (sliding window), fewer than the segments' "
                f"{text.seq_len}."
            )
    if len({_vocabulary(subject.tokenizer) for subject in subjects}) > 1:
        names = " and ".join(subject.name for subject in subjects)
        found.append(f"{names} have different tokenizers{_consequence(text)}")
    return found


def _consequence(text: Text | None) -> str:
    if text is None:
        return ": each reads the tasks' prompts in tokens of its own."
    if text.cut_alike:
        return ", though they cut this text alike."
    counts = " and ".join(f"{count:,}" for count in text.counts.values())
    return (
        f" and cut the text into {counts} tokens: their perplexities do not compare. Nats per byte do where they are "
        "given, but for the context of a segment, which is not as long for both."
    )


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> frozenset[tuple[str, int]]:
    return frozenset(tokenizer.get_vocab().items())
