"""Results for people: tables for notebooks, figures by matplotlib, which is imported here alone and when asked."""

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from ..system.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE = (9.0, 7.0)
"""Inches."""


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """An HTML table that a notebook styles; every cell is escaped."""
    head = Markup("").join(Markup("<th>{}</th>").format(name) for name in header)
    body = Markup("").join(
        Markup("<tr><th>{}</th>{}</tr>").format(
            row[0], Markup("").join(Markup("<td>{}</td>").format(cell) for cell in row[1:])
        )
        for row in rows
    )
    return str(
        Markup("<table><caption>{}</caption><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(
            escape(caption), head, body
        )
    )


def drawn(draw: Callable[["Figure"], None], size: tuple[float, float] = SIZE) -> "Figure":
    """A figure that `draw` has drawn into.

    Raises:
        InputError: there is no matplotlib.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("plot() draws with matplotlib, which is not installed: pip install matplotlib.") from None
    from ..report import plots

    with matplotlib.rc_context(plots.RC):
        if "ipykernel" in sys.modules:  # a notebook shows figures as soon as pyplot has told it how
            from matplotlib import pyplot

            figure = pyplot.figure(figsize=size, layout=plots.LAYOUT)
            pyplot.close(figure)  # or it is shown twice: as a figure that is open, and as the cell's value
        else:
            figure = Figure(figsize=size, layout=plots.LAYOUT)
        draw(figure)
    return figure
