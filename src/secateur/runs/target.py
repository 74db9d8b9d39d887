"""What a run is asked for, said at its start; of a target in time, what came of it."""

from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from ..config.formats import width_words
from ..pruning.allocation.depth import layer_words
from ..pruning.pruner import Pruner
from ..speed.timing import latency_at
from ..system.progress import Progress, phase
from ..system.records import counted
from ..training.prepare import PruneJob

REPEATS = 9
"""Turns in which both models are timed in the end."""


def announce(job: PruneJob, pruner: Pruner, dense_parameters: int, progress: Progress) -> None:
    """Say what will go, and when."""
    units, cuts = pruner.units, job.schedule.cuts()
    when = f"by {len(cuts)} cuts from step {cuts[0]} to {cuts[-1]} of {job.total_steps}"
    if job.config.untrained:
        tokens = job.scoring_batches * job.tokens_per_step
        when = f"by {counted(len(cuts), 'cut')}, each by {tokens:,} tokens, without training"
    about = "" if job.costs is None else "about "
    progress.message(
        f"target: {about}{pruner.budget.sparsity:.1%} of {units.prunable_params:,} prunable parameters "
        f"({job.config.units if job.config.takes_whole else job.config.allocation}), {when}"
    )
    if job.target.parameters is not None:
        progress.message(
            f"({job.target.words}: {dense_parameters - pruner.budget.removed_params:,} parameters will stay of "
            f"{dense_parameters:,})"
        )
    if layers := layer_words(pruner.budget):
        progress.message(f"({layers})")
    if (asked := job.target.time) is not None:
        progress.message(
            f"({job.target.words}: {asked.at} in {asked.ms:.4g} ms where the dense model takes {asked.dense_ms:.4g} ms "
            f"by the cost table, {asked.speedup:.3g}x)"
        )
    if job.costs is None and abs(pruner.budget.sparsity - job.target.sparsity) > 1e-3:
        why = "whole layers" if layers else f"--round-to {job.config.round_to} snaps the widths"
        progress.message(f"(asked for {job.target.sparsity:.1%}; {why})")
    if step := pruner.budget.ffn_step:
        words = width_words(step, job.model_config.get_text_config().hidden_size)
        progress.message(f"FFN widths: {words}")


@phase("timing what was asked for")
def reached_time(
    job: PruneJob, pruner: Pruner, dense: nn.Module, small: nn.Module, dtype: torch.dtype
) -> dict[str, Any]:
    """`asked`, `predicted` and `measured` speed-up, for `result.json`; nothing where no time was asked for.

    A model that is not loaded (`--stream-export`) is not timed.
    """
    asked, costs = job.target.time, job.costs
    if asked is None or costs is None:
        return {}
    predicted = costs.ms(pruner.units.shapes_after(pruner.keep))
    models = {"dense": dense, "pruned": small}
    models = {name: model for name, model in models.items() if not next(model.parameters()).is_meta}
    total = dict.fromkeys(models, 0.0)
    points: dict[str, Any] = {}
    for at in costs.at if models else ():
        told = Progress(0).counting(f"timing {at.name}", "turns")
        found = latency_at(models, at, repeats=REPEATS, dtype=dtype, told=told)
        points[at.name] = {name: latency.to_dict() for name, latency in found.items()}
        total = {name: ms + at.times * found[name].median_ms for name, ms in total.items()}
    measured: dict[str, Any] = {f"{name}_ms": ms for name, ms in total.items()}
    if "dense" in total:
        measured["speedup"] = total["dense"] / total["pruned"]
    return {
        "time": {
            "asked": {"words": job.target.words, **asdict(asked)},
            "predicted": {"dense_ms": costs.dense_ms, "pruned_ms": predicted, "speedup": costs.dense_ms / predicted},
            "measured": {**measured, "repeats": REPEATS, "points": points},
            "cost_table": costs.table.record(),
        }
    }
