"""The live view of a job: a line with a bar or a spinner in a terminal, plain lines elsewhere."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TextIO

from .launcher import rank
from .terminal.screen import Line, Screen
from .terminal.streams import on_one_line

COUNTING_SECONDS = 60.0
"""Least time between plain lines that say how far a measurement or the like is."""
STARTING = "starting"
"""Importing torch and transformers takes seconds on a cold disk."""
SILENT_SECONDS = 2.0
"""What lasts longer says its name where there is no live line."""


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


@contextmanager
def phase(name: str) -> Iterator[None]:
    """What may last for more than two seconds: a spinner with its name, elsewhere a line once it does.

    Of several processes the first one speaks; within another phase the inner one is shown."""
    if rank() > 0:
        yield
        return
    screen, name = Screen.of_errors(), on_one_line(name)
    if screen.is_live:
        with screen.over(Line((f"{name} ...",))):
            yield
        return
    late = threading.Timer(SILENT_SECONDS, screen.message, (f"{name} ...",))
    late.daemon = True
    late.start()
    try:
        yield
    finally:
        late.cancel()


def cutting() -> AbstractContextManager[None]:
    """The phase of a cut, with its search and its refit."""
    return phase("cutting")


class Progress:
    """Shows a run's steps.

    Args:
        total_steps: optimiser steps of the run.
        stream: where to write; a terminal gets a live line.
        every_seconds: least time between plain lines.
    """

    def __init__(self, total_steps: int, stream: TextIO | None = None, every_seconds: float = 5.0) -> None:
        self.total_steps = total_steps
        self.screen = Screen(stream) if stream is not None else Screen.of_errors()
        self.every_seconds = every_seconds
        self.live = self.screen.is_live
        self._shown_at = -float("inf")

    def message(self, text: str) -> None:
        """A line of its own."""
        self.screen.message(text)

    def told(self, text: str | None) -> None:
        """`message`, where there is something to say."""
        if text:
            self.message(text)

    def begin(self, step: int) -> None:
        """Show in a terminal that the steps after `step` are on their way: the first may take long."""
        if self.live:
            self.screen.show(Line((f"step {step}/{self.total_steps}",), step, self.total_steps))

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
        parts = [f"step {step:{width}}/{self.total_steps}", f"loss {loss:.3f}", state]
        speed, left, rate = f"{tokens_per_s:.0f} tok/s", f"{human_seconds(seconds_left)} left", f"lr {lr:.1e}"
        if self.live:  # where there is little room, the last go
            self.screen.show(Line((*parts, left, speed, rate), step, self.total_steps))
        elif step in (1, self.total_steps) or time.monotonic() - self._shown_at >= self.every_seconds:
            self._shown_at = time.monotonic()
            self.screen.message("  ".join([*parts, speed, left, rate]))
        if step == self.total_steps:
            self.close()

    def measuring(self) -> Callable[[int, int], None]:
        """`counting` the segments of a text."""
        return self.counting("measuring perplexity", "segments")

    def counting(self, doing: str, units: str) -> Callable[[int, int], None]:
        """For what is done piece by piece to call with the pieces that are done and all of them.

        A live line until all are, in place of the one that was there; elsewhere a line a minute. It may be told of 0
        when it begins. Of several processes the first one speaks.
        """
        if rank() > 0:
            return lambda done, total: None
        screen, started = self.screen, time.monotonic()
        shown_at, over = started, None

        def show(done: int, total: int) -> None:
            nonlocal started, shown_at, over
            now = time.monotonic()
            if not done:
                started = shown_at = now
            left = human_seconds((now - started) / done * (total - done) if done else math.inf)
            parts = (doing, f"{done} of {total} {units}", f"{left} left")
            if screen.is_live:
                if over is None:
                    over = screen.over(Line(()))
                    over.__enter__()
                screen.show(Line(parts, done, total))
                if done >= total:
                    over.__exit__(None, None, None)
                    over = None
            elif done < total and now - shown_at >= COUNTING_SECONDS:
                shown_at = now
                screen.message(f"{doing}: {', '.join(parts[1:])}")

        return show

    def close(self) -> None:
        """Leave the last live line where it is."""
        self.screen.close()
