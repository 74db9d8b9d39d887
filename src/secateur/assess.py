"""`secateur eval`: one model or two on a text and on tasks, with what to know about the figures."""

import statistics
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
from .distributed import join, leave
from .documents import check_spec, read_documents
from .errors import InputError, all_faults
from .evaluate import Paired, Perplexity, paired, segment_nlls, summarise
from .harness import TaskOptions, check_tasks, run_tasks
from .launcher import rank
from .models import (
    ModelSource,
    check_checkpoint,
    check_tokens,
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
from .task_figures import TaskFigure, paired_rows

DEFAULT_SEQ_LEN = 1024
SEGMENTS_PER_PASS, PROMPTS_PER_PASS = 2, 16


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


@dataclass(frozen=True)
class Findings:
    """What was measured of one model."""

    parameters: int
    perplexity: Perplexity | None
    losses: Tensor | None
    """(segments,), behind `perplexity`."""
    tasks: dict[str, TaskFigure]
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"parameters": self.parameters}
        if self.perplexity:
            found |= self.perplexity.to_dict()
        if self.tasks:
            found["tasks"] = {name: figure.to_dict() for name, figure in self.tasks.items()}
            found["tasks_mean"] = statistics.fmean(figure.value for figure in self.tasks.values())
        return found


def evaluate_models(config: EvalConfig) -> str:
    """One model or two on the same text and tasks; returns what to print, writes `--output`.

    Raises:
        InputError: before any weights are loaded, for all that can be known then.
    """
    if config.output and Path(config.output).exists() and not config.overwrite:
        raise InputError(f"--output {config.output} exists: pass --overwrite to replace it.")
    if config.data:
        check_spec(config.data[0])
    tasks = _task_options(config)
    if tasks:
        check_tasks(tasks)
    subjects = [_open(name, config) for name in (config.model, *([config.against] if config.against else []))]
    text = _text(config, subjects) if config.data or config.preset else None
    join()
    findings = {subject.name: _measure(subject, text, tasks, config) for subject in subjects}
    leave()
    if rank() > 0:
        return ""  # the first process writes and prints
    warnings = find_warnings(subjects, text)
    warnings += [f"{name}: {line}" for name, found in findings.items() for line in found.warnings]
    difference, task_differences = _differences(list(findings.values()))
    if config.output:
        record = {
            "config": config,
            "data": text.info if text else None,
            "models": {name: found.to_dict() for name, found in findings.items()},
            "paired": difference.to_dict() if difference else None,
            "paired_tasks": task_differences,
            "overlap": [overlap.to_dict() for overlap in text.overlaps] if text else [],
            "warnings": warnings,
            "environment": environment(),
        }
        write_json(Path(config.output), record)
    lines = _perplexity_lines(findings, text.info, difference) if text else []
    lines += _task_lines(findings, task_differences) if tasks else []
    return "\n".join([*lines, *(f"warning: {line}" for line in warnings)])


def _measure(subject: Subject, text: Text | None, tasks: TaskOptions | None, config: EvalConfig) -> Findings:
    """Load one model and measure all that was asked for."""
    dtype = compute_dtype(config.dtype)
    model = load_model(subject.source, trust_remote_code=config.trust_remote_code)
    nn.Module.to(model, default_device())
    measured = losses = None
    if text:
        started = time.perf_counter()
        batch_size = config.batch_size or SEGMENTS_PER_PASS
        losses = segment_nlls(
            model, text.token_ids, seq_len=text.seq_len, batch_size=batch_size, dtype=dtype, spread=True
        )
        seconds = time.perf_counter() - started
        measured = summarise(losses, seq_len=text.seq_len, dtype=dtype, seconds=seconds)
    # The harness asks the first process alone; perplexities are spread over all.
    figures, warnings = run_tasks(model, subject.tokenizer, tasks, dtype) if tasks and rank() == 0 else ({}, [])
    return Findings(parameter_count(model), measured, losses, figures, warnings)


def _task_options(config: EvalConfig) -> TaskOptions | None:
    if not config.task_names:
        return None
    return TaskOptions(
        names=config.task_names,
        num_fewshot=config.num_fewshot,
        limit=config.limit,
        folder=Path(config.task_data) if config.task_data else None,
        batch_size=config.batch_size or PROMPTS_PER_PASS,
        allow_code_execution=config.allow_code_execution,
    )


def _differences(findings: list[Findings]) -> tuple[Paired | None, dict[str, dict[str, Any]]]:
    """First model less the second, of the losses and of each task's rows; nothing for one model."""
    if len(findings) != 2:
        return None, {}
    one, other = findings
    difference = None if one.losses is None or other.losses is None else paired(one.losses, other.losses)
    tasks = {name: paired_rows(figure, other.tasks[name]) for name, figure in one.tasks.items() if name in other.tasks}
    return difference, {name: found for name, found in tasks.items() if found}


def find_warnings(subjects: list[Subject], text: Text | None) -> list[str]:
    """What makes the perplexities less than they seem."""
    if text is None:
        return []
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
    for subject, ids in zip(subjects, runs, strict=True):
        check_tokens(ids, subject.config, subject.name)
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


def _perplexity_lines(findings: dict[str, Findings], info: dict[str, Any], difference: Paired | None) -> list[str]:
    measured = {name: (found.parameters, found.perplexity) for name, found in findings.items() if found.perplexity}
    rows = [
        (name, f"{parameters:,}", f"{p.perplexity:.3f}", f"{p.mean_nll:.4f} ± {p.stderr_nll:.4f}")
        for name, (parameters, p) in measured.items()
    ]
    lines = [format_table(rows, header=("model", "parameters", "perplexity", "nats per token"))]
    figures = [p for _, p in measured.values()]
    if difference:
        lines.append(f"ratio {figures[0].perplexity / figures[1].perplexity:.3f}; {difference.verdict}")
    lines.append(
        f"{info['data']} ({info['joined']}), {figures[0].tokens_scored:,} tokens scored of {info['tokens']:,} in "
        f"{figures[0].segments} segments of {figures[0].seq_len}, {figures[0].dtype}"
    )
    return lines


def _task_lines(findings: dict[str, Findings], differences: dict[str, dict[str, Any]]) -> list[str]:
    first = next(iter(findings.values())).tasks
    rows = []
    for name, figure in first.items():
        values = [found.tasks[name] for found in findings.values()]
        cells = [f"{f.value:.2%}" + (f" ± {f.stderr:.2%}" if f.stderr is not None else "") for f in values]
        if len(findings) == 2:
            d = differences.get(name)
            noise = {True: " (noise)", False: "", None: " (few rows)"}[d["within_noise"]] if d else ""
            cells.append(f"{d['difference']:+.2%} ± {d['stderr']:.2%}{noise}" if d else "")
        about = f"{figure.metric}, {figure.rows:,} rows, {figure.num_fewshot}-shot, version {figure.version}"
        rows.append((f"{name} ({about})", *cells))
    header = ("task", *findings, *(("paired difference",) if len(findings) == 2 else ()))
    if len(first) > 1:
        means = [f"{statistics.fmean(f.value for f in found.tasks.values()):.2%}" for found in findings.values()]
        rows.append(("mean of the tasks", *means, *(("",) if len(findings) == 2 else ())))
    return ["", format_table(rows, header=header), next(iter(first.values())).source]
