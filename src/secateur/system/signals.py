"""SIGTERM as tidy as Ctrl-C: what is half-written is cleaned up on the way out, and the exit code says so."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .launcher import launched


class Terminated(KeyboardInterrupt):
    """The process was asked to end; clean-up that an interrupt gets, this gets too."""

    exit_code = 128 + signal.SIGTERM


@contextmanager
def terminated_tidily() -> Iterator[None]:
    """SIGTERM raises `Terminated` in here; training has a handler of its own, which saves first.

    A caller's own handler is left alone. So is the default where a launcher started several processes: one that waits
    for the others in a collective operation would not come to a handler of Python's.
    """
    main = threading.current_thread() is threading.main_thread()
    ours = main and launched() == 1 and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        if ours and signal.getsignal(signal.SIGTERM) is _terminate:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated
