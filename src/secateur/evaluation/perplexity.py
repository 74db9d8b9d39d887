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

from ..data.pairs import Pairs
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
    pairs: bool = False
    """Whether the segments are targets, each given its source; `seq_len` is then what sources are cut to."""

    @property
    def stderr(self) -> float:
        """Standard error of the perplexity itself, to first order."""
        return self.perplexity * self.stderr_nll

    def to_dict(self) -> dict[str, Any]:
        found = asdict(self) | {"stderr": self.stderr}
        return found if self.pairs else {key: value for key, value in found.items() if key != "pairs"}


def perplexity(
    model: nn.Module,
    token_ids: Tensor | Pairs,
    *,
    seq_len: int,
    batch_size: int = 2,
    dtype: torch.dtype,
    unscored: int = 1,
    told: Told = lambda done, of: None,
) -> Perplexity:
    """Perplexity over consecutive segments of `seq_len` tokens that do not overlap; the rest is left out. Of pairs,
    that of the targets, each given its source.

    In each segment tokens 2 ... `seq_len` are predicted from those before them in the segment, or those behind the
    `unscored` ones that it begins with. Arguments and errors as for `segment_nlls`.
    """
    started = time.perf_counter()
    if isinstance(token_ids, Pairs):
        means = pair_nlls(model, token_ids, batch_size=batch_size, dtype=dtype, told=told)
        return summarise(
            means, seq_len=seq_len, dtype=dtype, seconds=time.perf_counter() - started, weights=weights_of(token_ids)
        )
    means = segment_nlls(
        model, token_ids, seq_len=seq_len, batch_size=batch_size, dtype=dtype, unscored=unscored, told=told
    )
    seconds = time.perf_counter() - started
    return summarise(means, seq_len=seq_len, dtype=dtype, seconds=seconds, unscored=unscored)


def summarise(
    means: Tensor, *, seq_len: int, dtype: torch.dtype, seconds: float, unscored: int = 1, weights: Tensor | None = None
) -> Perplexity:
    """Perplexity from the mean loss of each segment, (segments,).

    Args:
        weights: (segments,) tokens of each, where they are targets of pairs: every token counts alike.
    """
    mean, segments = _mean(means, weights), len(means)
    return Perplexity(
        perplexity=math.exp(mean) if mean < 700 else math.inf,
        mean_nll=mean,
        stderr_nll=_standard_error(means, weights),
        tokens_scored=segments * (seq_len - unscored) if weights is None else int(weights.sum()),
        segments=segments,
        seq_len=seq_len,
        dtype=str(dtype).removeprefix("torch."),
        seconds=seconds,
        pairs=weights is not None,
    )


def weights_of(pairs: Pairs) -> Tensor:
    """(pairs,) tokens of each target."""
    return torch.tensor(pairs.target_tokens, dtype=torch.float64)


def pair_nlls(
    model: nn.Module,
    pairs: Pairs,
    *,
    batch_size: int = 2,
    dtype: torch.dtype,
    spread: bool = False,
    told: Told = lambda done, of: None,
) -> Tensor:
    """Mean negative log-likelihood per token of each target, given its source, (pairs,) float64.

    Arguments and errors as for `segment_nlls`.
    """
    device, counts = next(model.parameters()).device, weights_of(pairs)

    def of_batch(rows: Tensor) -> list[float]:
        inputs, labels = pairs.batch(rows.tolist(), device)
        logits = model(**inputs, use_cache=False).logits
        ends = [count + 1 for count in counts[rows].int().tolist()]
        return [_segment_nll(row[:end], ids[:end], 1) for row, ids, end in zip(logits, labels, ends, strict=True)]

    return _each(model, torch.arange(len(pairs)), of_batch, batch_size, dtype, spread, told) / counts


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

    def of_batch(batch: Tensor) -> list[float]:
        batch = batch.to(device)
        logits = model(input_ids=batch, use_cache=False).logits
        return [_segment_nll(row, ids, unscored) for row, ids in zip(logits, batch, strict=True)]

    rows = token_ids[: segments * seq_len].view(segments, seq_len)
    return _each(model, rows, of_batch, batch_size, dtype, spread, told) / (seq_len - unscored)


def _each(
    model: nn.Module,
    rows: Tensor,
    of_batch: Callable[[Tensor], list[float]],
    batch_size: int,
    dtype: torch.dtype,
    spread: bool,
    told: Told,
) -> Tensor:
    """(rows,) summed losses, from those of each batch of rows."""
    was_training = model.training
    model.eval()
    batches = rows.split(batch_size)
    losses = [torch.zeros(len(batch), dtype=torch.float64) for batch in batches]
    mine, of = (rank(), processes()) if spread else (0, 1)
    try:
        with torch.inference_mode(), autocast(next(model.parameters()).device.type, dtype):
            told(0, len(rows))
            for number in range(mine, len(batches), of):
                losses[number] = torch.tensor(of_batch(batches[number]), dtype=torch.float64)
                told(min((number + of) * batch_size, len(rows)), len(rows))
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
    return total


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


def paired(first: Tensor, second: Tensor, weights: Tensor | None = None) -> Paired:
    """`first` less `second`, mean losses of the same segments, (segments,) each.

    Args:
        weights: as of `summarise`.
    """
    assert first.shape == second.shape
    difference = first - second
    return Paired(_mean(difference, weights), _standard_error(difference, weights), len(difference))


def _mean(values: Tensor, weights: Tensor | None) -> float:
    return float(values.mean() if weights is None else (values * weights).sum() / weights.sum())


def _standard_error(values: Tensor, weights: Tensor | None = None) -> float:
    """Of the mean; of a weighted one as of a ratio of two sums, to first order (equal weights: the same)."""
    count = len(values)
    if count < 2:
        return math.nan
    if weights is None:
        return float(values.std() / math.sqrt(count))
    off = weights * (values - _mean(values, weights))
    return float((off.square().sum() * count / (count - 1)).sqrt() / weights.sum())


def _segment_nll(logits: Tensor, ids: Tensor, unscored: int) -> float:
    """Summed negative log-likelihood of ids[unscored:] (seq_len,) under logits (seq_len, vocabulary)."""
    total = 0.0
    chunk = CHUNK_POSITIONS if logits.device.type == "cpu" else GPU_CHUNK_POSITIONS
    for part, labels in zip(logits[unscored - 1 : -1].split(chunk), ids[unscored:].split(chunk), strict=True):
        total += float(functional.cross_entropy(part.float(), labels, reduction="sum"))
    return total
