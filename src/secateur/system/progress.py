"""The live view of a job: a line with a bar or a spinner in a terminal, plain lines elsewhere (rich)."""

import atexit
import math
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from .launcher import rank
from .signals import Heard

if TYPE_CHECKING:  # 0.05 s that `secateur --help` does not need
    from rich.console import Console, RenderableType
    from rich.live import Live

ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|.)?|[\x00-\x08\x0b-\x1f\x7f-\x9f]")

COUNTING_SECONDS = 60.0
"""Least time between plain lines that say how far a measurement or the like is."""
SILENT_SECONDS = 2.0
"""What lasts longer says its name where there is no live line."""
BAR = 12
"""Least columns of a bar; where there is less room, there is none."""
WIDEST_BAR = 40


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


class Escaping(Heard):
    """A stream whose text loses its control sequences; everything else is the stream's own."""

    def write(self, text: str) -> int:
        return super().write(safe(text))


@dataclass(frozen=True)
class Line:
    """What there is to say, the most important first, with a bar, or a spinner where no end is known."""

    parts: tuple[str, ...]
    done: int = 0
    total: int = 0


class Screen:
    """What a stream shows: lines, and below them, in a terminal, one that lives."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = Heard(stream)
        self.is_live = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._of = stream
        self._console: Console | None = None
        self._live: Live | None = None
        self._shown: list[Line] = []

    @staticmethod
    def of_errors() -> "Screen":
        """That of the standard error stream, of which there is one."""
        stream = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
        if not SCREENS or SCREENS[-1]._of is not stream:
            SCREENS[:] = [Screen(stream)]
        return SCREENS[-1]

    def message(self, text: str) -> None:
        """A line of its own."""
        if self._live is None:
            self.stream.write(safe(text) + "\n")
            self.stream.flush()
        else:
            self._live.console.print(safe(text), soft_wrap=True, markup=False, emoji=False)

    def show(self, line: Line) -> None:
        """Let `line` be the one that lives."""
        self._shown[-1:] = [line]
        self._refresh()

    @contextmanager
    def over(self, line: Line) -> Iterator[None]:
        """`line` is the one that lives in here, in place of the one that was."""
        self._shown.append(line)
        self._refresh()
        try:
            yield
        finally:
            self._shown.pop()
            self._refresh()

    def columns(self) -> int:
        """Width of the terminal behind the stream; rich's looks at stdout, which may be a pipe when stderr is not."""
        try:
            own = os.get_terminal_size(self.stream.fileno()).columns
        except (OSError, ValueError):  # ValueError: a stream without a file descriptor
            own = 0
        return own or shutil.get_terminal_size().columns

    def close(self) -> None:
        """Leave the line that lives where it is."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            atexit.unregister(self.close)
        self._shown.clear()
        self.stream.flush()

    def _refresh(self) -> None:
        if not self.is_live:
            return
        if not self._shown:
            if self._live is not None:
                self._live.transient = True
                self.close()
            return
        columns = max(1, self.columns() - 1)
        live = self._live or self._started()
        live.console.width = columns
        live.update(drawn(self._shown[-1], columns), refresh=True)

    def _started(self) -> "Live":
        from rich.console import Console
        from rich.live import Live

        if self._console is None:
            file: Any = self.stream
            self._console = Console(file=file, force_terminal=True, force_jupyter=False, highlight=False)
        # What is printed goes to stdout, which may be a file; what others write to stderr goes above the line.
        self._live = Live(console=self._console, redirect_stdout=False, vertical_overflow="crop")
        atexit.register(self.close)  # the cursor is hidden until then
        self._live.start()
        return self._live


SCREENS: list[Screen] = []


@contextmanager
def phase(name: str) -> Iterator[None]:
    """What may last for more than two seconds: a spinner with its name, elsewhere a line once it does.

    Of several processes the first one speaks; within another phase the inner one is shown."""
    if rank() > 0:
        yield
        return
    screen = Screen.of_errors()
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
        parts = [f"step {step:{width}}/{self.total_steps}", f"loss {loss:.3f}", state, f"{tokens_per_s:.0f} tok/s"]
        parts += [f"{human_seconds(seconds_left)} left", f"lr {lr:.1e}"]
        if self.live:
            self.screen.show(Line(tuple(parts), step, self.total_steps))
        elif step in (1, self.total_steps) or time.monotonic() - self._shown_at >= self.every_seconds:
            self._shown_at = time.monotonic()
            self.screen.message("  ".join(parts))
        if step == self.total_steps:
            self.close()

    def measuring(self) -> Callable[[int, int], None]:
        """`counting` the segments of a text."""
        return self.counting("measuring perplexity", "segments")

    def counting(self, doing: str, units: str) -> Callable[[int, int], None]:
        """For what is done piece by piece to call with the pieces that are done and all of them.

        A live line until all are, in place of the one that was there; elsewhere a line a minute.
        """
        screen, started = self.screen, time.monotonic()
        shown_at, over = started, None

        def show(done: int, total: int) -> None:
            nonlocal shown_at, over
            now = time.monotonic()
            left = human_seconds((now - started) / done * (total - done))
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


def drawn(line: Line, columns: int) -> "RenderableType":
    """A line for a terminal of so many columns: where it is narrow, first the bar goes, then the last parts."""
    from rich.progress_bar import ProgressBar
    from rich.spinner import Spinner
    from rich.table import Table
    from rich.text import Text

    said = [safe(part) for part in line.parts]
    while len(said) > 1 and len("  ".join(said)) >= columns:
        said.pop()
    text = Text("  ".join(said), no_wrap=True, overflow="crop")
    if not line.total:
        return Spinner("dots", text)
    room = columns - len(text.plain) - 2
    if room < BAR:
        return text
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_row(ProgressBar(total=line.total, completed=line.done, width=min(room, WIDEST_BAR)), text)
    return grid
