"""Perplexity as pruning papers measure it, and `secateur eval`."""

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from .benchmark import parameter_count
from .config_eval import EvalConfig
from .data import evaluation_tokens
from .documents import check_spec
from .errors import InputError, NumericsError
from .models import (
    autocast,
    check_checkpoint,
    compute_dtype,
    default_device,
    load_config,
    load_model,
    load_tokenizer,
    resolve_model,
)
from .records import environment, format_table, write_json

CHUNK_POSITIONS = 512
"""Positions whose logits are widened to float32 at once."""


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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def perplexity(
    model: nn.Module, token_ids: Tensor, *, seq_len: int, batch_size: int = 2, dtype: torch.dtype
) -> Perplexity:
    """Perplexity over consecutive segments of `seq_len` tokens that do not overlap; the rest is left out.

    In each segment tokens 2 ... `seq_len` are predicted from those before them in the segment.

    Args:
        token_ids: (tokens,) of the joined text.
        batch_size: segments per forward pass; does not change the result beyond rounding.
        dtype: of the computation; bfloat16 and float16 go through autocast.
    Raises:
        InputError: fewer tokens than a segment, or a segment of fewer than 2 tokens or longer than the model's
            context.
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
    device = next(model.parameters()).device
    started, was_training = time.perf_counter(), model.training
    model.eval()
    losses: list[float] = []
    try:
        with torch.inference_mode(), autocast(device.type, dtype):
            for batch in token_ids[: segments * seq_len].view(segments, seq_len).split(batch_size):
                batch = batch.to(device)
                logits = model(input_ids=batch, use_cache=False).logits
                losses += [_segment_nll(row, ids) for row, ids in zip(logits, batch, strict=True)]
    finally:
        model.train(was_training)
    for number, loss in enumerate(losses):
        if not math.isfinite(loss):
            raise NumericsError(f"the loss of segment {number} is {loss}: evaluate with --dtype float32.")
    means = torch.tensor(losses, dtype=torch.float64) / (seq_len - 1)
    mean = float(means.mean())
    return Perplexity(
        perplexity=math.exp(mean) if mean < 700 else math.inf,
        mean_nll=mean,
        stderr_nll=float(means.std() / math.sqrt(segments)) if segments > 1 else math.nan,
        tokens_scored=segments * (seq_len - 1),
        segments=segments,
        seq_len=seq_len,
        dtype=str(dtype).removeprefix("torch."),
        seconds=time.perf_counter() - started,
    )


def _segment_nll(logits: Tensor, ids: Tensor) -> float:
    """Summed negative log-likelihood of ids[1:] (seq_len,) under logits (seq_len, vocabulary)."""
    total = 0.0
    pairs = zip(logits[:-1].split(CHUNK_POSITIONS), ids[1:].split(CHUNK_POSITIONS), strict=True)
    for part, labels in pairs:
        total += float(functional.cross_entropy(part.float(), labels, reduction="sum"))
    return total


def evaluate_models(config: EvalConfig) -> str:
    """`secateur eval`: one model or two on the same text; returns what to print, writes `--output`.

    Each model reads the text with its own tokenizer; perplexities compare only where these agree, so two
    models whose tokens differ are refused.
    """
    if config.output and Path(config.output).exists() and not config.overwrite:
        raise InputError(f"--output {config.output} exists: pass --overwrite to replace it.")
    if len(config.data) != 1:
        raise InputError(f"--data names {len(config.data)} texts: evaluate one at a time.")
    check_spec(config.data[0])
    names = [config.model, *([config.against] if config.against else [])]
    sources = [resolve_model(name) for name in names]
    for source in sources:
        load_config(source, trust_remote_code=config.trust_remote_code)
        check_checkpoint(source)
    tokens = [
        evaluation_tokens(
            config.data[0],
            load_tokenizer(source, trust_remote_code=config.trust_remote_code),
            max_tokens=config.max_tokens,
        )
        for source in sources
    ]
    if len(tokens) == 2 and not torch.equal(tokens[0][0], tokens[1][0]):
        raise InputError(
            f"{config.model} and {config.against} cut the text into different tokens, so their perplexities do not "
            "compare: evaluate them one at a time."
        )
    dtype = compute_dtype(config.dtype)
    figures = {}
    for name, source in zip(names, sources, strict=True):
        model = load_model(source, trust_remote_code=config.trust_remote_code)
        nn.Module.to(model, default_device())
        measured = perplexity(model, tokens[0][0], seq_len=config.seq_len, batch_size=config.batch_size, dtype=dtype)
        figures[name] = {"parameters": parameter_count(model)} | measured.to_dict()
        del model
    info = tokens[0][1]
    if config.output:
        record = {"config": config, "data": info, "models": figures, "environment": environment()}
        write_json(Path(config.output), record)
    return _comparison(figures, info)


def _comparison(figures: dict[str, dict[str, Any]], info: dict[str, Any]) -> str:
    rows = [
        (name, f"{f['parameters']:,}", f"{f['perplexity']:.3f}", f"{f['mean_nll']:.4f} ± {f['stderr_nll']:.4f}")
        for name, f in figures.items()
    ]
    first = next(iter(figures.values()))
    lines = [format_table(rows, header=("model", "parameters", "perplexity", "nats per token"))]
    if len(figures) == 2:
        one, other = figures.values()
        lines.append(f"ratio {one['perplexity'] / other['perplexity']:.3f}")
    lines.append(
        f"{info['data']} ({info['joined']}), {first['tokens_scored']:,} tokens scored of {info['tokens']:,} in "
        f"{first['segments']} segments of {first['seq_len']}, {first['dtype']}"
    )
    return "\n".join(lines)
