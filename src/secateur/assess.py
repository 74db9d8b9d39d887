"""`secateur eval`: one model or two on a text and on tasks, with what to know about the figures."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from .benchmark import parameter_count
from .config_eval import EvalConfig
from .data import evaluation_tokens, first_tokens
from .documents import check_spec, read_documents
from .errors import InputError, all_faults
from .evaluate import Paired, paired, segment_nlls, summarise
from .models import (
    ModelSource,
    check_checkpoint,
    compute_dtype,
    default_device,
    load_config,
    load_model,
    load_tokenizer,
    resolve_model,
)
from .overlap import Overlap, overlap_with_training
from .presets import PRESETS, preset_text
from .records import environment, format_table, write_json

DEFAULT_SEQ_LEN = 1024


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

    token_ids: Tensor
    """(tokens,), the same for all models."""
    seq_len: int
    info: dict[str, Any]
    overlaps: list[Overlap]


def evaluate_models(config: EvalConfig) -> str:
    """One model or two on the same text and tasks; returns what to print, writes `--output`.

    Raises:
        InputError: before any weights are loaded, for all that can be known then.
    """
    if config.output and Path(config.output).exists() and not config.overwrite:
        raise InputError(f"--output {config.output} exists: pass --overwrite to replace it.")
    if config.data:
        check_spec(config.data[0])
    subjects = [_open(name, config) for name in (config.model, *([config.against] if config.against else []))]
    text = _text(config, subjects)
    figures: dict[str, dict[str, Any]] = {}
    losses: list[Tensor] = []
    dtype = compute_dtype(config.dtype)
    for subject in subjects:
        model = load_model(subject.source, trust_remote_code=config.trust_remote_code)
        nn.Module.to(model, default_device())
        figures[subject.name] = {"parameters": parameter_count(model)}
        started = time.perf_counter()
        losses.append(
            segment_nlls(model, text.token_ids, seq_len=text.seq_len, batch_size=config.batch_size, dtype=dtype)
        )
        seconds = time.perf_counter() - started
        figures[subject.name] |= summarise(losses[-1], seq_len=text.seq_len, dtype=dtype, seconds=seconds).to_dict()
        del model
    difference = paired(*losses) if len(losses) == 2 else None
    warnings = find_warnings(subjects, text)
    if config.output:
        record = {
            "config": config,
            "data": text.info,
            "models": figures,
            "paired": difference.to_dict() if difference else None,
            "overlap": [overlap.to_dict() for overlap in text.overlaps],
            "warnings": warnings,
            "environment": environment(),
        }
        write_json(Path(config.output), record)
    return "\n".join([_comparison(figures, text.info, difference), *(f"warning: {line}" for line in warnings)])


def find_warnings(subjects: list[Subject], text: Text) -> list[str]:
    """What makes the figures less than they seem."""
    found = [overlap.warning for overlap in text.overlaps if overlap.warning]
    for subject in subjects:
        window = getattr(subject.config, "sliding_window", None)
        if window is not None and window < text.seq_len:
            found.append(
                f"{subject.name} sees at most the last {window} tokens (sliding window), fewer than the segments' "
                f"{text.seq_len}."
            )
    if len({_vocabulary(subject.tokenizer) for subject in subjects}) > 1:
        names = " and ".join(subject.name for subject in subjects)
        found.append(f"{names} have different tokenizers, though they cut this text alike.")
    return found


def _open(name: str, config: EvalConfig) -> Subject:
    source = resolve_model(name)
    model_config = load_config(source, trust_remote_code=config.trust_remote_code)
    check_checkpoint(source)
    return Subject(name, source, model_config, load_tokenizer(source, trust_remote_code=config.trust_remote_code))


def _text(config: EvalConfig, subjects: list[Subject]) -> Text:
    """The evaluation text as tokens, once it is known that all models can read it alike.

    Raises:
        InputError: tokenizers that cut the text differently (their perplexities do not compare), segments that are
            longer than a model's context.
    """
    seq_len = config.seq_len or (PRESETS[config.preset].seq_len if config.preset else DEFAULT_SEQ_LEN)
    if config.preset:
        raw, info = preset_text(config.preset)
        runs = [torch.tensor(first_tokens(raw, s.tokenizer, config.max_tokens, add_special_tokens=True))
                for s in subjects]  # fmt: skip
        info = info | {"tokens": len(runs[0])}
    else:
        found = [evaluation_tokens(config.data[0], s.tokenizer, max_tokens=config.max_tokens) for s in subjects]
        runs, info = [ids for ids, _ in found], found[0][1]
        raw = "\n\n".join(document.raw for document in read_documents(config.data[0], evaluation=True))
    if len(runs) == 2 and not torch.equal(runs[0], runs[1]):
        raise InputError(
            f"{config.model} and {config.against} cut the text into different tokens, so their perplexities do not "
            "compare: evaluate them one at a time."
        )
    all_faults(_length_faults(seq_len, len(runs[0]), subjects))
    overlaps = [overlap_with_training(raw, subject.name) for subject in subjects]
    return Text(runs[0], seq_len, info, [overlap for overlap in overlaps if overlap])


def _length_faults(seq_len: int, tokens: int, subjects: list[Subject]) -> list[str]:
    found = []
    for subject in subjects:
        longest = getattr(subject.config, "max_position_embeddings", None)
        if longest is not None and seq_len > longest:
            found.append(
                f"segments of {seq_len} tokens are longer than the {longest} positions of {subject.name}: "
                f"give --seq-len {longest} or less, or a preset with shorter segments."
            )
    if tokens < seq_len:
        found.append(f"the text's {tokens} tokens are fewer than one segment of {seq_len}: lower --seq-len.")
    return found


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> frozenset[tuple[str, int]]:
    return frozenset(tokenizer.get_vocab().items())


def _comparison(figures: dict[str, dict[str, Any]], info: dict[str, Any], difference: Paired | None) -> str:
    rows = [
        (name, f"{f['parameters']:,}", f"{f['perplexity']:.3f}", f"{f['mean_nll']:.4f} ± {f['stderr_nll']:.4f}")
        for name, f in figures.items()
    ]
    first = next(iter(figures.values()))
    lines = [format_table(rows, header=("model", "parameters", "perplexity", "nats per token"))]
    if difference:
        one, other = figures.values()
        lines.append(f"ratio {one['perplexity'] / other['perplexity']:.3f}; {difference.verdict}")
    lines.append(
        f"{info['data']} ({info['joined']}), {first['tokens_scored']:,} tokens scored of {info['tokens']:,} in "
        f"{first['segments']} segments of {first['seq_len']}, {first['dtype']}"
    )
    return "\n".join(lines)
