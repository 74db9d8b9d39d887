"""The plots of a report, drawn by matplotlib without a display.

Colours are drawn as fixed values that print well on white. In SVG each is then replaced by a CSS variable with
that value to fall back on, so that the page's light or dark scheme colours the plots too.
"""

import io
import math
import re
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from .runs import number
from .units import Scores

INK, MUTED, LINE, GONE = "#1b2430", "#5b6675", "#d7dce3", "#b8501a"
SERIES = ("#0b62a8", "#b8501a", "#1b7a50", "#4a1263", "#948a3a", "#76859a")
"""Told apart with colour-blind eyes too; series differ in line style as well."""
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)))
DASHES = ("", "7 3", "9 3 2 3", "2 3", "11 2", "6 2 2 2 2 2")
"""The same styles in SVG."""
VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line"} | {c: f"--series-{i}" for i, c in enumerate(SERIES, 1)}
RC: Any = {  # matplotlib types the keys one by one
    "svg.fonttype": "none",  # text stays text: selectable, and in the page's font
    "text.parse_math": False,  # names hold dollar signs
    "axes.unicode_minus": False,
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "text.color": INK,
}
LAYOUT: Any = "constrained"
"""Margins that fit what stands in them."""
FEW_UNITS = 64
"""A layer with at most so many units has each of them drawn."""
NAME = 28
"""Characters of the longest name in a plot."""
Draw = Callable[[Figure], None]


def svg(draw: Draw, name: str, size: tuple[float, float], *, inline: bool) -> str:
    """A plot as SVG text.

    Args:
        draw: puts axes into an empty figure.
        name: prefix of all ids in it, so that several plots can stand in one page.
        size: width and height in inches of 72 points.
        inline: for an HTML page (hidden from screen readers, whose text is the figure's caption and table), or a
            file of its own that brings its colours along.
    """
    with matplotlib.rc_context(RC | {"svg.hashsalt": name}):
        figure = _figure(draw, size)
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(
            buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    source = buffer.getvalue()
    source = source[source.index("<svg") :]
    source = re.sub(r"\s*<metadata>.*?</metadata>", "", source, flags=re.DOTALL)
    source = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", source)
    source = source.replace(RC["font.family"], "inherit") if inline else source
    for colour, variable in VARIABLES.items():
        source = source.replace(colour, f"var({variable}, {colour})")
    if inline:
        # The page's width rules; the height follows from viewBox.
        source = re.sub(r' (width|height)="[\d.]+pt"', "", source, count=2)
        return source.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + source


def png(draw: Draw, size: tuple[float, float]) -> bytes:
    """The same as PNG on white, 144 dots an inch."""
    with matplotlib.rc_context(RC):
        figure = _figure(draw, size)
        figure.set_facecolor("white")
        buffer = io.BytesIO()
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def _figure(draw: Draw, size: tuple[float, float]) -> Figure:
    figure = Figure(figsize=size, layout=LAYOUT, dpi=144)
    figure.patch.set_alpha(0)
    draw(figure)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
        axes.tick_params(length=0)
    return figure


def training(metrics: Sequence[dict[str, Any]], cut_steps: Sequence[int], figure: Figure) -> None:
    """Loss over steps, and below it sparsity (of a run of `adapt`: the mean rank), with a line at each cut.

    Args:
        metrics: lines with "step" and any of "loss", "sparsity", "rank".
    """
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for axes in (upper, lower):
        for step in cut_steps:
            axes.axvline(step, color=LINE, linewidth=1, zorder=0)
    steps, losses = series(metrics, "loss")
    upper.plot(steps, losses, color=SERIES[0], linewidth=1, alpha=0.45)
    upper.plot(steps, smoothed(losses), color=SERIES[0], linewidth=2)
    upper.set_title("Training loss (nats per token; bold: running mean)")
    ranks = series(metrics, "rank")
    known = ranks if ranks[0] else series(metrics, "sparsity")
    lower.plot(*known, color=SERIES[1], linewidth=2, drawstyle="steps-post")
    lower.set_title("Mean rank of the adapter" if ranks[0] else "Sparsity (share of the prunable parameters gone)")
    if not ranks[0]:
        lower.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    lower.set_ylim(bottom=0)
    lower.set_xlabel("optimiser step; vertical lines: cuts" if cut_steps else "optimiser step")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))


