"""`--dry-run`: everything of a run but the training, on the model as it is. Nothing is left of it.

The model is loaded, LoRA is added, all that the target takes is cut at once (whatever the units would have scored), and
the result is written beside the output, read back in a fresh process as any result is, and deleted.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from transformers import set_seed

from ..checkpoint.adapter import AdapterReport, write_adapter, write_merged
from ..checkpoint.export import ExportReport, round_
from ..config.options import part_of
from ..config.ranks import RankOptions
from ..models.benchmark import parameter_count
from ..models.devices import dtype_of
from ..models.memory import WRITE_LATER, memory_for
from ..models.stored import checkpoint_dtype
from ..pruning.pruner import Pruner
from ..ranks import RankPruner
from ..sparsity.walk import sparsify_layers
from ..system.output import passing_folder
from ..system.progress import Progress, human_bytes
from ..training.finetune import add_lora, linears_without_use, load_base
from ..training.job import Job
from ..training.prepare import PruneJob, lora_names
from ..training.routing import drop_by_routing
from .adapt import AdaptJob, first_scaling, on_the_original, place_of
from .prune import make_pruner, make_rank_pruner, recovery_of, restore_original, write_result
from .sparsify.command import merged, write
from .sparsify.job import SparsifyJob

J = TypeVar("J", bound=Job)


def dry_prune(job: PruneJob, progress: Progress) -> str:
    """What a run would write, after all of it but the training.

    Raises:
        InputError, VerificationError: as at the end of the run.
    """
    dtype = _begin(job, progress)
    base = load_base(job, dtype)
    dense = parameter_count(base)
    drop_by_routing(base, job, dtype, progress)
    model = add_lora(base, job.config, lora_names(job.budget.units.family))
    recovery_of(model, job, progress).beside.narrow_()
    pruner = make_pruner(model, job)
    make_rank_pruner(model, job)
    cut_to_target(pruner)
    if job.config.load_in is not None and not job.config.stream_export:
        restore_original(model, pruner, job)
    reports: list[ExportReport] = []
    with _elsewhere(job) as there, memory_for("writing the result", WRITE_LATER):
        write_result(model, pruner, there, lambda folder, report: reports.append(report))
    pruner.close()
    (report,) = reports
    share = 1 - report.parameters / dense
    what = f"a {report.format} {report.model_class} of {report.parameters:,} parameters ({share:.1%} fewer)"
    return _words(job, what, report.bytes)


def cut_to_target(pruner: Pruner) -> None:
    """Cut all that goes by the end of the run, by scores that say nothing."""
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(len(mask), generator=generator) for name, mask in pruner.keep.items()}
    keep = pruner.budget.select(scores, pruner.keep, 1.0)
    pruner.load_state_dict(pruner.state_dict() | {"keep": keep, "compensated": None})


def dry_adapt(job: AdaptJob, progress: Progress) -> str:
    """The same of a run that prunes an adapter's rank."""
    config = job.config
    dtype = _begin(job, progress)
    base = load_base(job, dtype, experts_apart=False)
    unused = linears_without_use(base, job, dtype)
    model = add_lora(base, config, job.linears, scaling=first_scaling(config), without=[*unused, *job.without])
    pruner = RankPruner(model, part_of(RankOptions, config), total_steps=job.total_steps, merges=config.merge)
    first, *others = pruner.start_ranks
    ranks = dict.fromkeys((first, *others), config.rank)
    if config.allocation == "global":  # some layers then keep more than others
        ranks[first] = min(pruner.start_ranks[first], config.rank + 1)
    pruner.load_state_dict(pruner.state_dict() | {"ranks": ranks})
    if config.load_in is not None:
        model = on_the_original(model, job, dtype)
    reports: list[AdapterReport] = []
    write: Callable[..., Any] = write_merged if config.merge else write_adapter
    with _elsewhere(job) as there, memory_for("writing the result", WRITE_LATER):
        write(model, place_of(there), lambda folder, report: reports.append(report))
    (report,) = reports
    what = "the model with the adapter merged" if config.merge else f"a LoRA adapter of rank {config.rank}"
    return _words(job, what, report.bytes)


def dry_sparsify(job: SparsifyJob, progress: Progress) -> str:
    """The same of a run that puts zeros into the weights: the smallest go, whatever the method."""
    dtype = _begin(job, progress)
    base = load_base(job, dtype, experts_apart=False)
    keep = sparsify_layers(base, job.layers, job.config.zeros, "magnitude")
    small, merge = merged(add_lora(base, job.config, job.linears) if job.total_steps else base, keep, job)
    round_(small, checkpoint_dtype(job.model_config))
    with _elsewhere(job) as there, memory_for("writing the result", WRITE_LATER):
        report = write(small, there, merge, lambda folder, report: None)
    what = f"a {report.model_class} of {report.parameters:,} parameters, with zeros ({job.config.pattern})"
    return _words(job, what, report.bytes)


def _begin(job: Job, progress: Progress) -> torch.dtype:
    for note in job.notes:
        progress.message(note)
    set_seed(job.config.seed)
    return dtype_of(job.config)


def _words(job: Job, what: str, size: int) -> str:
    return (
        f"dry run: {job.output} would hold {what}, {human_bytes(size)}. It was written beside it, read back in a fresh "
        "process and deleted; nothing was trained."
    )


@contextmanager
def _elsewhere(job: J) -> Iterator[J]:
    """The job with an output of its own, beside the real one, that is deleted in the end."""
    parent = job.output.absolute().parent
    while not parent.is_dir():
        parent = parent.parent
    with passing_folder(".secateur-dry-run-", parent) as folder:
        yield replace(job, config=replace(job.config, output=str(folder / "result"), overwrite=False))
