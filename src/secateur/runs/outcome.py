"""What a run came to: the figures of the written checkpoint beside the dense model's."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from ..architecture.experts import Dropped, gone_record, unused_experts
from ..checkpoint.card import model_card
from ..checkpoint.export import ExportReport
from ..config.files.rerun import RERUN, rerun_text
from ..config.pruning import UNITS
from ..evaluation.perplexity import Perplexity, perplexity
from ..models.benchmark import forward_flops, forward_latency, parameter_count
from ..models.devices import device_of, name_of
from ..models.files import checkpoint_bytes
from ..models.files import source_bytes as files_bytes
from ..models.stored import checkpoint_dtype, stored_bytes
from ..pruning.allocation import make_budget
from ..pruning.budget import Budget
from ..pruning.pruner import Pruner
from ..system.errors import InputError, disk_is_full
from ..system.launcher import rank
from ..system.progress import Progress, phase
from ..system.records import environment, write_json
from ..training.checkpoints import find_latest
from ..training.finetune import load_original
from ..training.job import Job
from ..training.prepare import PruneJob
from .hub.public import weights_sha256

LATENCY_BATCH, LATENCY_REPEATS = 1, 7


def measure(model: nn.Module, job: Job, dtype: torch.dtype, progress: Progress) -> Perplexity | None:
    """Perplexity on the run's evaluation text, if there is one."""
    if job.eval_ids is None or rank() > 0 or next(model.parameters()).is_meta:
        return None
    told = progress.measuring()
    unscored = job.eval_info.get("unscored", 1)
    return perplexity(
        model, job.eval_ids, seq_len=job.eval_seq_len, batch_size=2, dtype=dtype, unscored=unscored, told=told
    )


def without_adapter(model: PeftModel, job: Job, dtype: torch.dtype, progress: Progress) -> Perplexity | None:
    """Of the model without its adapter; one that has brought biases or embeddings along is in the weights, too."""
    if job.eval_ids is None:
        return None
    if job.adapter is not None and job.adapter.extras:
        dense = load_original(job, dtype, device_of(job.config), experts_apart=False)
        return measure(dense, job, dtype, progress)
    with model.disable_adapter():
        return measure(model, job, dtype, progress)


def outcome(
    job: Job,
    pruner: Pruner,
    dense: nn.Module,
    small: nn.Module,
    dense_perplexity: Perplexity | None,
    report: ExportReport,
    folder: Path,
    dtype: torch.dtype,
    progress: Progress,
    dropped: Dropped | None = None,
) -> dict[str, Any]:
    """What `result.json` holds, but for the times.

    Args:
        dense, small: the original model and the written checkpoint, both as loaded from disk; of one that is on the
            meta device only the shapes are known.
        folder: where the checkpoint is now (it is put into place later).
    """
    shapes = pruner.units.shapes_after(pruner.keep)
    return {
        "status": "done",
        "config": asdict(job.config),
        "environment": environment(device_of(job.config)),
        "data": {"training": job.data, "evaluation": job.eval_info, **token_counts(job)},
        "dense": {
            "parameters": parameter_count(dense),
            **source_bytes(job, parameter_count(dense)),
            "perplexity": dense_perplexity.to_dict() if dense_perplexity else None,
        },
        "pruned": {
            "parameters": parameter_count(small),
            "bytes": checkpoint_bytes(folder),
            "perplexity": measured.to_dict() if (measured := measure(small, job, dtype, progress)) else None,
        },
        "sparsity": _sparsity(pruner, small, dense, dropped.parameters if dropped else 0),
        "experts": {**gone_record(dropped), "never_used": unused_experts(pruner.model)},
        **({"adapter": job.adapter.to_dict()} if job.adapter else {}),
        **({"search": asdict(pruner.allocator.record)} if pruner.allocator.record else {}),
        "shapes": [shape.to_dict() for shape in shapes],
        "speed": _speed(dense, small, pruner, job, dtype),
        "alternatives": alternatives(pruner) if pruner.options.units == UNITS[0] else {},
        "export": report.to_dict() | {"folder": str(job.output)},
    }


