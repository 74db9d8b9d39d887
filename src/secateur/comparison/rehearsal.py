"""`compare --dry-run`: every cell that prunes or makes zeros, without its training."""

from collections.abc import Mapping

from ..parallel.distributed import Share
from ..runs.dry import dry_prune, dry_sparsify
from ..runs.sparsify.job import SparsifyJob
from ..system.progress import Progress
from ..training.job import Job
from ..training.prepare import PruneJob


def rehearsed(jobs: Mapping[str, Job], share: Share) -> str:
    """What each cell would write; the first of several processes does them all, and nothing is recorded.

    Args:
        jobs: cell's name -> its checked job.
    Raises:
        InputError, VerificationError: of the first cell that could not be written.
    """
    if share.number > 0:
        return ""
    return "\n".join(f"== {name}: {_dry(job)}" for name, job in jobs.items())


def _dry(job: Job) -> str:
    progress = Progress(job.total_steps)
    if isinstance(job, SparsifyJob):
        return dry_sparsify(job, progress)
    assert isinstance(job, PruneJob)
    return dry_prune(job, progress)
