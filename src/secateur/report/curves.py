"""Curves of several runs over each other: what is drawn, said and put into a table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from ..report import plots
from ..system.progress import human_count
from .parts import FLAT, WIDE, Plot
from .runs import Run, number

SAID_AT = 5
"""Places of a curve that the table of its numbers has."""
LEGEND = 100
"""Characters that fit into a line of a legend."""


@dataclass(frozen=True)
class Kind:
    """A figure of metrics.jsonl that is drawn for all runs that have it."""

    key: str
    title: str
    show: Callable[[float], str]
    size: tuple[float, float] = FLAT
    smooth: bool = False
    """It scatters from step to step: a running mean is drawn."""


KINDS = (
    Kind("loss", "Training loss, nats per token (running mean)", lambda v: f"{v:.3f}", WIDE, smooth=True),
    Kind("sparsity", "Sparsity (share of the prunable parameters gone)", lambda v: f"{v:.1%}"),
    Kind("rank", "Mean rank of the adapter", lambda v: f"{v:.3g}"),
    Kind("eval_perplexity", "Perplexity on the evaluation text while training", lambda v: f"{v:.2f}"),
)


@dataclass(frozen=True)
class Curve:
    """One run's line."""

    name: str
    look: int
    """Which run, for its colour and dashes."""
    x: list[float]
    """Tokens, or optimiser steps."""
    y: list[float]

    def at(self, x: float) -> float | None:
        """The last value until `x`; None before the curve begins, or where it has ended."""
        known = [y for place, y in zip(self.x, self.y, strict=True) if place <= x]
        return known[-1] if known and x <= self.x[-1] else None


def tokens_per_step(run: Run) -> float | None:
    """Tokens of an optimiser step: as recorded, or from the speed of a step."""
    if known := number(run.result, "data", "tokens_per_step"):
        return known
    for line in run.metrics:
        speed, seconds = number(line, "tokens_per_s"), number(line, "seconds")
        if speed and seconds:
            return float(round(speed * seconds))
    return None


def curves_of(runs: Sequence[Run], kind: Kind) -> tuple[list[Curve], str]:
    """The runs' curves of a kind, and what they are drawn over: tokens, where all runs tell them."""
    tokens = [tokens_per_step(run) for run in runs]
    told = all(each for each, run in zip(tokens, runs, strict=True) if run.metrics)
    found = []
    for i, run in enumerate(runs):
        steps, values = plots.series(run.metrics, kind.key)
        if steps:
            per_step = (tokens[i] or 1) if told else 1
            y = plots.smoothed(values) if kind.smooth else values
            found.append(Curve(run.name, i, [step * per_step for step in steps], y))
    return found, "tokens" if told else "optimiser steps"


def curve_plots(runs: Sequence[Run]) -> list[Plot]:
    """A plot of each kind of figure that a run has."""
    found = []
    for kind in KINDS:
        curves, over = curves_of(runs, kind)
        if curves:
            draw = partial(draw_curves, curves, kind, over)
            size = (kind.size[0], kind.size[1] + 0.22 * max(0, legend_rows(curves) - 2))
            caption = f"{kind.title}, over {over}."
            found.append(Plot(f"curve-{kind.key}", draw, size, caption, said(curves, kind, over)))
    return found


def said(curves: Sequence[Curve], kind: Kind, over: str) -> str:
    """What is seen: where each curve begins and where it ends."""
    lines = [f"{c.name} from {kind.show(c.y[0])} to {kind.show(c.y[-1])} at {human_count(c.x[-1])}" for c in curves]
    return f"{kind.title}, over {over}: {'; '.join(lines)}."


def numbers(runs: Sequence[Run]) -> list[tuple[str, list[tuple[str, ...]]]]:
    """The same as tables: (caption, rows of a place and a value for each run)."""
    found: list[tuple[str, list[tuple[str, ...]]]] = []
    for kind in KINDS:
        curves, over = curves_of(runs, kind)
        if not curves:
            continue
        by_run = {curve.look: curve for curve in curves}
        first, last = min(c.x[0] for c in curves), max(c.x[-1] for c in curves)
        places = [first + (last - first) * i / (SAID_AT - 1) for i in range(SAID_AT)] if last > first else [last]
        rows: list[tuple[str, ...]] = []
        for place in places:
            values = [by_run[i].at(place) if i in by_run else None for i in range(len(runs))]
            rows.append((human_count(place), *("–" if value is None else kind.show(value) for value in values)))
        found.append((f"{kind.title}, after so many {over}", rows))
    return found


def draw_curves(curves: Sequence[Curve], kind: Kind, over: str, figure: Figure) -> None:
    """The curves of one kind, with a legend below."""
    axes = figure.subplots()
    for curve in curves:
        how: dict[str, Any] = plots.look(curve.look)
        if len(curve.x) == 1:
            how |= {"marker": "o", "markersize": 5}
        if kind.key in ("sparsity", "rank"):
            how |= {"drawstyle": "steps-post"}
        axes.plot(curve.x, curve.y, label=plots.shortened(curve.name), linewidth=2, **how)
    axes.set_title(kind.title)
    axes.set_xlabel(over if over != "tokens" else "tokens seen")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human_count(value)))
    if kind.key == "sparsity":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if kind.key in ("sparsity", "rank"):
        axes.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=legend_columns(curves), handlelength=3.5)


def legend_columns(curves: Sequence[Curve]) -> int:
    """As many as fit side by side."""
    longest = max(len(plots.shortened(curve.name)) for curve in curves)
    return max(1, min(4, len(curves), LEGEND // (longest + 8)))


def legend_rows(curves: Sequence[Curve]) -> int:
    return -(-len(curves) // legend_columns(curves))