def evaluations(metrics: Sequence[dict[str, Any]], figure: Figure) -> None:
    """Perplexity on the evaluation text over steps."""
    axes = figure.subplots()
    axes.plot(*series(metrics, "eval_perplexity"), color=SERIES[2], linewidth=2, marker="o", markersize=4)
    axes.set_title("Perplexity on the evaluation text while training")
    axes.set_xlabel("optimiser step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def shortened(name: str) -> str:
    """A name that fits beside others: its middle left out where it is long."""
    return name if len(name) <= NAME else f"{name[: NAME // 2]} … {name[-NAME // 2 + 3 :]}"


def score_histogram(layers: Sequence[Scores], word: str, figure: Figure) -> None:
    """How far the scores lie from the layer's threshold, by what became of the unit.

    Scores differ by orders of magnitude between layers, so each is divided by its own layer's threshold.
    """
    axes = figure.subplots()
    sides: dict[str, list[float]] = {"kept": [], "gone": []}
    for layer in layers:
        if layer.threshold is not None and layer.threshold > 0:  # criteria may score below 0
            for side, values in (("kept", layer.kept), ("gone", layer.gone)):
                sides[side] += [math.log10(value / layer.threshold) for value in values if value > 0]
    colours = {"kept": SERIES[0], "gone": GONE}
    low, high = _quantiles(sides["kept"] + sides["gone"], (0.002, 0.998))
    axes.hist(
        [[min(max(v, low), high) for v in values] for values in sides.values()],
        bins=[low + (high - low) * i / 60 for i in range(61)] if high > low else 1,
        stacked=True, histtype="stepfilled", color=[colours[side] for side in sides], label=list(sides),
    )  # fmt: skip
    axes.axvline(0, color=INK, linewidth=1.2, linestyle="--", label="threshold")
    axes.set_title(f"Scores of {word} just before the first cut, over their layer's threshold")
    axes.set_xlabel("score ÷ threshold")
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{10**value:.3g}"))
    axes.set_ylabel(word)
    figure.legend(loc="outside lower center", ncols=3)


def score_layers(layers: Sequence[Scores], word: str, figure: Figure) -> None:
    """Per layer: the range of scores with the threshold, or each unit where there are few."""
    axes = figure.subplots()
    if max(len(layer.kept) + len(layer.gone) for layer in layers) <= FEW_UNITS:
        for side, colour, marker in (("kept", SERIES[0], "o"), ("gone", GONE, "x")):
            points = [(layer.layer, value) for layer in layers for value in getattr(layer, side) if value > 0]
            if points:
                axes.plot(*zip(*points, strict=True), linestyle="none", marker=marker, color=colour, label=side)
    else:
        _bands(axes, layers)
    axes.set_yscale("log")
    plain_log(axes, "{:.0e}")
    axes.set_title(f"Scores of {word} just before the first cut, by layer")
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside lower center", ncols=4)


def _bands(axes: Axes, layers: Sequence[Scores]) -> None:
    drawn = [layer for layer in layers if any(value > 0 for value in layer.kept + layer.gone)]
    where = [layer.layer for layer in drawn]
    cuts = (0.05, 0.25, 0.5, 0.75, 0.95)
    quantiles = [_quantiles([v for v in layer.kept + layer.gone if v > 0], cuts) for layer in drawn]
    columns = list(zip(*quantiles, strict=True))
    axes.fill_between(where, columns[0], columns[4], color=SERIES[0], alpha=0.15, linewidth=0, label="5 to 95 %")
    axes.fill_between(where, columns[1], columns[3], color=SERIES[0], alpha=0.3, linewidth=0, label="25 to 75 %")
    axes.plot(where, columns[2], color=SERIES[0], linewidth=2, label="median")
    cut = [(layer.layer, layer.threshold) for layer in drawn if (layer.threshold or 0) > 0]
    if cut:
        axes.plot(*zip(*cut, strict=True), color=GONE, linewidth=2, linestyle="--", label="threshold")


def plain_log(axes: Axes, form: str) -> None:
    """Labels at 1, 2 and 5 times each power of ten, without mathematical typesetting (which `RC` turns off)."""
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: form.format(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def smoothed(values: Sequence[float], window: int = 9) -> list[float]:
    """The centred running mean; shorter windows at the ends."""
    half = min(window // 2, len(values) // 8)
    return [statistics.fmean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]


def series(metrics: Sequence[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of the lines that have a number under `key`."""
    pairs = [(number(line, "step"), number(line, key)) for line in metrics]
    known = [(step, value) for step, value in pairs if step is not None and value is not None]
    return [step for step, _ in known], [value for _, value in known]


def look(index: int) -> dict[str, Any]:
    """Colour and dashes of the run of this number; no two of the first 36 have both in common."""
    return {"color": SERIES[index % len(SERIES)], "linestyle": STYLES[style_number(index)]}


def style_number(index: int) -> int:
    return (index + index // len(SERIES)) % len(STYLES)


def _quantiles(values: Sequence[float], shares: Sequence[float]) -> list[float]:
    ranked = sorted(values)
    return [ranked[round(share * (len(ranked) - 1))] for share in shares]
