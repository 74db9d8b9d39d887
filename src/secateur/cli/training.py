"""The commands that train: checked, run, or found done; what they say at the end."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..config.adapt import AdaptConfig
from ..config.prune import PruneConfig
from ..config.sparsify import SparsifyConfig
from ..system.progress import phase

if TYPE_CHECKING:
    from ..system.progress import Progress

STARTING = "starting"
"""Importing torch and transformers takes seconds on a cold disk."""


def prune(config: PruneConfig) -> int:
    """`secateur prune`."""
    with phase(STARTING):
        from ..runs.prune import prune
        from ..runs.summary import run_summary
        from ..training.prepare import prepare

    if config.dry_run:
        from ..runs.dry import dry_prune

        return _rehearsed(prepare(config), dry_prune)
    return _trained(config, prepare, prune, run_summary)


def adapt(config: AdaptConfig) -> int:
    """`secateur adapt`."""
    with phase(STARTING):
        from ..runs.adapt import adapt, prepare_adapt
        from ..runs.summary import adapt_summary

    if config.dry_run:
        from ..runs.dry import dry_adapt

        return _rehearsed(prepare_adapt(config), dry_adapt)
    return _trained(config, prepare_adapt, adapt, adapt_summary)


def sparsify(config: SparsifyConfig) -> int:
    """`secateur sparsify`."""
    with phase(STARTING):
        from ..runs.sparsify.command import sparsify
        from ..runs.sparsify.job import prepare_sparsify
        from ..runs.summary import sparsify_summary

    if config.dry_run:
        from ..runs.dry import dry_sparsify

        return _rehearsed(prepare_sparsify(config), dry_sparsify)
    return _trained(config, prepare_sparsify, sparsify, sparsify_summary)


def _rehearsed(job: Any, run: Callable[[Any, "Progress"], str]) -> int:
    """A prepared job without its training; of several processes the first one does it."""
    from ..runs.push import check_hub
    from ..system.launcher import rank
    from ..system.progress import Progress

    check_hub(job.config)
    if rank() == 0:
        print(run(job, Progress(job.total_steps)))
    return 0


def _trained(
    config: Any,
    prepare: Callable[[Any], Any],
    run: Callable[[Any, "Progress"], dict[str, Any]],
    words: Callable[[dict[str, Any]], str],
) -> int:
    """Check a run and run it, or say that it was done; of several processes the first one speaks."""
    from ..parallel.distributed import leave
    from ..runs.push import check_hub, closing_lines
    from ..runs.resumed import finished, going_on
    from ..system.launcher import rank
    from ..system.progress import Progress

    if (result := finished(config)) is not None:
        if rank() == 0:
            print(f"the result is complete in {config.output}: nothing is left to do")
            print(words(result))
            print(closing_lines(result, config))
        return 0
    check_hub(config)
    job = prepare(going_on(config))
    if rank() > 0:
        with open(os.devnull, "w", encoding="utf-8") as silence:
            run(job, Progress(job.total_steps, silence))
        leave()
        return 0
    result = run(job, Progress(job.total_steps))
    leave()
    print(words(result))
    print(closing_lines(result, config))
    return 0
