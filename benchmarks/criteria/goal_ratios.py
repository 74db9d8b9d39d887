"""The ratios that LoRAPrune and this project's own criteria are to reach, from comparisons' records, as one table.

    python benchmarks/criteria/goal_ratios.py runs/criteria-50 runs/criteria-20

A folder is a `secateur compare --output`, or records kept by `comparison_records.py`, which alone have the last
training losses. A contender counts at the learning rate that is best on the first text, in the last column at the best
by its last training losses. Of several seeds it is the mean over pairs of one seed (of the logarithms), with its
standard error.
"""

import argparse
import re
from collections.abc import Iterable
from math import exp, sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from comparison_records import records_of

from secateur.system.records import markdown_table

Record = dict[str, Any]
Rates = dict[float, dict[int, Record]]
"""Learning rate -> seed -> record."""

TRAINING = "training, last steps"
"""The training's own text, beside those of the evaluation."""


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
    Goal(0.5, "taylor", "llm-pruner", 0.84, "the same order, both by ∂L/∂W"),
    Goal(0.2, "taylor", "llm-pruner", 0.89, "the same order, both by ∂L/∂W"),
    Goal(0.5, "lora-pissa", "taylor", 1.02, "LoRAPrune, Table 4: 11.60/11.48"),
    Goal(0.5, "lora", "taylor", 1.02, "the same, with PEFT's start"),
    Goal(0.5, "gate", "taylor", 0.97, "ours"),
    Goal(0.5, "best", "lora", 0.70, "ours"),
    Goal(0.5, "best", "lora-uniform-cosine", 0.70, "ours; LoRAPrune as the paper has it"),
    Goal(0.5, "best", "llm-pruner", 0.75, "ours"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparisons", type=Path, nargs="+", help="folders with the cells' records")
    print(goal_table([records_of(folder) for folder in parser.parse_args().comparisons]))


def goal_table(comparisons: Iterable[dict[str, Record]]) -> str:
    """A line for each goal that a comparison has both contenders of. Each is cell -> record, of one sparsity."""
    found = [contenders_of(records) for records in comparisons]
    texts = texts_of(record for rates in found for each in rates.values() for record in records_in(each))
    lines = []
    for goal in GOALS:
        for rates in found:
            one, other = rates.get(goal.contender), rates.get(goal.base)
            if one and other and abs(records_in(one)[0]["sparsity"] - goal.sparsity) < 0.01:
                ratios = [ratio(at_best(one, text, texts[0]), at_best(other, text, texts[0])) for text in texts]
                ratios.append(ratio(at_best(one, TRAINING, TRAINING), at_best(other, TRAINING, TRAINING)))
                name = f"`{goal.contender}` / `{goal.base}`"
                lines.append((name, f"{goal.sparsity:.0%}", str(goal.at_most), *ratios, goal.where))
    return markdown_table(lines, ("", "gone", "at most", *texts, TRAINING, "asked by"))


def contenders_of(records: dict[str, Record]) -> dict[str, Rates]:
    """Contender -> its rates and seeds, of cells that prune."""
    found: dict[str, Rates] = {}
    for name, record in records.items():
        if record["kind"] == "prune":
            config = record["config"]
            rates = found.setdefault(re.split("_(?:lr|seed)", name)[0], {})
            rates.setdefault(config["lr"], {})[config["seed"]] = record
    return found


def records_in(rates: Rates) -> list[Record]:
    """All rates, all seeds."""
    return [record for seeds in rates.values() for record in seeds.values()]


def texts_of(records: Iterable[Record]) -> list[str]:
    """Names of the texts that perplexity was measured on."""
    return list(dict.fromkeys(text for record in records for text in levels(record) if text != TRAINING))


def levels(record: Record) -> dict[str, float]:
    """Text -> logarithm of the perplexity."""
    found = {Path(text).name: measured["mean_nll"] for text, measured in record["perplexity"].items()}
    return found | ({TRAINING: record["last_losses"]} if "last_losses" in record else {})


def at_best(rates: Rates, text: str, chosen_on: str) -> dict[int, float]:
    """Seed -> logarithm of the perplexity on a text, at the rate with the lowest mean on another."""
    measured = [{seed: levels(record) for seed, record in seeds.items()} for seeds in rates.values()]
    known = [seeds for seeds in measured if all(chosen_on in each for each in seeds.values())]
    best = min(known, key=lambda seeds: mean(each[chosen_on] for each in seeds.values()), default={})
    return {seed: each[text] for seed, each in best.items() if text in each}


def ratio(one: dict[int, float], other: dict[int, float]) -> str:
    """Perplexity over perplexity, with its standard error where there are several seeds."""
    differences = [one[seed] - other[seed] for seed in one if seed in other]
    if not differences:
        return ""
    value = exp(mean(differences))
    if len(differences) < 2:
        return f"{value:.3f}"
    return f"{value:.3f} ± {value * stdev(differences) / sqrt(len(differences)):.3f}"


if __name__ == "__main__":
    main()
