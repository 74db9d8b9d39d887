"""`secateur report`: one page, about one run or about several."""

from collections.abc import Sequence
from pathlib import Path

from ..config.evaluation import ReportConfig
from ..report import plots
from ..system.errors import InputError
from ..system.output import check_output_file
from ..system.records import write_whole
from .parts import Plot
from .runs import load_runs
from .several import comparison_page, comparison_plots
from .single import run_page, run_plots

SEVERAL = Path("comparison.html")
"""The page of several runs, where no name is given."""


def make_report(config: ReportConfig) -> list[Path]:
    """`secateur report`: write the page (and plots) that the options ask for; returns the files written.

    Raises:
        InputError: a folder without records, a page that must not be replaced.
    """
    output = Path(config.output) if config.output else SEVERAL if len(config.runs) > 1 else None
    if output is not None:  # a run's own page, in its folder, is written anew
        check_output_file("--output", output, overwrite=config.overwrite)
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
        output = runs[0].folder / "report.html" if len(runs) == 1 else SEVERAL
    found = run_plots(runs[0]) if len(runs) == 1 else comparison_plots(runs)
    page = run_page(runs[0], found) if len(runs) == 1 else comparison_page(runs, found, output)
    try:
        write_whole(output, page.encode("utf-8"), result=True)
        return [output, *_write_plots(found, output.with_name(output.stem + "-plots"), plot_files)]
    except OSError as error:
        raise InputError(f"{output} cannot be written ({error.strerror or error}): choose another --output.") from None


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
