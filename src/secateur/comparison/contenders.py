"""Cells of a comparison that belong together: the seeds of a series, the learning rates of a contender."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import exp, isfinite
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from .grid import SAME_EVERYWHERE, TARGETS, Cell

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
    condition: tuple[Any, ...] = ()
    """Data, steps and what else must be alike for a trained model to be compared with."""
    target: tuple[Any, ...] = ()
    """How small it gets."""
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

    def ratios(self, base: "Series | None") -> dict[str, float]:
        """Text -> this one's perplexity over the base's, of the means of their logarithms."""
        return {t: _exp(self.level(t) - base.level(t)) for t in self.nll if base and t in base.nll}

    def differences(self, other: "Series", text: str) -> dict[int, float]:
        """Seed -> by how much this one's log perplexity is higher than the other's with the same seed."""
        mine, theirs = self.nll.get(text, {}), other.nll.get(text, {})
        return {seed: mine[seed] - theirs[seed] for seed in mine if seed in theirs}


def columns(records: Iterable[Record]) -> dict[str, str]:
    """Evaluation text -> its name in tables: the file's, with as many folders before it as tell two apart."""
    texts = list(dict.fromkeys(text for record in records for text in record.get("perplexity", {})))
    tails = {text: ["/".join(Path(text).parts[-n:]) for n in range(1, len(Path(text).parts) + 1)] for text in texts}
    found = {}
    for text in texts:
        others = {tail for other in texts if other != text for tail in tails[other]}
        found[text] = next((tail for tail in tails[text] if tail not in others), text)
    return found


def series_of(cells: Sequence[Cell], records: dict[str, Record]) -> list[Series]:
    """The series of the cells that were run to the end.

    Args:
        records: name of a cell -> its record.
    """
    found: dict[tuple[str, str], Series] = {}
    names = columns(records.values())
    for cell in cells:
        record = records.get(cell.name, {})
        for text, measured in record.get("perplexity", {}).items():
            if measured["mean_nll"] is not None:  # infinite
                condition, target = (
                    tuple(getattr(cell.config, name) for name in options) for options in (SAME_EVERYWHERE, TARGETS)
                )
                new = Series(cell.series, cell.contender, cell.kind, cell.config.lr, condition, target)
                series = found.setdefault((cell.kind, cell.series), new)
                series.nll.setdefault(names[text], {})[cell.config.seed] = measured["mean_nll"]
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


def dense_with_lora(series: list[Series], condition: tuple[Any, ...]) -> Series | None:
    """What ratios are to: the best of what was trained alike without pruning."""
    text = first_text(series)
    alike = [each for each in series if each.kind == "dense+lora" and each.condition == condition and text in each.nll]
    return min(alike, key=lambda each: each.level(text), default=None)


def rates_table(series: list[Series]) -> tuple[Table, list[Record]] | None:
    """Each contender at its best learning rate, as a table and for JSON; None where none had a choice."""
    contenders = best_rates(series) if series else {}
    if len({(each.kind, each.contender) for each in series}) == len(series):
        return None
    bases = {key: dense_with_lora(series, best.condition) for key, best in contenders.items()}
    lines, rows = [], list[Record]()
    texts = list(dict.fromkeys(text for each in series for text in each.nll))
    for (kind, name), best in contenders.items():
        tried = sorted(each.lr for each in series if (each.kind, each.contender) == (kind, name))
        ratios = best.ratios(bases[kind, name])
        rate, rates = (f"{best.lr:g}", ", ".join(f"{lr:g}" for lr in tried)) if kind != "dense" else ("", "")
        cells = [best.perplexity(text) for text in texts]
        cells += [f"{ratios[text]:.3f}" if text in ratios else "" for text in texts] if any(bases.values()) else []
        lines.append((name, rate, rates, str(best.seeds), *cells))
        rows.append(
            {
                "contender": name, "kind": kind, "lr": best.lr, "tried": tried, "seeds": best.seeds,
                "cells": best.cells, "mean_nll": {t: best.level(t) for t in best.nll}, "ratio": ratios,
            }
        )  # fmt: skip
    ratio_names = [f"ratio, {text}" for text in texts] if any(bases.values()) else []
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
    against = {each.name: _reference(series, reference, each) for each in several}
    names = list(dict.fromkeys(other.name for other in against.values() if other))
    lines, rows = [], list[Record]()
    for each in several:
        other = against[each.name]
        found = {text: each.differences(other, text) for text in texts} if other else {}
        differences = [_difference(list(found[text].values())) if other not in (None, each) else "" for text in texts]
        cells = [each.perplexity(text) for text in texts] + (differences if names else [])
        which = (other.name if other else "",) if len(names) > 1 else ()
        lines.append((each.name, str(each.seeds), *which, *cells))
        rows.append({"name": each.name, "kind": each.kind, "nll": each.nll, "difference": found})
        rows[-1]["reference"] = other.name if other else None
    one = names[0] if len(names) == 1 else "the reference"
    header = ("cell", "seeds", *(("reference",) if len(names) > 1 else ()), *texts)
    header += tuple(f"against {one}, {text}" for text in texts if names)
    return (lines, header), {"reference": names[0] if len(names) == 1 else None, "series": rows}


def _reference(series: list[Series], name: str | None, of: Series) -> Series | None:
    """What a series is compared with: what is called so, or the first contender of the same budget, data and steps.

    Args:
        name: of a series, of a cell of it, or of a contender, which stands for its best learning rate.
    """
    best = best_rates(series)
    if name is None:
        alike = [each for each in series if each.kind == "prune" and each.condition == of.condition]
        first = next((each for each in alike if each.target == of.target or of.kind != "prune"), None)
        return best.get((first.kind, first.contender), first) if first else None
    for each in series:
        if name in (each.name, *each.cells):
            return each
    return next((each for (_, contender), each in best.items() if contender == name), None)


def _difference(values: list[float]) -> str:
    """`×0.886 (-0.1210 ± 0.0040)`: the ratio of perplexities, and its logarithm."""
    if not values:
        return ""
    spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ", one seed"
    return f"×{_exp(mean(values)):.3f} ({mean(values):+.4f}{spread})"


def _exp(value: float) -> float:
    return exp(value) if isfinite(value) and value < 700 else float("inf")
