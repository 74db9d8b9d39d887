"""The two pictures of the README: the quickstart from what goes in to what comes out, and three seeds at 50 %.

    secateur quickstart && python benchmarks/quality/readme_figures.py secateur-quickstart

The first is drawn from a quickstart's own records, the second from docs/results/goals.
"""

import json
import sys
from math import exp
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

DOCS = Path(__file__).parents[2] / "docs"
INK, CUT, KEPT, GREY = "#1d3b3a", "#c2552d", "#1f8a84", "#8a9a99"
CONTENDERS = {
    "llm-pruner": "LLM-Pruner's recipe: one cut, then LoRA",
    "lora": "LoRAPrune, four layers left alone",
    "taylor": "taylor, four layers left alone",
    "best": "gate, ranked across layers, with a refit",
}
C4 = "c4_eval_head.jsonl"


def main() -> None:
    folder = Path(sys.argv[1])
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    draw_quickstart(result, steps).savefig(DOCS / "images" / "quickstart.png", dpi=160)
    draw_seeds().savefig(DOCS / "images" / "three-seeds.png", dpi=160)


def draw_quickstart(result: dict[str, Any], steps: list[dict[str, Any]]) -> Figure:
    """What goes in, the training with its cuts, what comes out."""
    figure = Figure(figsize=(10, 3.1), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.0, 1.7, 1.0))
    dense, pruned = result["dense"], result["pruned"]
    name, tokens = result["config"]["model"], result["data"]["trained_tokens"]
    _card(left, "in", [name, *_sizes(dense), f"{tokens:,} tokens of text"])
    stock = f"{result['export']['model_class']}, loads without secateur"
    faster = f"forward pass {result['speed']['speedup']:.2f}x as fast"
    _card(right, "out", [stock, *_sizes(pruned), faster])
    trained = [line for line in steps if "loss" in line and "sparsity" in line]
    x = [line["step"] for line in trained]
    middle.step(x, [100 * line["sparsity"] for line in trained], where="post", color=CUT, linewidth=2)
    middle.set_ylabel("prunable parameters gone, %", color=CUT)
    middle.set_xlabel("step of LoRA training")
    middle.set_title(f"secateur: {result['train_seconds']:.0f} s of training on 2 cores", color=INK)
    other = middle.twinx()
    other.plot(x, [line["loss"] for line in trained], color=KEPT, linewidth=1.5)
    other.set_ylabel("training loss, nats", color=KEPT)
    for axes in (middle, other):
        axes.spines["top"].set_visible(False)
    return figure


def _sizes(side: dict[str, Any]) -> list[str]:
    perplexity = side["perplexity"]["perplexity"]
    return [
        f"{side['parameters'] / 1e6:.1f} M parameters",
        f"{side['bytes'] / 1e6:.0f} MB on disk",
        f"perplexity {perplexity:.2f} on held-out text",
    ]


def _card(axes: Axes, title: str, lines: list[str]) -> None:
    axes.set_axis_off()
    axes.set_title(title, color=INK, fontweight="bold")
    for number, line in enumerate(lines):
        weight = "bold" if number == 0 else "normal"
        axes.text(0.5, 0.86 - 0.17 * number, line, ha="center", va="center", fontsize=9, color=INK, weight=weight)


def draw_seeds() -> Figure:
    """Held-out C4 of every seed, and the geometric mean, at half of the prunable parameters."""
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    axes = figure.subplots()
    for row, name in enumerate(reversed(CONTENDERS)):
        records = [json.loads(path.read_text()) for path in sorted((DOCS / "results/goals").glob(f"{name}_seed*.json"))]
        losses = [record["perplexity"][C4]["mean_nll"] for record in records]
        axes.plot([exp(loss) for loss in losses], [row] * len(losses), "o", color=GREY, markersize=5)
        middle = exp(mean(losses))
        axes.plot([middle], [row], "|", color=CUT, markersize=18, markeredgewidth=3)
        axes.annotate(f"{middle:.1f}", (middle, row), (0, 11), textcoords="offset points", ha="center", color=CUT)
    axes.set_yticks(range(len(CONTENDERS)), list(reversed(CONTENDERS.values())))
    axes.set_ylim(-0.5, len(CONTENDERS) - 0.2)
    axes.set_xlabel("perplexity on held-out C4, 50 % gone (dots: seeds; bars: geometric mean)")
    axes.grid(axis="x", alpha=0.3)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
