"""The plots of docs/results/criteria.md, from the records that its tables are made of.

    python benchmarks/criteria/criteria_plots.py

writes criteria.png, ablations.png and agreement.png into docs/images.
"""

import json
from collections.abc import Sequence
from math import exp
from typing import Any

from comparison_records import records_of
from criteria_tables import RESULTS, TEXTS, ablations, best_first, perplexities
from goal_ratios import TRAINING, levels
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

MORE = ("obs", "flap", "wanda", "random", "magnitude", "gate-lstsq")
"""Cells of criteria-more.yaml that are drawn too."""
IMAGES = RESULTS.parent / "images"
STYLES = dict(zip(TEXTS, ("oC0", "sC1", "^C2", "^C2", "DC3"), strict=True))
"""Marker and colour, in all panels."""
ABLATIONS = {
    "λ, the past's weight in the average": {"0": "ema 0", "0.5": "ema 0.5", "0.9": "start", "0.99": "ema 0.99"},
    "steps from cut to cut": {"1": "frequency 1", "5": "start", "10": "frequency 10", "20": "frequency 20"},
    "steps of the run": {"30": "30 steps", "60": "start", "120": "120 steps"},
    "LoRA's rank": {"4": "rank 4", "8": "start", "32": "rank 32"},
}
"""Title -> value -> cell of ablations.yaml."""


def main() -> None:
    figure = Figure(figsize=(11, 6), layout="constrained")
    for place, sparsity in enumerate(("20", "50"), 1):
        contenders(figure.add_subplot(1, 2, place), sparsity)
    figure.savefig(IMAGES / "criteria.png", dpi=110)
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    known = ablations()
    for place, (title, cells) in enumerate(ABLATIONS.items(), 1):
        axes = figure.add_subplot(1, len(ABLATIONS), place)
        ablation(axes, title, {value: known[cell] for value, cell in cells.items() if cell in known})
    figure.savefig(IMAGES / "ablations.png", dpi=110)
    found = json.loads((RESULTS / "agreement.json").read_text(encoding="utf-8"))
    figure = Figure(figsize=(11, 4), layout="constrained")
    for place, kind in enumerate(("ffn", "attention"), 1):
        agreement(figure.add_subplot(1, 2, place), kind, found["sparsities"], found["iou_with_taylor"][kind])
    figure.savefig(IMAGES / "agreement.png", dpi=110)


def contenders(axes: Axes, sparsity: str) -> None:
    """A line per contender at its best rate, and per cell of `MORE`."""
    measured = {name: best for name, (best, *_) in best_first(records_of(RESULTS / f"criteria-{sparsity}")).items()}
    del measured["dense"]  # not trained: it has no loss in training
    more = records_of(RESULTS / f"criteria-{sparsity}-more")
    measured |= {name: more[name] for name in MORE if name in more}
    names = sorted(measured, key=lambda name: perplexities(measured[name]), reverse=True)
    for text, style in STYLES.items():
        found = [(exp(levels(measured[name])[text]), name) for name in names if text in levels(measured[name])]
        if found:
            places = [names.index(name) for _, name in found]
            axes.plot([x for x, _ in found], places, style, label=TEXTS[text], ms=5)
    axes.set_yticks(range(len(names)), names)
    axes.set_xscale("log")
    axes.set_xticks([x for x in (20, 30, 50, 100, 200, 500, 1000) if x < 1.3 * axes.get_xlim()[1]])
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("perplexity")
    axes.set_title(f"{sparsity} % of the prunable parameters gone")
    axes.grid(alpha=0.3, which="both")
    axes.legend()


def ablation(axes: Axes, title: str, cells: dict[str, dict[str, Any]]) -> None:
    """Perplexity against one option's values, evenly spaced."""
    texts = ["wikitext2_raw_test.txt"]
    texts += [TRAINING] * all(TRAINING in levels(record) for record in cells.values())
    for text in texts:
        found = [exp(levels(record)[text]) for record in cells.values()]
        axes.plot(list(cells), found, f"-{STYLES[text]}", label=TEXTS[text], ms=5)
    axes.set_xlabel(title)
    axes.set_ylabel("perplexity")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def agreement(axes: Axes, kind: str, sparsities: Sequence[float], rows: dict[str, list[float]]) -> None:
    """Intersection over union with `taylor` against sparsity."""
    others = (name for name in rows if name != "taylor")
    for number, name in enumerate(others):
        style = "--" if name in ("magnitude", "random", "wanda") else "-"
        percents = [100 * sparsity for sparsity in sparsities]
        axes.plot(percents, rows[name], style, color=f"C{number}" if number < 10 else "black", marker=".", label=name)
    axes.set_title({"ffn": "FFN channels, uniform", "attention": "KV groups, across layers"}[kind])
    axes.set_xlabel("% gone")
    axes.set_ylabel("intersection over union with taylor")
    axes.grid(alpha=0.3)
    if kind == "attention":
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


if __name__ == "__main__":
    main()
