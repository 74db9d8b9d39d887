"""The tables of adapt.py: each contender's best rate, means and spread over seeds, and paired differences."""

import statistics
from typing import Any

from secateur.records import markdown_table

REFERENCE = "lora-8"


def tables(records: list[dict[str, Any]], *, contenders: list[str], variants: list[str]) -> str:
    """Markdown: rates tried, contenders, variants, robustness."""
    tuned = [record for record in records if record["seed"] == 0]
    final = [record for record in records if record["seed"] > 0]
    parts = [("Held-out loss by learning rate, seed 0", rates_table(tuned, contenders))]
    parts += [("Contenders, other seeds, each at its best rate", finals_table(final, contenders, REFERENCE))]
    parts += [("One option of `gradient` at a time", finals_table(final, ["gradient", *variants], "gradient"))]
    parts += [("Rise of the loss under perturbation of A and B", noise_table(final, contenders))]
    return "\n\n".join(f"{title}\n\n{table}" for title, table in parts)


def rates_table(tuned: list[dict[str, Any]], names: list[str]) -> str:
    rates = sorted({record["rate"] for record in tuned})
    found = {(record["name"], record["rate"]): record["held_out"]["loss"] for record in tuned}
    rows = []
    for name in names:
        values = [found.get((name, rate)) for rate in rates]
        best = min((value for value in values if value is not None), default=None)
        rows.append((name, *("–" if v is None else f"**{v:.4f}**" if v == best else f"{v:.4f}" for v in values)))
    return markdown_table(rows, ("", *(f"{rate:g}" for rate in rates)))


def finals_table(final: list[dict[str, Any]], names: list[str], reference: str) -> str:
    """Mean and spread over seeds, and the differences from the reference, seed by seed."""
    at = {(record["name"], record["seed"]): record for record in final}
    rows = []
    for name in names:
        seeds = sorted(seed for own, seed in at if own == name)
        if not seeds:
            continue
        records = [at[name, seed] for seed in seeds]
        paired = [
            at[name, seed]["held_out"]["loss"] - at[reference, seed]["held_out"]["loss"]
            for seed in seeds
            if (reference, seed) in at
        ]
        accuracies = [record["held_out"]["accuracy"] for record in records if "accuracy" in record["held_out"]]
        rows.append(
            (
                name,
                f"{records[0]['rate']:g}",
                f"{records[0]['adapter_parameters'] / 1e6:.2f}M",
                spread([record["held_out"]["loss"] for record in records]),
                spread(paired, signed=True),
                " ".join(f"{difference:+.4f}" for difference in paired),
                spread([100 * accuracy for accuracy in accuracies], digits=1) if accuracies else "–",
                str(len(records)),
            )
        )
    columns = ("", "rate", "parameters", "held-out loss", f"less {reference}", "seed by seed", "accuracy, %", "seeds")
    return markdown_table(rows, columns)


def noise_table(final: list[dict[str, Any]], names: list[str]) -> str:
    noted = [record for record in final if "perturbed" in record]
    levels = sorted({level for record in noted for level in record["perturbed"] if level != "0"}, key=float)
    rows = []
    for name in names:
        own = [record["perturbed"] for record in noted if record["name"] == name]
        if own:
            rises = ([losses[level] - losses["0"] for losses in own] for level in levels)
            rows.append((name, *(spread(values, signed=True) for values in rises)))
    return markdown_table(rows, ("", *levels))


def spread(values: list[float], *, signed: bool = False, digits: int = 4) -> str:
    """Mean ± standard deviation."""
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):{'+' if signed else ''}.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean
