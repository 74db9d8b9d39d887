"""Experts of a mixture by what the router gives them: what goes before training, what no token came to in it."""

import json

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from ..architecture.experts import (
    ROUTING_BATCHES,
    Dropped,
    drop_experts,
    expert_lists,
    take_out_experts,
    unused_experts,
)
from ..models.benchmark import parameter_count
from ..models.devices import autocast
from ..parallel.distributed import share_counts
from ..system.launcher import rank
from ..system.progress import Progress
from ..system.records import write_json
from .job import EXPERTS, first_batches
from .prepare import PruneJob


def drop_by_routing(base: PreTrainedModel, job: PruneJob, dtype: torch.dtype, progress: Progress) -> Dropped | None:
    """`--experts`: what is worth least on the first batches goes, before LoRA is added; what went before, on resume."""
    if job.config.experts is None:
        return None
    parameters, family, saved = parameter_count(base), job.budget.units.family, job.work / EXPERTS
    if job.checkpoint is not None and saved.exists():
        gone: dict[str, list[int]] = json.loads(saved.read_text(encoding="utf-8"))
        take_out_experts(base, family, gone)
    else:
        _count_routing(base, job, dtype)
        gone = drop_experts(base, family, job.config.experts, job.experts_by)
    progress.message(f"{sum(map(len, gone.values()))} experts gone, {job.config.experts} stay in each layer")
    return Dropped(gone, parameters - parameter_count(base), job.experts_by)


def note_experts(job: PruneJob, dropped: Dropped | None) -> None:
    """Keep in the run's folder which experts went: resumed, on whatever device, it has to lose the same ones."""
    if rank() > 0 or job.checkpoint is not None:
        return
    if dropped is None:
        (job.work / EXPERTS).unlink(missing_ok=True)
        return
    job.work.mkdir(parents=True, exist_ok=True)
    write_json(job.work / EXPERTS, dropped.experts)


def _count_routing(base: PreTrainedModel, job: PruneJob, dtype: torch.dtype) -> None:
    """Have the experts' lists count what they are given on the first batches."""
    for experts in expert_lists(base).values():
        experts.counting = True
    for batch in first_batches(job, min(job.total_steps, ROUTING_BATCHES)):
        for rows in batch.split(job.config.batch_size // job.config.accumulation):
            inputs, _ = job.blocks.batch(rows, base.device)
            with torch.inference_mode(), autocast(base.device.type, dtype):
                base(**inputs)


def tell_unused(model: PeftModel, progress: Progress) -> dict[str, list[int]]:
    """Warn of experts that no token of the training was given to: their scores say nothing."""
    share_counts(model)
    unused = unused_experts(model)
    if unused:
        examples = ", ".join(f"{path} {numbers}" for path, numbers in list(unused.items())[:3])
        progress.message(f"warning: experts that no token of the training was given to: {examples}")
    return unused
