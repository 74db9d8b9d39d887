"""The commands that train: checked, run, or found done; what they say at the end."""

from ..config.adapt import AdaptConfig
from ..config.prune import PruneConfig
from ..config.sparsify import SparsifyConfig
from ..system.progress import STARTING, phase
from .running import rehearsed, trained


def prune(config: PruneConfig) -> int:
    """`secateur prune`."""
    with phase(STARTING):
        from ..runs.prune import prune
        from ..runs.summary import run_summary
        from ..training.prepare import prepare

    if config.dry_run:
        from ..runs.dry import dry_prune

        return rehearsed(config, prepare, dry_prune)
    return trained(config, prepare, prune, run_summary)


def adapt(config: AdaptConfig) -> int:
    """`secateur adapt`."""
    with phase(STARTING):
        from ..runs.adapt import adapt, prepare_adapt
        from ..runs.summary import adapt_summary

    if config.dry_run:
        from ..runs.dry import dry_adapt

        return rehearsed(config, prepare_adapt, dry_adapt)
    return trained(config, prepare_adapt, adapt, adapt_summary)


def sparsify(config: SparsifyConfig) -> int:
    """`secateur sparsify`."""
    with phase(STARTING):
        from ..runs.sparsify.command import sparsify
        from ..runs.sparsify.job import prepare_sparsify
        from ..runs.summary import sparsify_summary

    if config.dry_run:
        from ..runs.dry import dry_sparsify

        return rehearsed(config, prepare_sparsify, dry_sparsify)
    return trained(config, prepare_sparsify, sparsify, sparsify_summary)
