"""What every page is made of: plots in their places, and templates that escape what they are given."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from ..report import plots, quality, units
from ..system.version import VERSION
from .runs import Run, number
from .sizes import Point, draw_sizes

WIDE, FLAT = (9.0, 4.4), (9.0, 3.2)
"""Sizes of plots in inches."""


@dataclass(frozen=True)
class Plot:
    """A drawing with what is needed to place it."""

    name: str
    """For files and ids."""
    draw: plots.Draw
    size: tuple[float, float]
    """Inches."""
    caption: str
    said: str = ""
    """What is seen in it, for who does not see it; without it the caption is said."""

    @property
    def svg(self) -> Markup:
        """Inline SVG; matplotlib has escaped the text in it."""
        return Markup(plots.svg(self.draw, self.name, self.size, inline=True))


def quality_plots(runs: Sequence[Run]) -> list[Plot]:
    """One plot per measure, with the dense model once and every run that has the figure and a size.

    A task of a single run gets none: its two figures are in the table.
    """
    points: dict[tuple[str, str, bool], list[Point]] = {}
    for i, run in enumerate(runs):
        for measure in quality.measures(run):
            known = points.setdefault((measure.label, measure.conditions, not measure.lower_is_better), [])
            size = number(run.result, "dense", "parameters")
            if size and measure.dense is not None and not any(point.run is None for point in known):
                known.append(Point("dense", size, measure.dense, None))
            size = number(run.result, "pruned", "parameters")
            if size and measure.pruned is not None:
                known.append(Point(run.name, size, measure.pruned, i))
    return [
        Plot(
            f"quality-{i}",
            partial(draw_sizes, found, label, share),
            FLAT,
            f"{label} against size ({conditions}).",
        )
        for i, ((label, conditions, share), found) in enumerate(points.items())
        if len(found) > (2 if share else 1)
    ]


def starting(found: dict[str, Plot], prefix: str) -> list[Plot]:
    return [plot for name, plot in found.items() if name.startswith(prefix)]


def has(run: Run, key: str) -> bool:
    return any(number(line, key) is not None for line in run.metrics)


@cache
def environment() -> jinja2.Environment:
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
    environment.globals.update(style, version=VERSION, layer_rows=units.layer_rows)
    return environment
