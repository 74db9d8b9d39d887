"""`compare --dry-run`: every cell that prunes, without its training."""

from collections.abc import Mapping

from ..parallel.distributed import Share
from ..runs.dry import dry_prune
from ..system.progress import Progress
from ..training.prepare import PruneJob


def rehearsed(jobs: Mapping[str, PruneJob], share: Share) -> str:
    """What each cell would write; the first of several processes does them all, and nothing is recorded.

    Args:
        jobs: cell's name -> its checked job.
    Raises:
        InputError, VerificationError: of the first cell that could not be written.
    """
    if share.number > 0:
        return ""
    lines = [f"== {name}: {dry_prune(job, Progress(job.total_steps))}" for name, job in jobs.items()]
    return "\n".join(lines)
