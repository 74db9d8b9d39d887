"""`secateur eval`: one model or two on a text and on tasks, with what to know about the figures."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config.evaluation import EvalConfig
from ..data.documents import check_spec, read_documents
from ..data.overlap import RowOverlap, overlap_of_rows, overlap_with_training
from ..data.packing import segmented
from ..data.pairs import Pairs
from ..data.presets import PRESETS, preset_text
from ..data.tokens import evaluation_tokens, first_tokens
from ..models.benchmark import parameter_count
from ..models.devices import device_of, dtype_of, widened
from ..models.files import check_checkpoint
from ..models.loading import load_config, load_model
from ..models.source import resolve_model
from ..models.tokenizers import load_tokenizer
from ..parallel.distributed import join, leave
from ..system.errors import all_faults
from ..system.launcher import rank
from ..system.output import check_output_file
from ..system.progress import Progress
from ..system.records import environment, write_told
from ..system.terminal.tables import Words
from .answers import Asked, Rows, encode_rows, measure_rows, read_rows, row_name
from .figures import TaskFigure, paired_average, paired_rows, seven_task_average
from .harness import TaskOptions, check_tasks, run_tasks, tokenizer_faults
from .perplexity import Paired, Perplexity, pair_nlls, paired, segment_nlls, summarise, token_faults, weights_of
from .subjects import Subject, Text, check_pairs, find_warnings, pairs_text
from .text import perplexity_lines, task_lines

DEFAULT_SEQ_LEN = 1024
SEGMENTS_PER_PASS, PROMPTS_PER_PASS = 2, 16


@dataclass
class Findings:
    """What was measured of one model."""

    parameters: int = 0
    perplexity: Perplexity | None = None
    losses: Tensor | None = None
    """(segments,), behind `perplexity`."""
    weights: Tensor | None = None
    """(segments,), of targets of pairs: their tokens."""
    nats_per_byte: float | None = None
    """Of the whole text, where the models' tokens are not the same."""
    tasks: dict[str, TaskFigure] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"parameters": self.parameters}
        if self.perplexity:
            found |= self.perplexity.to_dict()
        if self.nats_per_byte is not None:
            found["nats_per_byte"] = self.nats_per_byte
        if self.tasks:
            found["tasks"] = {name: figure.to_dict() for name, figure in self.tasks.items()}
            found["seven_task_average"] = seven_task_average(self.tasks)
        return found


def evaluate_models(config: EvalConfig) -> str:
    """`secateur eval`: what to print. Errors as of `evaluated`."""
    return evaluated(config)[1]


def evaluated(config: EvalConfig) -> tuple[dict[str, Any], str]:
    """One model or two on the same text and tasks: the record, which `--output` gets too, and what to print.

    In processes other than the first both are empty.

    Raises:
        InputError: before any weights are loaded, for all that can be known then.
    """
    device = device_of(config)
    if config.output:
        inputs = {"--model": config.model, "--against": config.against, "--task-data": config.task_data}
        inputs |= {"--data": config.data[0] if config.data else None, "--answers": config.answers}
        check_output_file("--output", Path(config.output), overwrite=config.overwrite, inputs=inputs)
    for spec in (*config.data, *([config.answers] if config.answers else [])):
        check_spec(spec)
    tasks = _task_options(config)
    if tasks:
        check_tasks(tasks)
    subjects = [_open(name, config, tasks) for name in (config.model, *([config.against] if config.against else []))]
    text = _text(config, subjects) if config.data or config.preset else None
    rows = read_rows(config) if config.answers else None
    asked = {subject.name: _asked(rows, subject, config) for subject in subjects} if rows else {}
    findings = _measure_all(subjects, text, tasks, rows, asked, config)
    if rank() > 0:
        return {}, ""  # the first process writes and prints
    warnings = [*find_warnings(subjects, text), *(rows.notes if rows else ()), *_row_overlaps(findings)]
    warnings += [f"{name}: {line}" for name, found in findings.items() for line in found.warnings]
    difference, task_differences = _differences(list(findings.values()), alike=text is not None and text.cut_alike)
    average = paired_average(*(found.tasks for found in findings.values())) if len(findings) == 2 else None
    measured = {name: (found.parameters, found.perplexity) for name, found in findings.items() if found.perplexity}
    by_byte = {name: found.nats_per_byte for name, found in findings.items() if found.nats_per_byte is not None}
    lines = perplexity_lines(measured, text.info, difference, by_byte) if text else []
    figures = {name: found.tasks for name, found in findings.items()}
    lines += task_lines(figures, task_differences, average) if tasks or rows else []
    words = Words(*lines, *(f"warning: {line}" for line in warnings))
    record = {
        "config": config,
        "data": text.info if text else None,
        "models": {name: found.to_dict() for name, found in findings.items()},
        "folders": {name: os.path.realpath(name) for name in findings if Path(name).exists()},
        "paired": difference.to_dict() if difference else None,
        "paired_tasks": task_differences,
        "paired_average": average,
        "overlap": [overlap.to_dict() for overlap in text.overlaps] if text else [],
        "warnings": warnings,
        "environment": environment(device),
    }
    if config.output:
        write_told(Path(config.output), record, words)
    return record, words


