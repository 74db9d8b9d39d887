"""The tables of adapt.py: each contender's best rate, means and spread over seeds, and paired differences."""

import statistics
from dataclasses import dataclass
from typing import Any

from secateur.system.records import markdown_table

VARIED = "gradient, singular"
"""Whose options the variants change."""
REFERENCES = ("lora-8", "lora-8, alpha 2r", "gradient")
SMALLER_REFERENCES = ("lora-2, alpha 2r", "lora-2, alpha 4r")
CONTENDERS_TITLE = (
    "Contenders, each at its best rate. All cuts recover by `compensate` (the other papers' own cuts do not: see the "
    "rows `none` below); differences are paired by seed"
)
VARIANTS_TITLE = (
    f"One option of `{VARIED}` at a time. K1 × K2 also decides when the cutting ends. The paper's 10 x 2 takes "
    "224 cuts and 2,240 steps from rank 512 to 64; its like in a run of this size, the smallest cuts over most of it, "
    "is K1 1, K2 1"
)


@dataclass(frozen=True)
class Best:
    """The learning rate with the lowest loss on the rows to tune on."""

    rate: float
    edge: str
    """`low` or `high` where it is the lowest or highest of those tried, `only` where no other was, else empty."""
    own: bool = True
    """Whether it was tuned for this one, and not taken from `VARIED`."""

    @property
    def words(self) -> str:
        marks = {"low": " (lowest tried)", "high": " (highest tried)", "only": " (only one tried)"}
        return f"{self.rate:g}" + marks.get(self.edge, "") + ("" if self.own else f", as {VARIED}")


def best_rates(records: list[dict[str, Any]], variants: list[str]) -> dict[str, Best]:
    """Best rate of each that was tuned; variants that were not take that of `VARIED`."""
    losses: dict[str, dict[float, float]] = {}
    for record in records:
        if record["seed"] == 0:
            losses.setdefault(record["name"], {})[record["rate"]] = record["tuning"]["loss"]
    best = {}
    for name, tried in losses.items():
        rate = min(tried, key=lambda rate: tried[rate])
        edge = "only" if len(tried) == 1 else {min(tried): "low", max(tried): "high"}.get(rate, "")
        best[name] = Best(rate, edge)
    if VARIED in best:
        borrowed = Best(best[VARIED].rate, best[VARIED].edge, own=False)
        best = dict.fromkeys(variants, borrowed) | best
    return best


def tables(records: list[dict[str, Any]], *, contenders: list[str], smaller: list[str], variants: list[str]) -> str:
    """Markdown: rates tried, contenders, those that end at a smaller rank, variants, robustness.

    Final runs count at the best rate alone.
    """
    best = best_rates(records, variants)
    final = [r for r in records if r["seed"] > 0 and r["name"] in best and r["rate"] == best[r["name"]].rate]
    parts = [
        (
            "Loss on the rows to tune on by learning rate, seed 0",
            rates_table(records, [*contenders, *smaller, *variants]),
        )
    ]
    parts += [(CONTENDERS_TITLE, finals_table(final, best, contenders, REFERENCES))]
    parts += [
        (
            "Final rank 2; differences are paired by seed",
            finals_table(final, best, ["lora-64", *smaller], SMALLER_REFERENCES),
        )
    ]
    parts += [(VARIANTS_TITLE, finals_table(final, best, [VARIED, *variants], (VARIED,), cuts=True))]
    parts += [("Rise of the loss under perturbation of A and B", noise_table(final, contenders, "gradient"))]
    parts += [("The same at final rank 2", noise_table(final, smaller, SMALLER_REFERENCES[-1]))]
    return "\n\n".join(f"{title}\n\n{table}" for title, table in parts)


def rates_table(records: list[dict[str, Any]], names: list[str]) -> str:
    tuned = [record for record in records if record["seed"] == 0]
    rates = sorted({record["rate"] for record in tuned})
    found = {(record["name"], record["rate"]): record["tuning"]["loss"] for record in tuned}
    best = best_rates(tuned, [])
    rows = []
    for name in names:
        if name in best:
            values = [(rate, found.get((name, rate))) for rate in rates]
            own = best[name].rate
            cells = ("–" if v is None else f"**{v:.4f}**" if rate == own else f"{v:.4f}" for rate, v in values)
            rows.append((name, *cells, best[name].words))
    return markdown_table(rows, ("", *(f"{rate:g}" for rate in rates), "best"))


def finals_table(
    final: list[dict[str, Any]],
    best: dict[str, Best],
    names: list[str],
    references: tuple[str, ...],
    *,
    cuts: bool = False,
) -> str:
    """Mean and spread over seeds, and the differences from the references, seed by seed.

    Args:
        cuts: whether the steps of the first and the last cut are shown.
    """
    at = {(record["name"], record["seed"]): record for record in final}
    assert len(at) == len(final), "two final records of one contender and seed"
    rows = []
    for name in names:
        records = [record for (own, _), record in sorted(at.items()) if own == name]
        if not records:
            continue
        paired = [
            [
                r["held_out"]["loss"] - at[other, r["seed"]]["held_out"]["loss"]
                for r in records
                if (other, r["seed"]) in at
            ]
            for other in references
        ]
        accuracies = [100 * record["held_out"]["accuracy"] for record in records if "accuracy" in record["held_out"]]
        steps = records[0].get("cuts")
        row = (
            name,
            best[name].words,
            *((f"{len(steps)}, {steps[0]}–{steps[-1]}" if steps else "–",) if cuts else ()),
            f"{records[0]['adapter_parameters'] / 1e6:.2f}M",
            spread([record["held_out"]["loss"] for record in records]),
            *("–" if name == other else differences(values) for other, values in zip(references, paired, strict=True)),
            spread(accuracies, digits=1) if accuracies else "–",
            str(len(records)),
        )
        rows.append(row)
    columns = ("", "rate", *(("cuts, steps",) if cuts else ()), "parameters", "held-out loss")
    return markdown_table(rows, (*columns, *(f"less {name}" for name in references), "accuracy, %", "seeds"))


def noise_table(final: list[dict[str, Any]], names: list[str], reference: str) -> str:
    """Rise of the loss at each level that all have, and less that of the reference, paired by seed."""
    noted = {(r["name"], r["seed"]): r["perturbed"] for r in final if "perturbed" in r and r["name"] in names}
    rises = {
        which: {level: loss - losses["0"] for level, loss in losses.items() if level != "0"}
        for which, losses in noted.items()
    }
    levels = sorted(set.intersection(*map(set, rises.values())), key=float) if rises else []
    rows = []
    for name in names:
        own = {seed: found for (other, seed), found in sorted(rises.items()) if other == name}
        if not own:
            continue
        cells = []
        for level in levels:
            less = [own[seed][level] - rises[reference, seed][level] for seed in own if (reference, seed) in rises]
            values = [found[level] for found in own.values()]
            cells += [spread(values, signed=True), "–" if name == reference else differences(less)]
        rows.append((name, *cells))
    columns = [column for level in levels for column in (f"{level} of the root mean square", f"less {reference}")]
    return markdown_table(rows, ("", *columns))


def differences(values: list[float]) -> str:
    """Mean ± spread, and each seed's."""
    each = f" ({' '.join(f'{value:+.4f}' for value in values)})" if len(values) > 1 else ""
    return spread(values, signed=True) + each


def spread(values: list[float], *, signed: bool = False, digits: int = 4) -> str:
    """Mean ± standard deviation."""
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):{'+' if signed else ''}.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean
