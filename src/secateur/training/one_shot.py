"""Scores and cuts without training: before it, in the one-shot order, or in its place (`--steps 0`)."""

from contextlib import nullcontext

import torch
from peft import PeftModel

from ..models.devices import autocast, device_of
from ..parallel.distributed import average_gradients_, join, total
from ..pruning.pruner import Pruner
from ..system.launcher import launched, rank
from ..system.progress import Progress, cutting
from .job import first_batches
from .loss import IGNORED, causal_lm_loss
from .prepare import PruneJob
from .recording import cut_words


def score_and_cut(model: PeftModel, pruner: Pruner, job: PruneJob, dtype: torch.dtype, progress: Progress) -> None:
    """Score on the first batches without training, then cut ("separate" in LoRAPrune §4); before each further cut on
    the same batches again, of the model as it is by then."""
    join(device_of(job.config), job.config.process_timeout)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)  # has no state yet; the cut shrinks what it holds
    model.train()
    told = progress.counting("scoring", "batches")
    told(pruner.steps_done, job.scoring_steps)
    for batch in list(first_batches(job, job.scoring_batches)) * (job.config.cuts or 1):
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
        with cutting() if job.schedule.is_cut(pruner.steps_done + 1) else nullcontext():
            cut = pruner.step(optimizer)
        model.zero_grad()
        told(pruner.steps_done, job.scoring_steps)
        if cut is not None:
            progress.told(cut_words(cut))
    assert cut is not None, "the schedule ends where scoring does"
