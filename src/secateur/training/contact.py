"""Several processes train together; when one ends or hangs, the others say so and how to go on."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import distributed as dist

from ..parallel.distributed import processes
from ..system.errors import LostProcessError, SecateurError
from ..system.launcher import rank
from .checkpoints import find_latest
from .job import Job

SIGNS = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "timed out")
"""What the libraries under torch.distributed say when another process no longer answers."""


@contextmanager
def contact_kept(job: Job) -> Iterator[None]:
    """Turn a broken or silent connection into a message with the way on.

    Raises:
        LostProcessError: the other processes cannot be reached.
    """
    try:
        yield
    except SecateurError:
        raise
    except RuntimeError as error:
        if not is_lost(error):
            raise
        last, _ = find_latest(job.work)
        on = (
            f"The same command with --resume goes on from {last.name}."
            if last
            else "No checkpoint is complete, so it starts anew (--save-steps writes some)."
        )
        raise LostProcessError(
            f"process {rank()} of {processes()} stops: another one ended, or did not answer for "
            f"--process-timeout {job.config.process_timeout} s ({' '.join(str(error).split())[:160]}). {on}"
        ) from error


def is_lost(error: RuntimeError) -> bool:
    """Whether an error of a collective means that another process is not there any more."""
    words = str(error).lower()
    return processes() > 1 and (isinstance(error, dist.DistError) or any(sign in words for sign in SIGNS))
