"""The plot of quality against size."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from ..report import plots
from ..system.progress import human_count

HEIGHT = 130
"""Typographic points between the highest and the lowest point of a plot."""


@dataclass(frozen=True)
class Point:
    """A model in the plot of quality against size."""

    name: str
    parameters: float
    value: float
    run: int | None
    """Which run, for its colour; None: the dense model."""


def draw_sizes(points: Sequence[Point], label: str, share: bool, figure: Figure) -> None:
    """Quality against size; a logarithmic axis where figures differ by more than three times.

    Args:
        share: the figures are shares of 1, shown in percent.
    """
    axes = figure.subplots()
    for point, height in zip(points, label_heights(points), strict=True):
        colour = plots.MUTED if point.run is None else plots.look(point.run)["color"]
        axes.plot(
            point.parameters, point.value, marker="o" if point.run is not None else "D", markersize=8, color=colour,
            markerfacecolor=colour if point.run is not None else "none", linestyle="none",
        )  # fmt: skip
        where = (point.parameters, point.value)
        axes.annotate(
            plots.shortened(point.name), where, xytext=(8, height), textcoords="offset points", color=plots.INK
        )
    axes.set_title(label)
    axes.set_xlabel("parameters")
    values = [point.value for point in points]
    if not share and min(values) > 0 and max(values) > 3 * min(values):
        axes.set_yscale("log")
        plots.plain_log(axes, "{:,.0f}")
    if share:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.margins(x=0.25, y=0.25)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human_count(value)))


def label_heights(points: Sequence[Point]) -> list[float]:
    """How far above its point each name stands, in typographic points: higher where another's would lie in its way."""
    wide = max(p.parameters for p in points) - min(p.parameters for p in points) or 1.0
    high = max(p.value for p in points) - min(p.value for p in points) or 1.0
    placed: list[tuple[float, float]] = []
    found: list[float] = []
    for point in points:
        x, y, height = point.parameters / wide, point.value / high, 6.0
        while any(abs(x - other) < 0.25 and abs(y + height / HEIGHT - level) < 0.09 for other, level in placed):
            height += 3
        placed.append((x, y + height / HEIGHT))
        found.append(height)
    return found
