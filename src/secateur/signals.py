"""SIGTERM as tidy as Ctrl-C: what is half-written is cleaned up on the way out, and the exit code says so."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """The process was asked to end; clean-up that an interrupt gets, this gets too."""

    exit_code = 128 + signal.SIGTERM


@contextmanager
def terminated_tidily() -> Iterator[None]:
    """SIGTERM raises `Terminated` in here; training has a handler of its own, which saves first.

    A parent that ignores it, or has its own, is left alone.
    """
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated
