"""The page of one run or of several: data into the template, plots beside it."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ..config.evaluation import ReportConfig
from ..report import facts, plots, quality, recipe
from ..system.errors import InputError
from ..system.output import check_output_file
from ..system.progress import human_bytes, human_count
from ..system.records import write_whole
from ..system.version import VERSION
from .runs import Run, load_runs, number, text

WIDE, FLAT = (9.0, 4.4), (9.0, 3.2)
"""Sizes of plots in inches."""


class Plot:
    """A drawing with what is needed to place it: a name for files and ids, a size, a caption."""

    def __init__(self, name: str, draw: plots.Draw, size: tuple[float, float], caption: str) -> None:
        self.name, self.draw, self.size, self.caption = name, draw, size, caption

    @property
    def svg(self) -> Markup:
        """Inline SVG; matplotlib has escaped the text in it."""
        return Markup(plots.svg(self.draw, self.name, self.size, inline=True))


def make_report(config: ReportConfig) -> list[Path]:
    """`secateur report`: write the page (and plots) that the options ask for; returns the files written.

    Raises:
        InputError: a folder without records, a page that must not be replaced.
    """
    if config.output:
        check_output_file("--output", Path(config.output), overwrite=config.overwrite)
    output = Path(config.output) if config.output else None
    return write_report(config.runs, output, records=config.records, plot_files=config.plots)


def write_report(
    folders: Sequence[str], output: Path | None = None, *, records: Sequence[str] = (), plot_files: str = "none"
) -> list[Path]:
    """Write one page about one run or several.

    Args:
        folders: output folders of runs.
        output: the page; default: report.html in the run's folder, comparison.html here for several.
        records: further JSON files of `secateur eval` or `secateur sample`.
        plot_files: also write the plots next to the page: none, svg, png or both.
    Raises:
        InputError: see `load_runs`; the page's folder cannot be written to.
    """
    runs = load_runs(folders, records)
    if output is None:
        output = runs[0].folder / "report.html" if len(runs) == 1 else Path("comparison.html")
    found = run_plots(runs[0]) if len(runs) == 1 else comparison_plots(runs)
    page = run_page(runs[0], found) if len(runs) == 1 else comparison_page(runs, found)
    try:
        write_whole(output, page.encode("utf-8"), result=True)
        return [output, *_write_plots(found, output.with_name(output.stem + "-plots"), plot_files)]
    except OSError as error:
        raise InputError(f"{output} cannot be written ({error.strerror or error}): choose another --output.") from None


def run_page(run: Run, found: dict[str, Plot]) -> str:
    """HTML of the page of one run."""
    measures = quality.measures(run)
    return _environment().get_template("run.html").render(
        title=facts.title(run),
        subtitle=facts.subtitle(run),
        notices=[*run.notices, *quality.unmatched(run)],
        headline=facts.headline(run),
        measures=measures,
        leading=quality.headline(measures),
        warnings=quality.warnings(run),
        layers=facts.layers(run),
        layers_over_time=facts.layers_over_time(run),
        share_left=facts.share_left,
        cuts=facts.cuts(run),
        generations=facts.generations(run),
        command=recipe.command(run),
        options=recipe.options(run),
        load=text(run.result, "export", "loads_with"),
        data=facts.data_rows(run),
        environment=facts.environment(run),
        plots=found,
        score_plots=_starting(found, "scores-"),
        quality_plots=_starting(found, "quality-"),
    )  # fmt: skip


def comparison_page(runs: Sequence[Run], found: dict[str, Plot]) -> str:
    """HTML of the page that sets runs side by side; the first measure of each label and condition is a row."""
    by_run = [{(m.label, m.conditions): m for m in quality.measures(run)} for run in runs]
    return _environment().get_template("comparison.html").render(
        title=f"{len(runs)} runs compared",
        subtitle=", ".join(dict.fromkeys(facts.model_name(run) for run in runs)),
        notices=[f"{run.name}: {notice}" for run in runs for notice in run.notices] + _unmatched_by_all(runs),
        names=[run.name for run in runs],
        figures=_figure_rows(runs),
        keys=list(dict.fromkeys(key for measures in by_run for key in measures)),
        by_run=by_run,
        differing=recipe.differing(list(runs)),
        commands=[(run.name, recipe.command(run)) for run in runs],
        plots=found,
        quality_plots=_starting(found, "quality-"),
    )  # fmt: skip


def run_plots(run: Run) -> dict[str, Plot]:
    """The plots for which the run has records, by name."""
    steps = [cut.step for cut in facts.cuts(run)]
    found = []
    if _has(run, "loss"):
        draw = partial(plots.training, run.metrics, steps)
        sinking = "rank" if _has(run, "rank") else "sparsity"
        cuts = {0: "", 1: ", with its one cut"}.get(len(steps), f", with its {len(steps)} cuts")
        found.append(Plot("training", draw, WIDE, f"Loss and {sinking} over the run{cuts}."))
    if _has(run, "eval_perplexity"):
        draw = partial(plots.evaluations, run.metrics)
        found.append(Plot("evaluations", draw, FLAT, "Perplexity measured while the run went on."))
    for kind in facts.kinds(run):
        layers = [layer for layer in facts.scores(run, kind) if layer.kept or layer.gone]
        if not any(value > 0 for layer in layers for value in layer.kept + layer.gone):
            continue
        word = facts.words(kind)
        if any((layer.threshold or 0) > 0 and len(layer.kept + layer.gone) > plots.FEW_UNITS for layer in layers):
            caption = (
                f"Scores of {word} before the first cut. Had these alone decided, all that went would lie to the left "
                "of the threshold; later scores moved some. The outermost bars hold what lies beyond."
            )
            draw = partial(plots.score_histogram, layers, word)
            found.append(Plot(f"scores-{len(found)}", draw, FLAT, caption))
        draw = partial(plots.score_layers, layers, word)
        found.append(
            Plot(
                f"scores-{len(found)}",
                draw,
                FLAT,
                f"Scores of {word} before the first cut, layer by layer, on a logarithmic scale.",
            )
        )
    return {plot.name: plot for plot in [*found, *_quality_plots([run])]}


def comparison_plots(runs: Sequence[Run]) -> dict[str, Plot]:
    """Loss of all runs, and quality against size."""
    found = []
    trained = [(run.name, run.metrics) for run in runs if _has(run, "loss")]
    if trained:
        found.append(Plot("losses", partial(plots.losses, trained), WIDE, "Training loss of each run."))
    return {plot.name: plot for plot in [*found, *_quality_plots(runs)]}


def _unmatched_by_all(runs: Sequence[Run]) -> list[str]:
    """Of records given for all runs: those about none of them. One in a run's folder must be about that run."""
    by_run = [quality.unmatched(run) for run in runs]
    known = dict.fromkeys(line for lines in by_run for line in lines)
    both = list(zip(runs, by_run, strict=True))
    return [line for line in known if all(line in lines or not _has_record(run, line) for run, lines in both)]


def _has_record(run: Run, line: str) -> bool:
    return any(line.startswith(f"{text(record, 'file')} ") for record in run.extras)


def _quality_plots(runs: Sequence[Run]) -> list[Plot]:
    """One plot per measure, with the dense model once and every run that has the figure and a size.

    A task of a single run gets none: its two figures are in the table.
    """
    points: dict[tuple[str, str, bool], list[plots.Point]] = {}
    for i, run in enumerate(runs):
        for measure in quality.measures(run):
            known = points.setdefault((measure.label, measure.conditions, not measure.lower_is_better), [])
            size = number(run.result, "dense", "parameters")
            if size and measure.dense is not None and not any(point.run is None for point in known):
                known.append(plots.Point("dense", size, measure.dense, None))
            size = number(run.result, "pruned", "parameters")
            if size and measure.pruned is not None:
                known.append(plots.Point(run.name, size, measure.pruned, i))
    return [
        Plot(
            f"quality-{i}",
            partial(plots.quality, found, label, share),
            FLAT,
            f"{label} against size ({conditions}).",
        )
        for i, ((label, conditions, share), found) in enumerate(points.items())
        if len(found) > (2 if share else 1)
    ]


def _figure_rows(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """(label, value in each run) of sizes, sparsity, speed and times."""
    shown: list[tuple[str, tuple[str, ...], Callable[[float], str]]] = [
        ("Parameters", ("pruned", "parameters"), human_count),
        ("Weights on disk", ("pruned", "bytes"), human_bytes),
        ("Prunable parameters removed", ("sparsity", "reached"), lambda value: f"{value:.2%}"),
        ("Forward pass, dense", ("speed", "dense", "median_ms"), lambda value: f"{value:.1f} ms"),
        ("Forward pass, pruned", ("speed", "pruned", "median_ms"), lambda value: f"{value:.1f} ms"),
        ("Speed-up by FLOPs", ("speed", "flop_speedup"), lambda value: f"{value:.2f} ×"),
        ("Tokens trained on", ("data", "trained_tokens"), lambda value: f"{value:,.0f}"),
        ("Training time", ("train_seconds",), lambda value: f"{value:,.0f} s"),
    ]
    found = []
    for label, path, show in shown:
        values = [number(run.result, *path) for run in runs]
        if any(value is not None for value in values):
            found.append((label, ["" if value is None else show(value) for value in values]))
    return found


def _starting(found: dict[str, Plot], prefix: str) -> list[Plot]:
    return [plot for name, plot in found.items() if name.startswith(prefix)]


def _has(run: Run, key: str) -> bool:
    return any(number(line, key) is not None for line in run.metrics)


@cache
def _environment() -> jinja2.Environment:
    """Templates that escape every value: names, prompts and texts come from models and data."""
    folder = files(__package__).joinpath("templates")
    names = ("base.html", "run.html", "comparison.html", "macros.html")
    environment = jinja2.Environment(
        loader=jinja2.DictLoader({name: folder.joinpath(name).read_text(encoding="utf-8") for name in names}),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style: dict[str, Any] = {"style": Markup(folder.joinpath("style.css").read_text(encoding="utf-8"))}
    environment.globals.update(style, version=VERSION, layer_rows=facts.layer_rows)
    return environment


def _write_plots(found: dict[str, Plot], folder: Path, kinds: str) -> list[Path]:
    written = []
    if kinds != "none" and found:
        folder.mkdir(exist_ok=True)
    for plot in found.values() if kinds != "none" else ():
        if kinds in ("svg", "both"):
            written.append(folder / f"{plot.name}.svg")
            written[-1].write_text(plots.svg(plot.draw, plot.name, plot.size, inline=False), encoding="utf-8")
        if kinds in ("png", "both"):
            written.append(folder / f"{plot.name}.png")
            written[-1].write_bytes(plots.png(plot.draw, plot.size))
    return written
