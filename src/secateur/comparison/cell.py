"""One cell of a comparison: trained, made smaller, measured."""

import hashlib
import json
import shutil
import time
from dataclasses import asdict
from statistics import median
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, set_seed

from ..checkpoint.export import build_small, round_
from ..config.formats import FORMATS
from ..data.tokens import evaluation_tokens, left_out_of
from ..evaluation.perplexity import perplexity
from ..models.benchmark import parameter_count
from ..models.devices import device_of, dtype_of, widened
from ..models.memory import peak_bytes, reset_peak
from ..models.stored import checkpoint_dtype
from ..models.surgery import merged_and_sliced
from ..pruning.pruner import Pruner
from ..runs.baseline import train_dense
from ..runs.outcome import units_record
from ..runs.prune import fine_tune_and_prune, prune
from ..runs.sparsify.command import sparsify
from ..runs.sparsify.job import SparsifyJob
from ..runs.tracking import Tracking
from ..system.machine.devices import forget_peak, peak_allocated
from ..system.progress import Progress, phase
from ..system.records import environment
from ..training.finetune import load_base, load_original
from ..training.job import Job, make_work
from ..training.prepare import PruneJob
from ..training.routing import drop_by_routing
from .grid import Cell, Comparison


def run_cell(cell: Cell, job: Job, comparison: Comparison) -> dict[str, Any]:
    """Train, prune, measure; what the cell's record holds."""
    started = time.perf_counter()
    set_seed(job.config.seed)
    dtype = dtype_of(job.config)
    for note in job.notes:
        print(note, flush=True)
    if not isinstance(job, SparsifyJob):  # whose run does it itself
        make_work(job)
    record: dict[str, Any] = {"status": "done", "config": asdict(cell.config if cell.zeros else job.config)}
    record |= {"environment": environment(device_of(job.config)), "zeros": dict(cell.zeros)}
    small: nn.Module
    details: dict[str, Any] = {}
    forget_peak(device_of(job.config))
    reset_peak()
    if isinstance(job, SparsifyJob):
        small, details = _sparse(job)
    elif cell.kind == "dense":
        small = load_original(job, dtype, device_of(job.config))
    else:
        assert isinstance(job, PruneJob)
        if cell.kind == "dense+lora":
            small = train_dense(job, dtype, Progress(job.total_steps, every_seconds=60))
        else:
            kept = comparison.settings.keep_checkpoints
            small, details = _checkpoint(job) if kept else _trained_small(job, dtype)
    record |= details | {
        "peak_bytes": peak_allocated(device_of(job.config)) or peak_bytes(),
        "parameters": parameter_count(small),
    }
    record["bytes"] = record["parameters"] * checkpoint_dtype(job.model_config).itemsize
    record["weights_sha256"] = _weights_sha256(small)
    record["perplexity"] = {}
    for spec in comparison.settings.evaluate_on:
        ids, info = evaluation_tokens(
            spec, job.tokenizer, max_tokens=job.config.eval_tokens, seq_len=job.eval_seq_len, bos=job.config.bos
        )
        told = Progress(job.total_steps).measuring()
        unscored = info.get("unscored", 1)
        measured = perplexity(small, ids, seq_len=job.eval_seq_len, dtype=dtype, unscored=unscored, told=told)
        record["perplexity"][spec] = measured.to_dict() | {"text": info}
        print("\n".join([f"perplexity {measured.perplexity:.2f} on {spec}", *left_out_of(info)]), flush=True)
    record["training_data"], record["left_out"] = job.data, job.blocks.left_out.record()
    record["step_seconds"] = _keep_metrics(job)
    if isinstance(job, SparsifyJob) and not comparison.settings.keep_checkpoints:
        shutil.rmtree(job.output)
    record["total_seconds"] = time.perf_counter() - started
    return record


def _trained_small(job: PruneJob, dtype: torch.dtype) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Train and prune; the merged, sliced model as a checkpoint would hold it."""
    base, progress = load_base(job, dtype), Progress(job.total_steps, every_seconds=60)
    drop_by_routing(base, job, dtype, progress)
    dense = parameter_count(base)
    with Tracking(job, progress) as tracking:
        model, pruner, _ = fine_tune_and_prune(base, job, dtype, progress, tracking)
    device = base.device
    if job.config.load_in is not None:
        pruner.restore(job.source, trust_remote_code=job.config.trust_remote_code)
    pruner.close()
    with phase("merging and slicing"):
        shapes = pruner.units.shapes_after(pruner.keep)
        tensors = merged_and_sliced(model, pruner.live, pruner.live_keep)
        small = build_small(base.config, pruner.units.family, shapes, tensors, torch.float32, job.config.model_class)
        round_(small, checkpoint_dtype(job.model_config))
        nn.Module.to(widened(small, dtype), device)
    assert dense - parameter_count(small) == pruner.removed_params
    return small, _details(pruner)


def _sparse(job: SparsifyJob) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The whole of `secateur sparsify`, its checkpoint read back."""
    result = sparsify(job, Progress(job.total_steps, every_seconds=60))
    return _read_back(job, result), {"sparsity": result["zeros"]["share"], "merge_kl": result["export"]["merge_kl"]}


def _checkpoint(job: PruneJob) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The whole of `secateur prune`, its checkpoint read back."""
    result = prune(job, Progress(job.total_steps, every_seconds=60))
    details = {"sparsity": result["sparsity"]["reached"], "shapes": result["shapes"], "checkpoint": str(job.output)}
    return _read_back(job, result), details | ({"time": result["time"]} if "time" in result else {})


def _read_back(job: Job, result: dict[str, Any]) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    trust = FORMATS[result["export"]["format"]].trust
    small = AutoModelForCausalLM.from_pretrained(job.output, dtype="auto", trust_remote_code=trust)
    return widened(small, dtype_of(job.config))


def _details(pruner: Pruner) -> dict[str, Any]:
    shapes = pruner.units.shapes_after(pruner.keep)
    return {
        "sparsity": pruner.sparsity,
        "shapes": [shape.to_dict() for shape in shapes],
        "units": units_record(pruner),
    }


@phase("hashing the weights")
def _weights_sha256(model: nn.Module) -> str:
    """Of all parameters and buffers, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _keep_metrics(job: Job) -> float | None:
    """Put the run's metrics beside the cell's record; returns the median seconds of an optimiser step."""
    found = [path for folder in (job.work, job.output) if (path := folder / "metrics.jsonl").exists()]
    lines = found[0].read_text(encoding="utf-8") if found else ""
    if found:
        (job.output.parent / "metrics.jsonl").write_text(lines, encoding="utf-8")
    # One-shot may score in all steps and train in none.
    return median(json.loads(line)["seconds"] for line in lines.splitlines()) if lines else None
