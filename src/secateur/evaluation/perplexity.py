"""Perplexity as pruning papers measure it, and the paired difference of two models."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from ..models.devices import autocast
from ..parallel.distributed import processes, sum_, wire
from ..system.errors import InputError, NumericsError, all_faults
from ..system.launcher import rank
from .figures import LEAST_PAIRS, NOISE

Told = Callable[[int, int], None]
"""Is called with the segments that are done and all of them."""
CHUNK_POSITIONS = 64
"""Positions whose logits are widened to float32 at once (64 x 49,152: 12.6 MB; 512 take a CPU four times as long)."""
GPU_CHUNK_POSITIONS = 512
"""The same on a GPU, which waits for each."""


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-likelihood per token, with the conditions it was measured under."""

    perplexity: float
    mean_nll: float
    stderr_nll: float
    """Standard error of `mean_nll`, from the spread between segments."""
    tokens_scored: int
    segments: int
    seq_len: int
    dtype: str
    seconds: float

    @property
    def stderr(self) -> float:
        """Standard error of the perplexity itself, to first order."""
        return self.perplexity * self.stderr_nll

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"stderr": self.stderr}


def perplexity(
    model: nn.Module,
    token_ids: Tensor,
    *,
    seq_len: int,
    batch_size: int = 2,
    dtype: torch.dtype,
    unscored: int = 1,
    told: Told = lambda done, of: None,
) -> Perplexity:
    """Perplexity over consecutive segments of `seq_len` tokens that do not overlap; the rest is left out.

    In each segment tokens 2 ... `seq_len` are predicted from those before them in the segment, or those behind the
    `unscored` ones that it begins with. Arguments and errors as for `segment_nlls`.
    """
    started = time.perf_counter()
    means = segment_nlls(
        model, token_ids, seq_len=seq_len, batch_size=batch_size, dtype=dtype, unscored=unscored, told=told
    )
    seconds = time.perf_counter() - started
    return summarise(means, seq_len=seq_len, dtype=dtype, seconds=seconds, unscored=unscored)


def summarise(means: Tensor, *, seq_len: int, dtype: torch.dtype, seconds: float, unscored: int = 1) -> Perplexity:
    """Perplexity from the mean loss of each segment, (segments,)."""
    mean, segments = float(means.mean()), len(means)
    return Perplexity(
        perplexity=math.exp(mean) if mean < 700 else math.inf,
        mean_nll=mean,
        stderr_nll=_standard_error(means),
        tokens_scored=segments * (seq_len - unscored),
        segments=segments,
        seq_len=seq_len,
        dtype=str(dtype).removeprefix("torch."),
        seconds=seconds,
    )


