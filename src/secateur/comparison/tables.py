"""A comparison's records as tables (terminal, Markdown, CSV, JSON) and a plot."""

import csv
from collections.abc import Sequence
from math import exp
from pathlib import Path
from typing import Any

from ..system.progress import phase
from ..system.records import markdown_table, write_json
from ..system.terminal.tables import Table, Words, spaced
from .contenders import Series, columns, dense_with_lora, rates_table, seeds_table, series_of
from .grid import Cell
from .recorded import RECORD, read_record

Row = dict[str, Any]


def write_comparison(
    folder: Path, cells: Sequence[Cell], reference: str | None = None, warnings: Sequence[str] = ()
) -> Words:
    """Write comparison.{json,md,csv,svg,png} of the cells that are there; returns the tables as text.

    Args:
        reference: the cell that others are compared with seed by seed; by default the first that was pruned, of the
            same budget, data and steps.
        warnings: what a reader of the tables must know.
    """
    paths = {cell.name: folder / cell.name / RECORD for cell in cells}
    records = {name: read_record(path) for name, path in paths.items() if path.exists()}
    names = columns(records.values())
    rows = [_row(record | {"name": name}, names) for name, record in records.items()]  # a folder may have been renamed
    if not rows:
        return Words("no cell has been run yet")
    series = series_of(cells, records)
    bases = {cell: dense_with_lora(series, each.condition) for each in series for cell in each.cells}
    header, lines = _table(rows, bases)
    tables = [("", (lines, header))]
    found: dict[str, Any] = {"cells": rows, "conditions": _conditions(list(records.values()), names)}
    found["warnings"] = list(warnings)
    if rates := rates_table(series):
        words = "Best learning rate of each contender, by the first text (so the more rates, the more it flatters):"
        tables.append((words, rates[0]))
        found["best_rates"] = rates[1]
    if seeds := seeds_table(series, reference):
        words = "Over seeds, mean ± standard deviation; against the reference: ratio (difference of log perplexity)"
        tables.append((f"{words} of the same seeds:", seeds[0]))
        found["over_seeds"] = seeds[1]
    notes = [f"**Warning**: {warning}" for warning in warnings]
    reasons = [f"`{row['cell']}` {' '.join(row['status'].split())}" for row in rows if row["status"] != "done"]
    parts = (part for title, table in tables for part in (title, markdown_table(*table)) if part)
    text = "\n\n".join([*notes, *parts, *reasons])
    (folder / "comparison.md").write_text(text + "\n", encoding="utf-8")
    write_json(folder / "comparison.json", found, result=True)
    with (folder / "comparison.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(lines)
    plot_perplexity(rows, folder / "comparison.svg")
    plot_perplexity(rows, folder / "comparison.png")
    shown = ([title] * bool(title) + [Table(head, rows)] for title, (rows, head) in tables)
    return spaced([*shown, *([reason] for reason in reasons)])


def _row(record: dict[str, Any], names: dict[str, str]) -> Row:
    failed = record["status"] != "done"
    return {
        "cell": record["name"],
        "kind": record["kind"],
        "status": record["status"] if not failed else f"failed: {record['reason']}",
        "sparsity": record.get("sparsity", 0.0),
        "parameters": record.get("parameters"),
        "bytes": record.get("bytes"),
        "peak_bytes": record.get("peak_bytes"),
        "perplexity": {names[text]: m["perplexity"] for text, m in record.get("perplexity", {}).items()},
        "stderr_nll": {names[text]: m["stderr_nll"] for text, m in record.get("perplexity", {}).items()},
        "step_seconds": record.get("step_seconds"),
        "total_seconds": record.get("total_seconds"),
    }


def _table(rows: list[Row], bases: dict[str, Series | None]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    texts = list(dict.fromkeys(text for row in rows for text in row["perplexity"]))
    rated = any(bases.values())
    sparse = any(row["kind"] == "sparsify" for row in rows)  # what is gone is then no smaller file
    sizes = ("MB on disk", "peak MB") if sparse else ()
    header = ["cell", "gone", "parameters", *sizes, *texts, *(f"ratio, {text}" for text in texts if rated)]
    lines = []
    for row in rows:
        cells = [_shown(row, text) for text in texts or [""]]
        base = bases.get(row["cell"])
        for text in texts if rated else []:
            value = row["perplexity"].get(text)
            cells.append(f"{value / exp(base.level(text)):.3f}" if value and base and text in base.nll else "")
        size = f"{row['parameters']:,}" if row["parameters"] else ""
        held = [f"{value / 1e6:,.0f}" if (value := row[key]) else "" for key in ("bytes", "peak_bytes") if sparse]
        lines.append((row["cell"], f"{row['sparsity']:.1%}", size, *held, *cells, _seconds(row)))
    return (*(header if texts else [*header, "perplexity"]), "s/step"), lines


def _shown(row: Row, text: str) -> str:
    if row["status"] != "done":
        return "failed"
    if text not in row["perplexity"]:
        return ""  # it was not measured on this text
    value = row["perplexity"][text]
    return "inf" if value is None else f"{value:.2f}"


def _seconds(row: Row) -> str:
    return f"{row['step_seconds']:.2f}" if row["step_seconds"] else ""


def _conditions(records: list[dict[str, Any]], names: dict[str, str]) -> dict[str, Any]:
    """What the figures were measured under; an option that differs between cells with all its values."""
    done = [record for record in records if record["status"] == "done"]
    if not done:
        return {}
    first = done[0]
    keep = ("model", "steps", "batch_size", "seq_len", "lr", "rank", "eval_tokens", "eval_seq_len", "dtype")
    return {
        "options": {name: _alike([record["config"].get(name) for record in done]) for name in keep},
        "training_data": first["training_data"],
        "evaluation": {
            names[text]: {key: m[key] for key in ("tokens_scored", "segments", "seq_len", "dtype")}
            for text, m in first["perplexity"].items()
        },
        "environment": first["environment"],
    }


def _alike(values: list[Any]) -> Any:
    distinct = [value for place, value in enumerate(values) if value not in values[:place]]
    return distinct[0] if len(distinct) == 1 else distinct


@phase("drawing the plot")
def plot_perplexity(rows: list[Row], path: Path) -> None:
    """Perplexity (log scale) against parameters kept, one panel per text."""
    from matplotlib.figure import Figure

    found = [(row, text, value) for row in rows for text, value in row["perplexity"].items() if value is not None]
    texts = list(dict.fromkeys(text for _, text, _ in found))
    if not texts:
        return
    figure = Figure(figsize=(5.5 * len(texts), 4.2), layout="constrained")
    for number, text in enumerate(texts, 1):
        axes = figure.add_subplot(1, len(texts), number)
        for row, _, y in (each for each in found if each[1] == text):
            x = row["parameters"] / 1e6
            marker = {"prune": "o", "sparsify": "^"}.get(row["kind"], "s")
            axes.plot([x], [y], marker, markersize=5)
            axes.annotate(row["cell"], (x, y), textcoords="offset points", xytext=(5, 2), fontsize=7)
        axes.set_yscale("log")
        axes.set_xlabel("parameters kept (millions)")
        axes.set_ylabel(f"perplexity on {text}")
        axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
