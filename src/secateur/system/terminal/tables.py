"""Tables, and words that hold some: drawn in a terminal (rich), aligned plain text for pipes and files."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, TextIO

from .screen import columns_of, is_terminal
from .streams import Heard, on_one_line, safe

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

GAP = 2
"""Columns between two columns."""
FOLDED = 16
"""A column of words is not folded to less."""
FIGURE = 6
"""Least width of a column of figures, whose header may be longer."""
WARNING = ("warning:", "WARNING:", "failed:")


@dataclass(frozen=True)
class Table:
    """Rows under a header; whatever stands in a cell stays on its line.

    `align` has a letter a column: `l` for words, which may be folded, `r` for figures. By default the first is words.
    """

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    align: str = ""

    @cached_property
    def head(self) -> tuple[str, ...]:
        """The header as it is shown; nothing where it says nothing."""
        cells = tuple(map(on_one_line, self.header))
        return cells if any(cells) else ()

    @cached_property
    def body(self) -> list[tuple[str, ...]]:
        """The rows as they are shown."""
        return [tuple(map(on_one_line, line)) for line in self.rows]

    @property
    def lines(self) -> list[tuple[str, ...]]:
        """The header, where there is one, and the rows."""
        return [self.head, *self.body] if self.head else self.body

    @cached_property
    def widths(self) -> list[int]:
        """Of each column, in columns of a terminal."""
        return [max(map(width, column)) for column in zip(*self.lines, strict=True)]

    def aligned(self, column: int) -> str:
        """`l` or `r`."""
        return self.align[column] if self.align else "l" if column == 0 else "r"

    def __str__(self) -> str:
        """Plain text, a row a line."""
        return "\n".join(
            (" " * GAP)
            .join(
                pad(cell, wide, self.aligned(column))
                for column, (cell, wide) in enumerate(zip(line, self.widths, strict=True))
            )
            .rstrip()
            for line in self.lines
        )


class Words(str):
    """What a command says: plain text to everyone, and `tell` draws the tables in it.

    Made of blocks, each a line or more; between two of them stands a line end. `plain`: what all others get instead.
    """

    __slots__ = ("blocks",)
    blocks: tuple[str | Table, ...]

    def __new__(cls, *blocks: str | Table, plain: str | None = None) -> Self:
        words = super().__new__(cls, "\n".join(map(str, blocks)) if plain is None else plain)
        words.blocks = tuple(part for block in blocks for part in getattr(block, "blocks", (block,)))
        return words


def spaced(parts: Iterable[Iterable[str | Table]]) -> Words:
    """Parts of several blocks, with an empty line between two of them."""
    blocks: list[str | Table] = []
    for part in filter(None, map(list, parts)):
        blocks += ["", *part] if blocks else part
    return Words(*blocks)


def tell(words: str) -> None:
    """Print to stdout: to a terminal with its tables drawn and lines broken between words, elsewhere as it is."""
    stream = sys.stdout
    if not isinstance(words, Words) or not is_terminal(stream):
        print(words)
        return
    console = console_of(stream, columns_of(stream))
    for block in words.blocks:
        for part in drawn(block, console.width) if isinstance(block, Table) else prose(block):
            console.print(part)
    stream.flush()


def console_of(stream: TextIO, columns: int) -> "Console":
    """A terminal to draw on; what is drawn must be `safe`, for its own sequences have to pass."""
    from rich.console import Console

    file: TextIO = stream.raw if isinstance(stream, Heard) else stream
    while isinstance(file, Heard):
        file = file.raw
    heard: TextIO = Heard(file)  # type: ignore[assignment]
    return Console(file=heard, width=max(1, columns), force_terminal=True, force_jupyter=False, highlight=False)


def prose(text: str) -> "Iterable[Any]":
    """Lines that are broken between words, each under its own indentation: rich's `Text`, or `Padding` around it."""
    from rich.padding import Padding
    from rich.text import Text

    for line in safe(text).expandtabs().split("\n"):
        said = line.lstrip(" ")
        style = "yellow" if said.startswith(WARNING) else "bold" if said == line and said.endswith(":") else ""
        part = Text(said, style=style, overflow="fold")
        yield Padding(part, (0, 0, 0, len(line) - len(said)), expand=False) if len(said) < len(line) else part


def drawn(table: Table, columns: int) -> "Iterable[RenderableType]":
    """A table for a terminal of so many columns: words are folded; where that is not enough, a row becomes a block."""
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    widths = fitted(table, columns)
    if widths is None:
        yield from stacked(table, columns)
        return
    grid = Grid(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0), show_header=bool(table.head),
        header_style="bold", border_style="dim",
    )  # fmt: skip
    for column, (cell, wide) in enumerate(zip(table.head or [""] * len(widths), widths, strict=True)):
        left = table.aligned(column) == "l"
        grid.add_column(Text(cell, overflow="fold"), width=wide, justify="left" if left else "right")
    for line in table.body:
        grid.add_row(*(Text(cell, overflow="fold") for cell in line))
    yield grid


def fitted(table: Table, columns: int) -> list[int] | None:
    """A width for each column, that of its content where there is room, and else that of its longest word; None where
    it cannot be had."""
    wanted = table.widths
    figures = [max(map(width, column)) for column in zip(*table.body, strict=True)] or wanted
    least = [
        min(wide, FOLDED if table.aligned(column) == "l" else max(FIGURE, figures[column]))
        for column, wide in enumerate(wanted)
    ]
    spare = columns - GAP * (len(wanted) - 1) - sum(least)
    if spare < 0:
        return None
    for column, cells in enumerate(zip(*table.lines, strict=True)):
        if table.aligned(column) == "l":
            word = max(width(word) for cell in cells for word in [*cell.split(), ""])
            more = min(spare, max(0, word - least[column]))
            least[column], spare = least[column] + more, spare - more
    lacking = [wide - low for wide, low in zip(wanted, least, strict=True)]
    found = [low + min(lack, spare * lack // max(1, sum(lacking))) for low, lack in zip(least, lacking, strict=True)]
    left = columns - GAP * (len(wanted) - 1) - sum(found)
    for column, wide in enumerate(wanted):
        more = min(left, wide - found[column])
        found[column], left = found[column] + more, left - more
    return found


def stacked(table: Table, columns: int) -> "Iterable[RenderableType]":
    """Each row as a block: its first cell, and below it the others with their headers."""
    from rich.padding import Padding
    from rich.text import Text

    indent = GAP if columns > FIGURE else 0
    for line in table.body:
        for column, (name, cell) in enumerate(zip(table.head or [""] * len(line), line, strict=True)):
            said = Text(f"{name}: " if name else "", style="dim", overflow="fold")
            said.append(cell.strip(), style="not dim" if column else "bold not dim")
            if cell or not column:
                yield Padding(said, (0, 0, 0, indent if column else 0), expand=False)


def width(text: str) -> int:
    """Columns of a terminal that a text takes: wide letters two, those that combine none."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def pad(text: str, wide: int, align: str) -> str:
    """A text of `wide` columns."""
    blanks = " " * (wide - width(text))
    return text + blanks if align == "l" else blanks + text
