"""The live view of a run: one line that is rewritten in a terminal, plain lines elsewhere."""

import errno
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|.)?|[\x00-\x08\x0b-\x1f\x7f-\x9f]")

COUNTING_SECONDS = 60.0
"""Least time between plain lines that say how far a measurement or the like is."""


def human_count(number: float) -> str:
    """134515008 -> `134.5M`."""
    for size, unit, least in ((1e9, "B", 999.95e6), (1e6, "M", 999.95e3), (1e3, "k", 999.5)):
        if number >= least:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"


def human_bytes(number: float) -> str:
    """269060552 -> `269.1 MB` (decimal units)."""
    for size, unit, least in ((1e12, "TB", 999.95e9), (1e9, "GB", 999.95e6), (1e6, "MB", 999.95e3), (1e3, "kB", 999.5)):
        if number >= least:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f} B"


def megabytes(number: float) -> str:
    """Room on a disk: 230000 -> `0.23 MB`, from a gigabyte on as `human_bytes`."""
    return human_bytes(number) if number >= 1e9 else f"{number / 1e6:.3g} MB"


def human_seconds(seconds: float) -> str:
    """130 -> `2m10s`; `?` for what is not finite."""
    if not math.isfinite(seconds):
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{whole % 60:02}s"


def safe(text: str) -> str:
    """Text from data or models without terminal control sequences."""
    return ESCAPES.sub("", text)


class Heard:
    """A stream whose terminal may go away: writing to it is then no error, and a run can save before it stops."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with _gone_is_fine():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with _gone_is_fine():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Escaping(Heard):
    """A stream whose text loses its control sequences; everything else is the stream's own."""

    def write(self, text: str) -> int:
        return super().write(safe(text))


@contextmanager
def _gone_is_fine() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise


class Progress:
    """Shows a run's steps.

    Args:
        total_steps: optimiser steps of the run.
        stream: where to write; a terminal gets a live line.
        every_seconds: least time between plain lines.
    """

    def __init__(self, total_steps: int, stream: TextIO | None = None, every_seconds: float = 5.0) -> None:
        self.total_steps = total_steps
        self.stream = Heard(stream if stream is not None else sys.stderr)
        self.every_seconds = every_seconds
        self.live = self.stream.isatty() and os.environ.get("TERM") != "dumb"
        self._shown_at = -float("inf")
        self._line = ""

    def message(self, text: str) -> None:
        """A line of its own."""
        self._clear()
        self.stream.write(safe(text) + "\n")
        self._redraw()

    event = message

    def told(self, text: str | None) -> None:
        """`message`, where there is something to say."""
        if text:
            self.message(text)

    def update(
        self,
        step: int,
        *,
        loss: float,
        lr: float,
        state: str,
        tokens_per_s: float,
        seconds_left: float,
    ) -> None:
        """Show where the run is after `step`; `state` says how much has gone."""
        width = len(str(self.total_steps))
        line = (
            f"step {step:{width}}/{self.total_steps}  loss {loss:.3f}  {state}  {tokens_per_s:.0f} tok/s  "
            f"{human_seconds(seconds_left)} left  lr {lr:.1e}"
        )
        if self.live:
            self._live(line)
        elif step in (1, self.total_steps) or time.monotonic() - self._shown_at >= self.every_seconds:
            self._shown_at = time.monotonic()
            self._plain(line)
        if step == self.total_steps:
            self.close()

    def measuring(self) -> Callable[[int, int], None]:
        """`counting` the segments of a text."""
        return self.counting("measuring perplexity", "segments")

    def counting(self, doing: str, units: str) -> Callable[[int, int], None]:
        """For what is done piece by piece to call with the pieces that are done and all of them.

        A live line until all are, in place of the one that was there; elsewhere a line a minute.
        """
        before, started = self._line, time.monotonic()
        shown_at = started

        def show(done: int, total: int) -> None:
            nonlocal shown_at
            now = time.monotonic()
            left = human_seconds((now - started) / done * (total - done))
            line = f"{doing}: {done} of {total} {units}, {left} left"
            if self.live:
                self._live(line if done < total else before)
            elif done < total and now - shown_at >= COUNTING_SECONDS:
                shown_at = now
                self._plain(line)

        return show

    def close(self) -> None:
        """Leave the last live line where it is."""
        if self.live and self._line:
            self.stream.write("\n")
            self._line = ""
        self.stream.flush()

    def _live(self, line: str) -> None:
        self._clear()
        self._line = line
        self._redraw()

    def _plain(self, line: str) -> None:
        self.stream.write(line + "\n")
        self.stream.flush()

    def _clear(self) -> None:
        if self.live and self._line:
            self.stream.write("\r\x1b[K")

    def _redraw(self) -> None:
        if self.live and self._line:
            self.stream.write(self._line[: max(1, _columns(self.stream) - 1)])
        self.stream.flush()


def _columns(stream: Heard) -> int:
    """Width of the terminal behind `stream`; shutil's looks at stdout, which may be a pipe when stderr is not."""
    try:
        own = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):  # ValueError: a stream without a file descriptor
        own = 0
    return own or shutil.get_terminal_size().columns
