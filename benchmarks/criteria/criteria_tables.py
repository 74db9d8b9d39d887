"""The tables of docs/results/criteria.md, from the cells' kept records and the grids that they are cells of.

    python benchmarks/criteria/criteria_tables.py

writes them into the page; with `--check` it says whether the page has them.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from math import exp
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from comparison_records import records_of
from goal_ratios import TRAINING, contenders_of, goal_table, levels, records_in

from secateur.system.records import markdown_table

BENCHMARKS = Path(__file__).parent
RESULTS = BENCHMARKS.parents[1] / "docs" / "results"
PAGE = RESULTS / "criteria.md"
TEXTS = {
    "wikitext2_raw_test.txt": "WikiText-2",
    "ptb_test.txt": "PTB",
    "c4_eval.jsonl": "C4, held out",
    "c4_eval_head.jsonl": "C4, held out",
    TRAINING: "C4, last steps",
}
ONE_RATE = 1e-3
"""That of criteria-more.yaml."""
ELSEWHERE = {"start": ("criteria-50", "lora_lr1e-3"), "separate": ("criteria-50-more", "lora-one-shot")}
"""Cells of ablations.yaml that a cell of another grid is the same as."""

Record = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    old = PAGE.read_text(encoding="utf-8")
    new = filled(old, tables())
    if not check:
        PAGE.write_text(new, encoding="utf-8")
    elif new != old:
        sys.exit(f"{PAGE} has other tables than its records say: run {Path(__file__).name}")


def filled(page: str, found: dict[str, str]) -> str:
    """The page with each table between its marks, `<!-- table: NAME -->` and `<!-- end -->`."""
    for name, table in found.items():
        marks = re.compile(rf"(<!-- table: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        page, count = marks.subn(lambda found, table=table: f"{found[1]}\n{table}\n\n{found[2]}", page)
        assert count == 1, f"the page has {count} places for {name}"
    return page


def tables() -> dict[str, str]:
    """Name -> Markdown."""
    found = {}
    kept = {name: records_of(RESULTS / f"criteria-{name}") for name in ("50", "20")}
    found["goals"] = goal_table(kept.values())
    for name, records in kept.items():
        more = records_of(RESULTS / f"criteria-{name}-more")
        found[f"contenders {name} %"] = contenders_table(records)
        found[f"the rest {name} %"] = rest_table(more, records)
    found["ablations"] = ablations_table(ablations())
    longer = records_of(RESULTS / "goals")
    found["longer runs"] = seeds_table(longer)
    found["goals in longer runs"] = goal_table([longer])
    return found


def options_of(grid: str) -> dict[str, str]:
    """Cell -> its options, as code."""
    cells = yaml.safe_load((BENCHMARKS / f"{grid}.yaml").read_text(encoding="utf-8"))["cells"]
    named = dict(cell.split(": ", 1) for cell in cells)
    return {name: " ".join(f"`{option}`" for option in options.split()) for name, options in named.items()}


def contenders_table(records: dict[str, Record]) -> str:
    """Each contender at the rate that is best on the first text, with its other rates."""
    options, texts = options_of("criteria"), measured_on(records)
    rows = []
    for name, (best, *others) in best_first(records).items():
        rate = shown_rate(best) if best["kind"] != "dense" else ""
        left = "; ".join(f"{shown_rate(record)}: {', '.join(shown(record, texts[:2]))}" for record in others)
        rows.append((perplexities(best), (f"`{name}`", options.get(name, ""), rate, *shown(best, texts), left)))
    header = ("cell", "its options", "peak rate", *map(TEXTS.get, texts), "other rates: WikiText-2, PTB")
    return markdown_table([row for _, row in sorted(rows)], header, left=2)


def best_first(records: dict[str, Record]) -> dict[str, list[Record]]:
    """Contender or baseline -> its records at all rates, the best on the first text first."""
    found = {name: records_in(rates) for name, rates in contenders_of(records).items()}
    for kind in ("dense+lora", "dense"):
        found[kind] = [record for record in records.values() if record["kind"] == kind]
    return {name: sorted(measured, key=perplexities) for name, measured in found.items()}


def rest_table(records: dict[str, Record], contenders: dict[str, Record]) -> str:
    """All other cells, and among them the contenders at the same rate."""
    options, contenders_options = options_of("criteria-more"), options_of("criteria")
    texts = measured_on(records)
    rows = [(record, f"`{name}`", options[name]) for name, record in records.items()]
    for name, rates in contenders_of(contenders).items():
        same = rates.get(ONE_RATE, {}).values()
        rows += [(record, f"`{name}` (above)", contenders_options[name]) for record in same]
    rows.sort(key=lambda row: perplexities(row[0]))
    lines = [(name, its, *shown(record, texts)) for record, name, its in rows]
    return markdown_table(lines, ("cell", "its options", *map(TEXTS.get, texts)), left=2)


def ablations() -> dict[str, Record]:
    """Cells of ablations.yaml; of those that run longer or shorter without the training's losses, of other batches."""
    records = records_of(RESULTS / "ablations")
    records |= {name: records_of(RESULTS / grid)[cell] for name, (grid, cell) in ELSEWHERE.items()}
    for record in records.values():
        if record["config"]["steps"] != records["start"]["config"]["steps"]:
            record.pop("last_losses", None)
    return records


def ablations_table(records: dict[str, Record]) -> str:
    """In the grid's order; on WikiText-2 and the training's own text."""
    options, texts = options_of("ablations"), ("wikitext2_raw_test.txt", TRAINING)
    lines = [(name, its, *shown(records[name], texts)) for name, its in options.items() if name in records]
    return markdown_table(lines, ("cell", "its option", *map(TEXTS.get, texts)), left=2)


def seeds_table(records: dict[str, Record]) -> str:
    """Contenders at one rate each, a line per seed and one of the means (of the logarithms)."""
    lines, texts = [], measured_on(records)
    for name, rates in contenders_of(records).items():
        found = records_in(rates)
        rate = shown_rate(found[0])
        lines += [(f"`{name}`", rate, str(record["config"]["seed"]), *shown(record, texts)) for record in found]
        if len(found) > 1:
            means = [mean(levels(record)[text] for record in found) for text in texts]
            lines.append((f"`{name}`", rate, "mean", *(f"**{exp(value):.1f}**" for value in means)))
    return markdown_table(lines, ("cell", "peak rate", "seed", *map(TEXTS.get, texts)))


def perplexities(record: Record) -> list[float]:
    """On the texts of the evaluation."""
    return [exp(nll) for text, nll in levels(record).items() if text != TRAINING]


def measured_on(records: dict[str, Record]) -> list[str]:
    """Those of `TEXTS` that some record has."""
    return [text for text in TEXTS if any(text in levels(record) for record in records.values())]


def shown(record: Record, texts: Sequence[str]) -> tuple[str, ...]:
    """A perplexity per text; nothing where it was not measured."""
    found = levels(record)
    return tuple(f"{exp(found[text]):.1f}" if text in found else "" for text in texts)


def shown_rate(record: Record) -> str:
    return f"{record['config']['lr']:.0e}".replace("e-0", "e-")


if __name__ == "__main__":
    main()
