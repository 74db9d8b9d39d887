"""A result as one picture: what `result.plot()` draws."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from ..report import plots, sizes, units
from .runs import Run, number

NO_RECORD = "no record of it"


def draw_run(run: Run, figure: Figure) -> None:
    """Loss, sparsity (or rank) and, below, what is left of each kind of unit in each layer."""
    parts: Any = figure.subfigures(2, 1, height_ratios=(2, 1))
    plots.training(run.metrics, [cut.step for cut in units.cuts(run)], parts[0])
    draw_layers(units.layers(run), parts[1])


def draw_layers(found: dict[str, list[units.Cell]], figure: Any) -> None:
    """A row for each kind of unit, a column for each layer; the fuller the colour, the more is left."""
    axes = figure.subplots()
    axes.set_title("What is left in each layer (full colour: all)")
    axes.grid(False)
    places = units.layer_rows(found)
    if not places:
        axes.set_axis_off()
        axes.text(0, 0.5, NO_RECORD)
        return
    for row in range(len(found)):
        for column, (_, line) in enumerate(places):
            if (cell := line[row]) is not None:
                box = {"height": 0.8, "width": 0.9, "edgecolor": plots.LINE, "linewidth": 0.6}
                axes.barh(row, left=column - 0.45, color="none", **box)
                axes.barh(row, left=column - 0.45, color=plots.SERIES[0], alpha=cell.share, **box)
    said = [f"{kind}\n{units.share_left(cells):.0%} of all" for kind, cells in found.items()]
    axes.set_yticks(range(len(found)), said, fontsize=9)
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.set_xlim(-0.6, len(places) - 0.4)
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda x, _: str(places[int(x)][0]) if 0 <= x < len(places) and x == int(x) else "")
    )
    for side in axes.spines.values():
        side.set_visible(False)


def draw_panels(points: Sequence[tuple[str, list[sizes.Point]]], figure: Figure) -> None:
    """Quality against parameters, a panel for each text: (label, its models)."""
    if not points:
        _nothing(figure.subplots())
        return
    for (label, models), part in zip(points, _column(figure, len(points)), strict=True):
        sizes.draw_sizes(models, label, False, part)


def draw_figures(bars: Sequence[tuple[str, list[tuple[str, float, float | None]], bool]], figure: Figure) -> None:
    """A panel of bars for each measure: (label, (model, value, standard error) each, whether it is a share of 1)."""
    if not bars:
        _nothing(figure.subplots())
        return
    for (label, models, share), part in zip(bars, _column(figure, len(bars)), strict=True):
        axes = part.subplots()
        for row, (name, value, error) in enumerate(models):
            axes.barh(row, value, height=0.6, color=plots.SERIES[row % len(plots.SERIES)], xerr=error, ecolor=plots.INK)
            shown = f"{value:.1%}" if share else f"{value:.2f}"
            axes.annotate(shown, (value + (error or 0), row), xytext=(6, 0), textcoords="offset points", va="center")
            axes.annotate(name, (0, row), xytext=(0, 13), textcoords="offset points", va="bottom", fontsize=9)
        axes.set_title(label)
        axes.set_yticks([])
        axes.set_ylim(len(models) - 0.4, -0.9)
        axes.margins(x=0.15)
        axes.grid(False)
        if share:
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def sized(name: str, record: Any, value: float | None, run: int | None) -> sizes.Point | None:
    """A model in `draw_panels`; None where its size or figure is not known."""
    parameters = number(record, "parameters")
    return None if not parameters or value is None else sizes.Point(name, parameters, value, run)


def _column(figure: Figure, parts: int) -> list[Any]:
    """So many parts of a figure, one below the other."""
    found = figure.subfigures(parts, 1, squeeze=False)
    return [row[0] for row in found]


def _nothing(axes: Axes) -> None:
    axes.set_axis_off()
    axes.text(0, 0.5, NO_RECORD)