def _measure_all(
    subjects: list[Subject],
    text: Text | None,
    tasks: TaskOptions | None,
    rows: Rows | None,
    asked: Mapping[str, Asked],
    config: EvalConfig,
) -> dict[str, Findings]:
    """All that was asked for, by model; one is in memory at a time.

    Perplexities are spread over all processes and come first. The harness asks the first process alone, so the others
    are let go before: they would wait for it in the second model's sums.
    """
    findings = {subject.name: Findings() for subject in subjects}
    loaded: dict[str, nn.Module] = {}
    if text:
        join(device_of(config))
        for subject, ids in zip(subjects, text.token_ids, strict=True):
            _measure_text(_loaded(subject, loaded, config), subject.name, ids, text, findings[subject.name], config)
        leave()
    if (tasks or rows) and rank() == 0:
        dtype = dtype_of(config)
        for subject in reversed(subjects):  # the last one is in memory
            model, found = _loaded(subject, loaded, config), findings[subject.name]
            found.parameters = parameter_count(model)
            if rows:
                told = Progress(0).counting(f"answering {rows.spec}", "answers")
                figure = measure_rows(model, subject.tokenizer, rows, asked[subject.name], config, dtype, told)
                found.tasks[row_name(rows.spec, config.task_names)] = figure
            if tasks:
                more, found.warnings = run_tasks(model, subject.tokenizer, tasks, dtype)
                found.tasks |= more
    return findings


def _asked(rows: Rows, subject: Subject, config: EvalConfig) -> Asked:
    of = subject.config.get_text_config()
    positions, embeddings = (getattr(of, key, None) for key in ("max_position_embeddings", "vocab_size"))
    return encode_rows(rows, subject.tokenizer, subject.name, positions, embeddings, config.max_new_tokens)


def _loaded(subject: Subject, loaded: dict[str, nn.Module], config: EvalConfig) -> nn.Module:
    """The subject's model, in place of the one that `loaded` holds."""
    if subject.name not in loaded:
        loaded.clear()
        model = load_model(subject.source, trust_remote_code=config.trust_remote_code)
        loaded[subject.name] = nn.Module.to(widened(model, dtype_of(config)), device_of(config))
    return loaded[subject.name]


def _measure_text(
    model: nn.Module, name: str, ids: Tensor | Pairs, text: Text, found: Findings, config: EvalConfig
) -> None:
    dtype, started = dtype_of(config), time.perf_counter()
    alike: dict[str, Any] = {"seq_len": text.seq_len, "dtype": dtype, "unscored": text.unscored.get(name, 1)}
    how: dict[str, Any] = {
        "batch_size": config.batch_size or SEGMENTS_PER_PASS, "dtype": dtype, "spread": True,
        "told": Progress(0).measuring(),
    }  # fmt: skip
    if isinstance(ids, Pairs):
        losses, alike["weights"] = pair_nlls(model, ids, **how), weights_of(ids)
    else:
        losses = segment_nlls(model, ids, seq_len=text.seq_len, unscored=alike["unscored"], **how)
    seconds = time.perf_counter() - started
    found.parameters, found.losses, found.weights = parameter_count(model), losses, alike.get("weights")
    found.perplexity = summarise(losses, seconds=seconds, **alike)
    if not text.cut_alike and config.max_tokens is None:
        found.nats_per_byte = found.perplexity.mean_nll * text.counts[name] / text.info["bytes"]


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


