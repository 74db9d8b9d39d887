"""How long a comparison will take, before it begins."""

import time
from collections.abc import Iterable, Sequence
from statistics import median

from ..models.devices import autocast, dtype_of
from ..models.memory import TRAIN_LESS, memory_for
from ..system.errors import OutOfMemoryError
from ..training.finetune import add_lora, load_base
from ..training.job import Job
from ..training.loss import causal_lm_loss
from ..training.prepare import PruneJob, lora_names
from .grid import Cell

PASSES = 3
"""Micro-batches that are timed."""


def estimated_seconds(
    missing: Sequence[Cell], jobs: dict[str, Job], known: Iterable[float], measured: int
) -> float | None:
    """Seconds that the missing cells take one after the other; None where they have no room in memory.

    Args:
        known: seconds that trained cells took which have been run.
        measured: tokens that each is measured on, of all texts together.
    """
    if known := list(known):
        return median(known) * sum(cell.kind != "dense" for cell in missing)
    try:
        with memory_for("timing a step", TRAIN_LESS):
            seconds = _token_seconds(jobs[missing[0].name])
    except OutOfMemoryError:
        return None
    total = 0.0
    for cell in missing:
        job = jobs[cell.name]
        steps = 0 if cell.kind == "dense" else job.total_steps
        # A forward pass is a third of a step's work.
        total += steps * job.config.batch_size * job.config.seq_len + measured / 3
    return seconds * total


def _token_seconds(job: Job) -> float:
    """Seconds of training for a token, from a few micro-batches."""
    dtype = dtype_of(job.config)
    linears = lora_names(job.budget.units.family) if isinstance(job, PruneJob) else "all-linear"
    model = add_lora(load_base(job, dtype), job.config, linears)
    model.train()
    count = job.config.batch_size // job.config.accumulation
    inputs, labels = job.blocks.batch([row % len(job.blocks) for row in range(count)], model.device)
    seconds = []
    for _ in range(PASSES):
        started = time.perf_counter()
        with autocast(model.device.type, dtype):
            loss = causal_lm_loss(model(**inputs), labels)
        loss.backward()
        seconds.append(time.perf_counter() - started)
        model.zero_grad()
    return median(seconds) / labels.numel()