def alternatives(pruner: Pruner) -> dict[str, float | str]:
    """Allocation -> share of the importance (as averaged before the first cut) that it would remove.

    An estimate from scores alone, without training; a text says why an allocation cannot reach the target.
    """
    scores = pruner.scores_before_cuts or pruner.scores
    everything = {name: torch.ones_like(mask) for name, mask in pruner.keep.items()}
    total, chosen = sum(float(s.sum()) for s in scores.values()), pruner.allocator.goal
    found: dict[str, float | str] = {}

    def lost(budget: Budget) -> float:
        keep = budget.select(scores, everything, 1.0)
        gone = sum(float(scores[name][~keep[name]].sum()) for name in keep)
        return gone / total if total else 0.0

    for allocation in ("uniform", "protected", "global"):
        options = replace(chosen, allocation=allocation)
        if allocation == "uniform" or allocation != chosen.allocation:
            options = replace(options, protect_first=None, protect_last=None)
        try:
            account = pruner.budget.account
            found[allocation] = lost(make_budget(pruner.units, options, pruner.allocator.legal, account))
        except InputError as error:
            found[allocation] = str(error)
    return found | ({"search": lost(pruner.budget)} if chosen.allocation == "search" else {})


def write_records(folder: Path, job: Job, pruner: Pruner, result: dict[str, Any]) -> None:
    """result.json, units.json, metrics.jsonl, run.yaml and the model card, beside the weights."""
    result["numerics"] = numerics(job)
    result["export"]["sha256"] = weights_sha256(folder)
    write_json(folder / "result.json", result)
    write_json(folder / "units.json", units_record(pruner))
    keep_run(job, folder, "prune")
    source = Path(job.source.path) if Path(job.source.path).is_dir() else None
    (folder / "README.md").write_text(model_card(folder, result, source), encoding="utf-8")


