"""The one-shot order: score without training, cut once; what is left is then fine-tuned."""

import torch
from peft import PeftModel

from ..models.devices import autocast
from ..parallel.distributed import average_gradients_, join, total
from ..pruning.cut import Cut
from ..pruning.pruner import Pruner
from ..system.launcher import launched, rank
from ..system.progress import Progress
from .job import first_batches
from .loss import IGNORED, causal_lm_loss
from .prepare import PruneJob


def score_and_cut(model: PeftModel, pruner: Pruner, job: PruneJob, dtype: torch.dtype, progress: Progress) -> Cut:
    """One-shot order: score on the first steps' batches without training, then cut ("separate" in LoRAPrune §4)."""
    join(job.config.process_timeout)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)  # has no state yet; the cut shrinks what it holds
    model.train()
    told = progress.counting("scoring", "batches")
    for batch in first_batches(job, job.schedule.start):
        own = batch.chunk(launched())[rank()].split(job.config.batch_size // job.config.accumulation)
        parts = [job.blocks.batch(rows, model.device) for rows in own]
        labelled = total(sum(int((labels[:, 1:] != IGNORED).sum()) for _, labels in parts))
        for inputs, labels in parts:
            with autocast(model.device.type, dtype):
                loss = causal_lm_loss(model(**inputs), labels, labelled)
            (loss * launched()).backward()  # counted over all processes, and gradients are averaged
        average_gradients_(model.parameters())
        if all(bool(torch.isfinite(p.grad).all()) for p in trained if p.grad is not None):
            pruner.observe()
        else:
            progress.message(f"warning: batch {pruner.steps_done + 1}: its gradients are not finite, it is left out")
            pruner.skip()
        cut = pruner.step(optimizer)
        model.zero_grad()
        told(pruner.steps_done, job.schedule.start)
    assert cut is not None, "the schedule ends where scoring does"
    return cut