def segment_nlls(
    model: nn.Module,
    token_ids: Tensor,
    *,
    seq_len: int,
    batch_size: int = 2,
    dtype: torch.dtype,
    unscored: int = 1,
    spread: bool = False,
    told: Told = lambda done, of: None,
) -> Tensor:
    """Mean negative log-likelihood per token of each segment, (segments,) float64.

    Args:
        token_ids: (tokens,) of the joined text.
        batch_size: segments per forward pass; does not change the result beyond rounding.
        dtype: of the computation; bfloat16 and float16 go through autocast.
        unscored: tokens at the beginning of each segment that are not scored; the first never is.
        spread: over all processes, which must all call this; each gets the whole result, the same as of one process.
        told: of a long text, how far it is.
    Raises:
        InputError: fewer tokens than a segment, a segment of fewer than 2 tokens or longer than the model's context,
            tokens that the model has no embedding of.
        NumericsError: a loss is not finite; names the segment.
    """
    if seq_len < 2:
        raise InputError(f"--seq-len is {seq_len}: a segment needs a token to predict, so at least 2.")
    segments = len(token_ids) // seq_len
    if not segments:
        raise InputError(f"{len(token_ids)} tokens are fewer than one segment of {seq_len}: lower --seq-len.")
    longest = getattr(cast(PreTrainedModel, model).config, "max_position_embeddings", None)
    if longest is not None and seq_len > longest:
        raise InputError(f"--seq-len {seq_len} is longer than the model's {longest} positions: use at most {longest}.")
    all_faults(token_faults(token_ids[: segments * seq_len], _embeddings(model), "the model"))
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    batches = token_ids[: segments * seq_len].view(segments, seq_len).split(batch_size)
    losses = [torch.zeros(len(batch), dtype=torch.float64) for batch in batches]
    mine, of = (rank(), processes()) if spread else (0, 1)
    try:
        with torch.inference_mode(), autocast(device.type, dtype):
            told(0, segments)
            for number in range(mine, len(batches), of):
                batch = batches[number].to(device)
                logits = model(input_ids=batch, use_cache=False).logits
                found = [_segment_nll(row, ids, unscored) for row, ids in zip(logits, batch, strict=True)]
                losses[number] = torch.tensor(found, dtype=torch.float64)
                told(min((number + of) * batch_size, segments), segments)
    finally:
        model.train(was_training)
    total = torch.cat(losses)
    if spread and of > 1:
        total = total.to(wire())
        sum_(total)  # each entry is one process's figure and zeros
        total = total.cpu()
    for number, loss in enumerate(total.tolist()):
        if not math.isfinite(loss):
            raise NumericsError(f"the loss of segment {number} is {loss}: evaluate with --dtype float32.")
    return total / (seq_len - unscored)


def token_faults(token_ids: Tensor, embeddings: int | None, name: str) -> list[str]:
    """What to say of tokens that a model has no embedding of: its tokenizer is another model's."""
    most = int(token_ids.max()) if len(token_ids) else -1
    if embeddings is None or most < embeddings:
        return []
    return [
        f"the tokenizer gives token {most}, and {name} has embeddings of {embeddings:,} tokens: it is another model's "
        "tokenizer, or tokens were added to it and not to the model."
    ]


def _embeddings(model: nn.Module) -> int | None:
    table = cast(PreTrainedModel, model).get_input_embeddings()
    return getattr(table, "num_embeddings", None)


@dataclass(frozen=True)
class Paired:
    """How much worse one model is than another on the same segments.

    The segments' own difficulty cancels, so the standard error is much smaller than that of either mean.
    Segments are taken as independent of each other.
    """

    mean_difference_nll: float
    """Nats per token; above 0: the first model is worse."""
    stderr_difference_nll: float
    segments: int

    @property
    def within_noise(self) -> bool | None:
        """Whether the difference is under two standard errors; None where the segments are too few to say."""
        if self.segments < LEAST_PAIRS:
            return None
        return abs(self.mean_difference_nll) <= NOISE * self.stderr_difference_nll

    @property
    def verdict(self) -> str:
        """One clause for people."""
        difference = f"{self.mean_difference_nll:+.4f} nats per token"
        if self.within_noise is None:
            return f"{difference}; {self.segments} segments are too few to tell it from noise"
        place = "within" if self.within_noise else "outside"
        return f"{difference} ± {self.stderr_difference_nll:.4f} (paired, one standard error): {place} the noise"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"within_noise": self.within_noise, "verdict": self.verdict}


def paired(first: Tensor, second: Tensor) -> Paired:
    """`first` less `second`, mean losses of the same segments, (segments,) each."""
    assert first.shape == second.shape
    difference = first - second
    return Paired(float(difference.mean()), _standard_error(difference), len(difference))


def _standard_error(values: Tensor) -> float:
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan


def _segment_nll(logits: Tensor, ids: Tensor, unscored: int) -> float:
    """Summed negative log-likelihood of ids[unscored:] (seq_len,) under logits (seq_len, vocabulary)."""
    total = 0.0
    chunk = CHUNK_POSITIONS if logits.device.type == "cpu" else GPU_CHUNK_POSITIONS
    for part, labels in zip(logits[unscored - 1 : -1].split(chunk), ids[unscored:].split(chunk), strict=True):
        total += float(functional.cross_entropy(part.float(), labels, reduction="sum"))
    return total