def numerics(job: Job) -> dict[str, Any]:
    """Steps that were left out, and where the loss diverged: as metrics.jsonl has them, over all resumed parts."""
    lines = [json.loads(line) for line in (job.work / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "left_out": [{"step": line["step"], "reason": line["left_out"]} for line in lines if "left_out" in line],
        "diverged_at": next((line["step"] for line in lines if "diverges" in line), None),
    }


def keep_run(job: Job, folder: Path, command: str) -> None:
    """The options as run.yaml; metrics.jsonl, ranks.json (`--init-rank`), and what TensorBoard wrote (`--report-to`),
    from the run's folder to the result's."""
    (folder / RERUN).write_text(rerun_text(command, job.config), encoding="utf-8")
    shutil.copyfile(job.work / "metrics.jsonl", folder / "metrics.jsonl")
    if (job.work / "ranks.json").is_file():
        shutil.copyfile(job.work / "ranks.json", folder / "ranks.json")
    if (job.work / "runs").is_dir():
        shutil.copytree(job.work / "runs", folder / "runs")


def units_record(pruner: Pruner) -> dict[str, Any]:
    """What `units.json` holds: per pool what stayed, and per cut what went with which score."""
    return {
        "pools": {
            pool.name: {
                "units": pool.size,
                "unit_params": pool.unit_params,
                "kept": pruner.keep[pool.name].nonzero().flatten().tolist(),
            }
            for pool in pruner.units.pools
        },
        "cuts": [vars(cut) for cut in pruner.cuts],
        "scores_before_cuts": {name: scores.tolist() for name, scores in pruner.scores_before_cuts.items()},
    }


def token_counts(job: Job) -> dict[str, Any]:
    """How much text there was, what of it was left out, and how much was trained on."""
    per_step, trained = job.tokens_per_step, _trained_steps(job.work / "metrics.jsonl")
    return {
        "documents": job.blocks.n_documents,
        "available_tokens": job.blocks.n_tokens,
        "left_out": job.blocks.left_out.record(),
        "tokens_per_step": per_step,
        "trained_tokens": per_step * trained,
        "trained_steps": trained,
        "steps": job.total_steps,
        **untrained_counts(job),
    }


def untrained_counts(job: Job) -> dict[str, Any]:
    """Of a run without training: the tokens that each cut looked at."""
    if not isinstance(job, PruneJob) or not job.config.untrained:
        return {}
    return {"steps": 0, "calibration_tokens": job.scoring_batches * job.tokens_per_step}


def _trained_steps(metrics: Path) -> int:
    """Optimiser steps that changed the weights: not those that only scored (one-shot), nor those that were left out."""
    lines = map(json.loads, metrics.read_text(encoding="utf-8").splitlines())
    return sum(not line.get("left_out") for line in lines)


def _sparsity(pruner: Pruner, small: nn.Module, dense: nn.Module, dropped: int) -> dict[str, Any]:
    """Asked and reached; the latter recounted from the parameters of the checkpoint as loaded.

    Args:
        dropped: parameters of experts that went before training; sparsity is of what they left.
    """
    gone = parameter_count(dense) - dropped - parameter_count(small)
    assert gone == pruner.removed_params, "the written checkpoint lacks other parameters than were pruned"
    return {
        "target": pruner.budget.sparsity,
        "reached": gone / pruner.units.prunable_params,
        "prunable_parameters": pruner.units.prunable_params,
        "removed_parameters": gone,
        "model": (gone + dropped) / parameter_count(dense),
    }


@phase("timing a forward pass")
def _speed(dense: nn.Module, small: nn.Module, pruner: Pruner, job: Job, dtype: torch.dtype) -> dict[str, Any]:
    """Forward latency of both, alternating in one run, beside the ratio of their FLOPs (attention's included).

    Of a model without weights only the FLOPs are known.
    """
    models = {"dense": dense, "pruned": small}
    timed = {name: model for name, model in models.items() if not next(model.parameters()).is_meta}
    turns: dict[str, Any] = {"seq_len": job.config.seq_len, "repeats": LATENCY_REPEATS, "dtype": dtype}
    latency = forward_latency(timed, batch=LATENCY_BATCH, **turns) if timed else {}
    shapes = {"dense": pruner.units.shapes, "pruned": pruner.units.shapes_after(pruner.keep)}
    flops = {
        name: forward_flops(model, job.config.seq_len, attention_width=[s.attention_width for s in shapes[name]])
        for name, model in models.items()
    }
    found: dict[str, Any] = {name: latency[name].to_dict() | {"flops": flops[name]} for name in timed}
    if "dense" in timed:
        found["speedup"] = latency["dense"].median_ms / latency["pruned"].median_ms
    return found | {"flop_speedup": flops["dense"] / flops["pruned"]}


def source_bytes(job: Job, parameters: int) -> dict[str, Any]:
    """Bytes of the dense checkpoint's weights on disk.

    Where its files hold them in another precision than the result's, or hold more than the model, its parameters in the
    result's, so that nothing is credited to pruning that is not pruning's; `stored_bytes` is then what the files take.

    Args:
        parameters: of the dense model.
    """
    dtype = checkpoint_dtype(job.model_config)
    needed, stored = parameters * dtype.itemsize, stored_bytes(job.source)
    if stored is None:  # of the hub
        return {"bytes": needed}
    files = job.source.is_local and not job.source.gguf_file
    headers = checkpoint_bytes(Path(job.source.path)) - stored if files else 0
    if stored == needed:
        return {"bytes": files_bytes(job.source)}
    return {"bytes": needed + headers, "stored_bytes": stored + headers, "dtype": name_of(dtype)}


@contextmanager
def training_kept(job: Job) -> Iterator[None]:
    """A disk that is full while the result is written: what becomes of the training.

    Raises:
        InputError: in the place of the one that says what could not be written.
    """
    try:
        yield
    except InputError as error:
        if not disk_is_full(error):
            raise
        last, _ = find_latest(job.work)
        kept = (
            f"Make room, then the same command with --resume goes on from {last.name}."
            if last
            else "The training is not saved (--save-steps saves it): make room before the next run."
        )
        raise InputError(f"{error} {kept}") from error


@phase("drawing the report")
def report_on(output: Path, progress: Progress) -> None:
    """The page about the run. The run is done and its records are written: nothing here may spoil it."""
    try:
        from ..report import write_report

        write_report([str(output)])
    except Exception as error:
        progress.message(f"no report.html ({type(error).__name__}: {error}); try again with: secateur report {output}")
