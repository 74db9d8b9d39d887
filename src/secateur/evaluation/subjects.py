"""What `secateur eval` measures, and on which text; what makes the figures less than they seem."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ..architecture.stock import window_of
from ..data.overlap import Overlap
from ..data.tokens import left_out_of
from ..models.source import ModelSource


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

    token_ids: tuple[Tensor, ...]
    """(tokens,) of each model; the same tensor where their tokenizers cut the text alike."""
    seq_len: int
    info: dict[str, Any]
    counts: dict[str, int]
    """Tokens of the text by model, without those that its segments begin with."""
    overlaps: list[Overlap]
    unscored: dict[str, int] = field(default_factory=dict)
    """Tokens by model that begin a segment and are not scored, where it is not one."""

    @property
    def cut_alike(self) -> bool:
        return all(torch.equal(ids, self.token_ids[0]) for ids in self.token_ids)


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
