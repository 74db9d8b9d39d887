"""Memory: the process's peak, as the operating system counts it, and what to do when there is no more."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from ..system.errors import OutOfMemoryError, SecateurError, out_of_memory

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak() -> int:
    """Start a new peak; -> bytes resident now. Where the system cannot (not Linux), the old peak stays."""
    try:
        CLEAR.write_text("5", encoding="utf-8")
    except OSError:
        return peak_bytes()
    return _status("VmRSS") or peak_bytes()


def peak_bytes() -> int:
    """The most bytes that were resident since the last reset.

    Windows keeps the process's own peak; elsewhere off Linux nothing does for the asking, and it is what is resident.
    """
    if (linux := _status("VmHWM")) is not None:
        return linux
    memory = psutil.Process().memory_info()
    return int(getattr(memory, "peak_wset", memory.rss))


def _status(key: str) -> int | None:
    try:
        lines = STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(key + ":")]
    return int(found[0]) * 1024 if found else None


@contextmanager
def memory_for(part: str, remedy: str) -> Iterator[None]:
    """Memory that runs out in here is reported as needed by `part`.

    Raises:
        OutOfMemoryError: with the part and the remedy.
    """
    try:
        yield
    except SecateurError:
        raise
    except Exception as error:  # who maps a file of weights has errors of its own
        if not out_of_memory(error):
            raise
        raise OutOfMemoryError(f"out of memory while {part}. {remedy}") from error


TRAIN_LESS = (
    "Raise --accumulation (smaller micro-batches), lower --batch-size or --seq-len, pass --gradient-checkpointing, or "
    "hold the base in --load-in 8bit or 4bit; then a lower --rank or a smaller model. A run with --save-steps goes on "
    "with --resume."
)
"""What makes a step smaller."""
LOAD_LESS = (
    "Where the command has it, hold the base in --load-in 8bit or 4bit; else choose a smaller model, or a device with "
    "more memory."
)
WRITE_LATER = (
    "Training is done: with --save-steps, the same command with --resume on a machine with more memory writes it."
)
