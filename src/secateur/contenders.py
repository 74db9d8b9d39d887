"""Cells of a comparison that belong together: the seeds of a series, the learning rates of a contender."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp, isfinite
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from .grid import Cell

Record = dict[str, Any]
Table = tuple[list[tuple[str, ...]], tuple[str, ...]]
"""Lines and header."""


@dataclass(eq=False)
class Series:
    """Cells that differ in their seed alone."""

    name: str
    contender: str
    kind: str
    lr: float
    nll: dict[str, dict[int, float]] = field(default_factory=dict)
    """Text -> seed -> mean loss per token, the logarithm of the perplexity."""
    cells: list[str] = field(default_factory=list)

    @property
    def seeds(self) -> int:
        """How many have been run to the end."""
        return max(map(len, self.nll.values()), default=0)

    def level(self, text: str) -> float:
        """Mean over the seeds of the logarithm of the perplexity."""
        return mean(self.nll[text].values())

    def perplexity(self, text: str) -> str:
        """Mean over the seeds, with its standard deviation where there are several."""
        values = [_exp(nll) for nll in self.nll.get(text, {}).values()]
        if len(values) < 2:
            return "".join(f"{value:.2f}" for value in values)
        return f"{mean(values):.2f} ± {stdev(values):.2f}"

    def differences(self, other: "Series", text: str) -> dict[int, float]:
        """Seed -> by how much this one's log perplexity is higher than the other's with the same seed."""
        mine, theirs = self.nll.get(text, {}), other.nll.get(text, {})
        return {seed: mine[seed] - theirs[seed] for seed in mine if seed in theirs}


def series_of(cells: Sequence[Cell], records: dict[str, Record]) -> list[Series]:
    """The series of the cells that were run to the end.

    Args:
        records: name of a cell -> its record.
    """
    found: dict[tuple[str, str], Series] = {}
    for cell in cells:
        record = records.get(cell.name, {})
        for text, measured in record.get("perplexity", {}).items():
            if measured["mean_nll"] is not None:  # infinite
                new = Series(cell.series, cell.contender, cell.kind, cell.config.lr)
                series = found.setdefault((cell.kind, cell.series), new)
                series.nll.setdefault(Path(text).name, {})[cell.config.seed] = measured["mean_nll"]
                series.cells += [cell.name] * (cell.name not in series.cells)
    return list(found.values())


def first_text(series: list[Series]) -> str:
    """The text that learning rates are chosen by."""
    return next(iter(series[0].nll))


def best_rates(series: list[Series]) -> dict[tuple[str, str], Series]:
    """Kind and contender -> its series with the lowest mean log perplexity on the first text."""
    best: dict[tuple[str, str], Series] = {}
    text = first_text(series)
    for each in series:
        key = each.kind, each.contender
        if text in each.nll and (key not in best or each.level(text) < best[key].level(text)):
            best[key] = each
    return best


def dense_with_lora(series: list[Series]) -> Series | None:
    """What ratios are to: the best of what was trained without pruning."""
    found = [each for (kind, _), each in best_rates(series).items() if kind == "dense+lora"] if series else []
    return min(found, key=lambda each: each.level(first_text(series)), default=None)


def rates_table(series: list[Series]) -> tuple[Table, list[Record]] | None:
    """Each contender at its best learning rate, as a table and for JSON; None where none had a choice."""
    contenders = best_rates(series) if series else {}
    if len({(each.kind, each.contender) for each in series}) == len(series):
        return None
    base, lines, rows = dense_with_lora(series), [], list[Record]()
    texts = list(dict.fromkeys(text for each in series for text in each.nll))
    for (kind, name), best in contenders.items():
        tried = sorted(each.lr for each in series if (each.kind, each.contender) == (kind, name))
        ratios = {t: _exp(best.level(t) - base.level(t)) for t in texts if base and t in best.nll and t in base.nll}
        rate, rates = (f"{best.lr:g}", ", ".join(f"{lr:g}" for lr in tried)) if kind != "dense" else ("", "")
        cells = [best.perplexity(text) for text in texts]
        cells += [f"{ratios[text]:.3f}" if text in ratios else "" for text in texts] if base else []
        lines.append((name, rate, rates, str(best.seeds), *cells))
        rows.append(
            {
                "contender": name, "kind": kind, "lr": best.lr, "tried": tried, "seeds": best.seeds,
                "cells": best.cells, "mean_nll": {t: best.level(t) for t in best.nll}, "ratio": ratios,
            }
        )  # fmt: skip
    ratio_names = [f"ratio, {text}" for text in texts] if base else []
    return (lines, ("contender", "best lr", "of", "seeds", *texts, *ratio_names)), rows


def seeds_table(series: list[Series], reference: str | None) -> tuple[Table, Record] | None:
    """Mean ± standard deviation over seeds, and how far each is from the reference with the same seeds.

    Returns:
        A table, and the same for JSON; None where no series has several seeds.
    """
    several = [each for each in series if each.seeds > 1]
    if not several:
        return None
    texts = list(dict.fromkeys(text for each in several for text in each.nll))
    against = _reference(series, reference)
    lines, rows = [], list[Record]()
    for each in several:
        cells = [each.perplexity(text) for text in texts]
        found = {text: each.differences(against, text) for text in texts} if against else {}
        if against:
            cells += ["" if each is against else _difference(list(found[text].values())) for text in texts]
        lines.append((each.name, str(each.seeds), *cells))
        rows.append({"name": each.name, "kind": each.kind, "nll": each.nll, "difference": found})
    names = [f"against {against.name}, {text}" for text in texts] if against else []
    record = {"reference": against.name if against else None, "series": rows}
    return (lines, ("cell", "seeds", *texts, *names)), record


def _reference(series: list[Series], name: str | None) -> Series | None:
    """The series that is called so, has a cell that is, or is the best of a contender that is."""
    if name is None:
        return next((each for each in series if each.kind == "prune"), series[0])
    for each in series:
        if name in (each.name, *each.cells):
            return each
    return next((best for (_, contender), best in best_rates(series).items() if contender == name), None)


def _difference(values: list[float]) -> str:
    """`×0.886 (-0.1210 ± 0.0040)`: the ratio of perplexities, and its logarithm."""
    if not values:
        return ""
    spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ", one seed"
    return f"×{_exp(mean(values)):.3f} ({mean(values):+.4f}{spread})"


def _exp(value: float) -> float:
    return exp(value) if isfinite(value) and value < 700 else float("inf")
