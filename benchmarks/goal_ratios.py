"""The ratios that LoRAPrune and this project's own criteria are to reach, from comparisons' tables, as one table.

    python benchmarks/goal_ratios.py runs/criteria-50 runs/criteria-20

A folder is a `secateur compare --output` with `comparison.json`. A contender counts at its best learning rate; in the
last column at the best by its last training losses, which cells have that `comparison_records.py` has put back. Of
several seeds it is the mean over pairs of one seed (of the logarithms), with its standard error.
"""

import argparse
import json
import re
from math import exp, sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from secateur.recorded import RECORD, read_record
from secateur.records import markdown_table

Levels = dict[str, dict[str, dict[str, float]]]
"""Contender -> text -> seed -> log perplexity."""


class Goal(NamedTuple):
    """One contender's perplexity over another's."""

    sparsity: float
    contender: str
    base: str
    at_most: float
    where: str


GOALS = (
    Goal(0.5, "lora", "llm-pruner", 0.84, "LoRAPrune, Table 7 (C4): 18.37/21.78"),
    Goal(0.2, "lora", "llm-pruner", 0.89, "LoRAPrune, Table 7 (C4): 12.93/14.51"),
    Goal(0.5, "lora-pissa", "taylor", 1.02, "LoRAPrune, Table 4: 11.60/11.48"),
    Goal(0.5, "lora", "taylor", 1.02, "the same, with PEFT's start"),
    Goal(0.5, "gate", "taylor", 0.97, "ours"),
    Goal(0.5, "best", "lora", 0.70, "ours"),
    Goal(0.5, "best", "lora-uniform-cosine", 0.70, "ours; LoRAPrune as the paper has it"),
    Goal(0.5, "best", "llm-pruner", 0.75, "ours"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparisons", type=Path, nargs="+", help="folders with a comparison.json each")
    found = [(*levels_of(folder), last_losses_of(folder)) for folder in parser.parse_args().comparisons]
    texts = list(dict.fromkeys(text for _, levels, _ in found for nll in levels.values() for text in nll))
    lines = []
    for goal in GOALS:
        for sparsity, levels, losses in found:
            one, other = levels.get(goal.contender, {}), levels.get(goal.base, {})
            if abs(sparsity - goal.sparsity) < 0.01 and one and other:
                name = f"`{goal.contender}` / `{goal.base}`"
                ratios = [ratio(one[text], other[text]) for text in texts]
                trained = [losses.get(contender, {}) for contender in (goal.contender, goal.base)]
                ratios.append(ratio(*trained) if all(trained) else "")
                lines.append((name, f"{sparsity:.0%}", str(goal.at_most), *ratios, goal.where))
    print(markdown_table(lines, ("", "gone", "at most", *texts, "training, last steps", "asked by")))


def levels_of(folder: Path) -> tuple[float, Levels]:
    """A comparison's sparsity, and what its contenders reached at their best rates, or their only one."""
    table = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    sparsity = max(cell["sparsity"] for cell in table["cells"])
    if "over_seeds" in table:
        return sparsity, {row["name"]: row["nll"] for row in table["over_seeds"] if row["kind"] == "prune"}
    rows = [row for row in table["best_rates"] if row["kind"] == "prune"]
    return sparsity, {row["contender"]: {text: {"": nll} for text, nll in row["mean_nll"].items()} for row in rows}


def last_losses_of(folder: Path) -> dict[str, dict[str, float]]:
    """Contender -> seed -> mean of its last training losses, at the rate where that is least."""
    found: dict[str, dict[float, dict[str, float]]] = {}
    for path in folder.glob(f"*/{RECORD}"):
        record = read_record(path)
        if record["kind"] == "prune" and "last_losses" in record:
            contender = re.split("_(?:lr|seed)", path.parent.name)[0]
            config = record["config"]
            seeds = found.setdefault(contender, {}).setdefault(config["lr"], {})
            seeds[str(config["seed"])] = record["last_losses"]
    return {name: min(rates.values(), key=lambda seeds: mean(seeds.values())) for name, rates in found.items()}


def ratio(one: dict[str, float], other: dict[str, float]) -> str:
    """Perplexity over perplexity, with its standard error where there are several seeds."""
    differences = [one[seed] - other[seed] for seed in one if seed in other]
    value = exp(mean(differences))
    if len(differences) < 2:
        return f"{value:.3f}"
    return f"{value:.3f} ± {value * stdev(differences) / sqrt(len(differences)):.3f}"


if __name__ == "__main__":
    main()
