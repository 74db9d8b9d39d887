"""A stream as people see it: lines, and below them, in a terminal, one that lives (rich)."""

import atexit
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from .streams import Escaping, Heard, on_one_line, safe

if TYPE_CHECKING:  # 0.05 s that `secateur --help` does not need
    from rich.console import Console, RenderableType
    from rich.live import Live

BAR = 12
"""Least columns of a bar; where there is less room, there is none."""
WIDEST_BAR = 40


def is_terminal(stream: TextIO) -> bool:
    """Whether there is someone before it who sees more than plain lines."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def columns_of(stream: Any) -> int:
    """Width of the terminal behind a stream; rich's looks at stdout, which may be a pipe when stderr is not."""
    try:
        own = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError, AttributeError):  # a stream without a file descriptor
        own = 0
    return own or shutil.get_terminal_size().columns


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
        self.is_live = is_terminal(stream)
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

    @property
    def live(self) -> "Live | None":
        """The line that lives, if one does."""
        return self._live

    def message(self, text: str) -> None:
        """A line of its own, in a terminal broken between words."""
        if self.is_live:
            console = self._on()
            console.width = max(1, columns_of(self.stream))
            console.print(safe(text), overflow="fold")
        else:
            self.stream.write(safe(text) + "\n")
            self.stream.flush()

    def show(self, line: Line) -> None:
        """Let `line` be the one that lives."""
        self._shown[-1:] = [line]
        self._refresh()

    @contextmanager
    def over(self, line: Line) -> Iterator[None]:
        """`line` is the one that lives in here, in place of the one that was."""
        depth = len(self._shown)
        self._shown.append(line)
        self._refresh()
        try:
            yield
        finally:
            del self._shown[depth:]  # none, where it was closed meanwhile
            self._refresh()

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
        columns = max(1, columns_of(self.stream) - 1)
        live = self._live or self._started()
        live.console.width = columns
        live.update(drawn(self._shown[-1], columns), refresh=True)

    def _started(self) -> "Live":
        from rich.live import Live

        # What is printed goes to stdout, which may be a file; what others write to stderr goes above the line.
        self._live = Live(console=self._on(), redirect_stdout=False, vertical_overflow="crop")
        atexit.register(self.close)  # the cursor is hidden until then
        self._live.start()
        return self._live

    def _on(self) -> "Console":
        """What draws on the stream."""
        from rich.console import Console

        if self._console is None:
            file: Any = self.stream
            plain: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
            self._console = Console(file=file, force_terminal=True, force_jupyter=False, **plain)
        return self._console


SCREENS: list[Screen] = []


class Above(Escaping):
    """Standard output: what is printed goes above a line that lives in the same terminal."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._is_terminal = is_terminal(stream)
        self._begun = ""

    def write(self, text: str) -> int:
        live = SCREENS[-1].live if SCREENS and self._is_terminal else None
        if live is None:
            begun, self._begun = self._begun, ""
            return super().write(begun + text) - len(begun)
        *whole, self._begun = (self._begun + safe(text)).split("\n")
        for line in whole:
            live.console.print(line, soft_wrap=True)
        return len(text)

    def flush(self) -> None:
        if self._begun and not (SCREENS and SCREENS[-1].live):
            self.write("")
        super().flush()


def drawn(line: Line, columns: int) -> "RenderableType":
    """What is alive, for a terminal of so many columns.

    Where there is no room for all of it beside a bar, it takes two lines: below the bar and the first part the next
    ones, as many as fit, and of the rest what fits beside the bar. Where no end is known it is one, without the last.
    """
    from rich.console import Group
    from rich.spinner import Spinner
    from rich.text import Text

    said = [on_one_line(part) for part in line.parts]
    if not line.total:
        words, _ = _that_fit(said, columns - 1)
        return Spinner("dots", Text(words, no_wrap=True, overflow="crop"))
    upper, rest = _that_fit(said, columns - BAR - 2)
    if not rest:
        return _with_bar(upper, line, columns)
    lower, rest = _that_fit(said[1:], columns)
    upper, _ = _that_fit([said[0], *rest], columns - BAR - 2)
    return Group(_with_bar(upper, line, columns), Text(lower, no_wrap=True, overflow="crop"))


def _that_fit(parts: list[str], room: int) -> tuple[str, list[str]]:
    """The first of the parts, one at least, on one line; and the others."""
    count = len(parts)
    while count > 1 and len("  ".join(parts[:count])) > room:
        count -= 1
    return "  ".join(parts[:count]), parts[count:]


def _with_bar(words: str, line: Line, columns: int) -> "RenderableType":
    """Words with a bar before them, where there is room for one."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    text, room = Text(words, no_wrap=True, overflow="crop"), columns - len(words) - 2
    if room < BAR:
        return text
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_row(ProgressBar(total=line.total, completed=line.done, width=min(room, WIDEST_BAR)), text)
    return grid
