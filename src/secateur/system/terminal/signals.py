"""SIGTERM and a hang-up as tidy as Ctrl-C: what is half-written is cleaned up, and the exit code says what came."""

import os
import signal
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from ..launcher import launched

HANG_UP = getattr(signal, "SIGHUP", None)
"""The terminal is gone; Windows has no signal for it."""
STOPPING = tuple(number for number in (signal.SIGINT, signal.SIGTERM, HANG_UP) if number is not None)


class Terminated(KeyboardInterrupt):
    """The process was asked to end; clean-up that an interrupt gets, this gets too."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.exit_code = 128 + number


def exit_code_of(error: KeyboardInterrupt) -> int:
    """What a shell expects of a process that such a signal ended."""
    return error.exit_code if isinstance(error, Terminated) else 128 + signal.SIGINT


@contextmanager
def terminated_tidily() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `Terminated` in here; training has a handler of its own, which saves first.

    A caller's own handler is left alone, and a hang-up that `nohup` ignores stays ignored. So is the default where a
    launcher started several processes: one that waits for the others in a collective operation would not come to a
    handler of Python's.
    """
    main = threading.current_thread() is threading.main_thread() and launched() == 1
    ours = [number for number in STOPPING[1:] if main and signal.getsignal(number) == signal.SIG_DFL]
    for number in ours:
        signal.signal(number, stop_at_once)
    try:
        yield
    finally:
        for number in ours:
            if signal.getsignal(number) is stop_at_once:
                signal.signal(number, signal.SIG_DFL)


def stop_at_once(number: int, frame: FrameType | None = None) -> NoReturn:
    """The handler that ends what is under way.

    Raises:
        KeyboardInterrupt: always; of a class that knows the signal.
    """
    mute_after(number)
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)


def mute_after(number: int) -> None:
    """After a hang-up nobody reads the terminal, and writing to it is an error that would hinder the clean-up."""
    if number != HANG_UP:
        return
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        with suppress(OSError):  # it may be closed
            if stat.S_ISCHR(os.fstat(stream).st_mode):  # a terminal; one that is gone denies it
                os.dup2(silence, stream)
    os.close(silence)
