"""The page that sets runs side by side."""

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ..report import curves, facts, plots, quality, recipe
from ..system.progress import human_bytes, human_count, human_seconds
from .parts import Plot, environment, quality_plots, starting
from .runs import Run, number, printable, text


def comparison_page(runs: Sequence[Run], found: dict[str, Plot], output: Path) -> str:
    """HTML of the page that sets runs side by side; the first measure of each label and condition is a row.

    Args:
        output: where the page will be, from which the links to the runs' own pages start.
    """
    by_run = [{(m.label, m.conditions): m for m in quality.measures(run)} for run in runs]
    return environment().get_template("comparison.html").render(
        title=f"{len(runs)} runs compared",
        subtitle=", ".join(dict.fromkeys(facts.model_name(run) for run in runs)),
        notices=[f"{run.name}: {notice}" for run in runs for notice in run.notices] + _unmatched_by_all(runs),
        names=[run.name for run in runs],
        entries=[_entry(run, i, output) for i, run in enumerate(runs)],
        figures=_figure_rows(runs),
        keys=list(dict.fromkeys(key for measures in by_run for key in measures)),
        by_run=by_run,
        differing=recipe.differing(list(runs)),
        commands=[(run.name, recipe.command(run)) for run in runs],
        plots=found,
        numbers=curves.numbers(runs),
        curve_plots=starting(found, "curve-"),
        quality_plots=starting(found, "quality-"),
    )  # fmt: skip


def comparison_plots(runs: Sequence[Run]) -> dict[str, Plot]:
    """Loss, sparsity and the like of all runs over each other, and quality against size."""
    return {plot.name: plot for plot in [*curves.curve_plots(runs), *quality_plots(runs)]}


@dataclass(frozen=True)
class Entry:
    """A run in the page's list."""

    name: str
    what: str
    series: int
    """Number of its colour, from 1."""
    dashes: str
    link: str
    """Address of its own page; empty where it has none."""
    write: str
    """What writes that page."""


def _entry(run: Run, i: int, output: Path) -> Entry:
    page, look = run.folder / "report.html", i % len(plots.SERIES)
    link = page_address(page, output) if page.is_file() else ""
    what = "; ".join(part for part in (f"{_command(run)} of {facts.model_name(run)}", facts.subtitle(run)) if part)
    dashes = plots.DASHES[plots.style_number(i)]
    return Entry(run.name, what, look + 1, dashes, link, f"secateur report {shlex.quote(printable(str(run.folder)))}")


def page_address(page: Path, output: Path) -> str:
    """From one page to another: relative, so that both can be moved together."""
    try:
        between = os.path.relpath(page.resolve(), output.resolve().parent)
    except ValueError:  # on another drive
        return page.resolve().as_uri()
    return "./" + quote(os.fsencode(between.replace(os.sep, "/")))


def _command(run: Run) -> str:
    """What made the run."""
    cell = text(run.result, "cell")
    if cell is not None:
        return "a cell of compare" if cell == "prune" else f"a baseline of compare ({cell})"
    return text(run.result, "kind") or "prune"


Show = Callable[[float], str]


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _milliseconds(value: float) -> str:
    return f"{value:.1f} ms"


FIGURES: tuple[tuple[str, tuple[tuple[str, ...], ...], Show], ...] = (
    ("Parameters", (("pruned", "parameters"),), human_count),
    ("Weights on disk", (("pruned", "bytes"), ("export", "bytes")), human_bytes),
    ("Prunable parameters removed", (("sparsity", "reached"),), lambda value: f"{value:.2%}"),
    ("Adapter's mean rank", (("adapter", "mean_rank"),), lambda value: f"{value:.4g}"),
    ("Adapter's parameters", (("adapter", "parameters"),), human_count),
    ("Forward pass, dense", (("speed", "dense", "median_ms"),), _milliseconds),
    ("Forward pass, pruned", (("speed", "pruned", "median_ms"),), _milliseconds),
    ("Speed-up by FLOPs", (("speed", "flop_speedup"),), lambda value: f"{value:.2f} ×"),
    ("Tokens trained on", (("data", "trained_tokens"),), _count),
    ("Training time", (("train_seconds",), ("total_seconds",)), human_seconds),
)
"""Label, the first of these places in the record that holds a number, and how it is shown."""


def _figure_rows(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """(label, value in each run) of state, sizes, sparsity, last loss, speed and times."""
    states = [text(run.result, "status") or "done" for run in runs]
    found = [("State", states)] if set(states) != {"done"} else []
    for label, paths, show in FIGURES:
        known = [[number(run.result, *path) for path in paths] for run in runs]
        values = [next((value for value in each if value is not None), None) for each in known]
        if any(value is not None for value in values):
            found.append((label, ["" if value is None else show(value) for value in values]))
    losses, _ = curves.curves_of(runs, curves.KINDS[0])
    if last := {curve.look: curve.y[-1] for curve in losses}:
        shown = [f"{last[i]:.3f}" if i in last else "" for i in range(len(runs))]
        found.append(("Training loss at the end (running mean)", shown))
    return found


def _unmatched_by_all(runs: Sequence[Run]) -> list[str]:
    """Of records given for all runs: those about none of them. One in a run's folder must be about that run."""
    by_run = [quality.unmatched(run) for run in runs]
    known = dict.fromkeys(line for lines in by_run for line in lines)
    both = list(zip(runs, by_run, strict=True))
    return [line for line in known if all(line in lines or not _has_record(run, line) for run, lines in both)]


def _has_record(run: Run, line: str) -> bool:
    return any(line.startswith(f"{text(record, 'file')} ") for record in run.extras)
