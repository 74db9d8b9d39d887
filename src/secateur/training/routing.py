"""Experts of a mixture by what the router gives them: what goes before training, what no token came to in it."""

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from ..architecture.experts import ROUTING_BATCHES, Dropped, drop_experts, expert_lists, unused_experts
from ..models.benchmark import parameter_count
from ..models.devices import autocast
from ..parallel.distributed import share_counts
from ..system.progress import Progress
from .job import first_batches
from .prepare import PruneJob


def drop_by_routing(base: PreTrainedModel, job: PruneJob, dtype: torch.dtype, progress: Progress) -> Dropped | None:
    """`--experts`: what is worth least on the first batches goes, before LoRA is added."""
    if job.config.experts is None:
        return None
    parameters = parameter_count(base)
    counted = list(expert_lists(base).values())
    for experts in counted:
        experts.counting = True
    for batch in first_batches(job, min(job.total_steps, ROUTING_BATCHES)):
        for rows in batch.split(job.config.batch_size // job.config.accumulation):
            inputs, _ = job.blocks.batch(rows, base.device)
            with torch.inference_mode(), autocast(base.device.type, dtype):
                base(**inputs)
    gone = drop_experts(base, job.budget.units.family, job.config.experts, job.experts_by)
    progress.message(f"{sum(map(len, gone.values()))} experts gone, {job.config.experts} stay in each layer")
    return Dropped(gone, parameters - parameter_count(base), job.experts_by)


def tell_unused(model: PeftModel, progress: Progress) -> dict[str, list[int]]:
    """Warn of experts that no token of the training was given to: their scores say nothing."""
    share_counts(model)
    unused = unused_experts(model)
    if unused:
        examples = ", ".join(f"{path} {numbers}" for path, numbers in list(unused.items())[:3])
        progress.message(f"warning: experts that no token of the training was given to: {examples}")
    return unused