def _differences(findings: list[Findings], *, alike: bool) -> tuple[Paired | None, dict[str, dict[str, Any]]]:
    """First model less the second, of each task's rows and, on `alike` tokens, of the losses; nothing for one model."""
    if len(findings) != 2:
        return None, {}
    one, other = findings
    difference = None
    if one.losses is not None and other.losses is not None and alike:
        difference = paired(one.losses, other.losses, one.weights)
    tasks = {name: paired_rows(figure, other.tasks[name]) for name, figure in one.tasks.items() if name in other.tasks}
    return difference, {name: found for name, found in tasks.items() if found}


def _row_overlaps(findings: Mapping[str, Findings]) -> list[str]:
    """Of each model and task, how many rows share words with what the model was trained on."""
    texts = {name: figure.row_texts for found in findings.values() for name, figure in found.tasks.items()}
    overlaps: list[RowOverlap] = [
        overlap for model in findings if texts and (overlap := overlap_of_rows(texts, model)) is not None
    ]
    return [line for overlap in overlaps for line in overlap.warnings]


def _open(name: str, config: EvalConfig, tasks: TaskOptions | None) -> Subject:
    source = resolve_model(name)
    model_config = load_config(source, trust_remote_code=config.trust_remote_code, encoder_decoders=True)
    if model_config.is_encoder_decoder:
        check_pairs(config, name, model_config.model_type)
    check_checkpoint(source)
    tokenizer = load_tokenizer(source, trust_remote_code=config.trust_remote_code)
    if tasks:
        all_faults(tokenizer_faults(tokenizer, tasks, name))
    return Subject(name, source, model_config, tokenizer)


def _text(config: EvalConfig, subjects: list[Subject]) -> Text:
    """The evaluation text as tokens of each model.

    Raises:
        InputError: segments that are longer than a model's context or than the text; tokens that a model does not know.
    """
    if any(subject.config.is_encoder_decoder for subject in subjects):
        return pairs_text(config, subjects, config.seq_len or DEFAULT_SEQ_LEN)
    seq_len = config.seq_len or (PRESETS[config.preset].seq_len if config.preset else DEFAULT_SEQ_LEN)
    if config.preset:
        raw, info = preset_text(config.preset)
        texts = [first_tokens(raw, s.tokenizer, config.max_tokens, add_special_tokens=True) for s in subjects]
    else:
        found = [evaluation_tokens(config.data[0], s.tokenizer, max_tokens=config.max_tokens) for s in subjects]
        texts, info = [ids.tolist() for ids, _ in found], found[0][1]
        raw = "\n\n".join(document.raw for document in read_documents(config.data[0], evaluation=True))
    cut = [segmented(ids, s.tokenizer, seq_len, config.bos) for ids, s in zip(texts, subjects, strict=True)]
    runs = [torch.tensor(ids, dtype=torch.long) for ids, _, _ in cut]
    begins = {subject.name: words for subject, (_, words, _) in zip(subjects, cut, strict=True)}
    unscored = {subject.name: count for subject, (_, _, count) in zip(subjects, cut, strict=True)}
    info = info | {"tokens": len(texts[0]), "bytes": len(raw.encode("utf-8", "replace")), "begins": begins}
    faults = [fault for subject, ids in zip(subjects, runs, strict=True) for fault in _faults(seq_len, ids, subject)]
    all_faults(list(dict.fromkeys(faults)))
    overlaps = [overlap_with_training(raw, subject.name) for subject in subjects]
    counts = {subject.name: len(ids) for subject, ids in zip(subjects, texts, strict=True)}
    return Text(tuple(runs), seq_len, info, counts, [overlap for overlap in overlaps if overlap], unscored)


def _faults(seq_len: int, token_ids: Tensor, subject: Subject) -> list[str]:
    found = token_faults(token_ids, getattr(subject.config.get_text_config(), "vocab_size", None), subject.name)
    longest = getattr(subject.config, "max_position_embeddings", None)
    if longest is not None and seq_len > longest:
        found.append(
            f"segments of {seq_len} tokens are longer than the {longest} positions of {subject.name}: "
            f"give --seq-len {longest} or less, or a preset with shorter segments."
        )
    if len(token_ids) < seq_len:
        found.append(f"the text's {len(token_ids)} tokens are fewer than one segment of {seq_len}: lower --seq-len.")
    return found
