"""A comparison's records as tables (terminal, Markdown, CSV, JSON) and a plot."""

import csv
from collections.abc import Sequence
from math import exp
from pathlib import Path
from typing import Any

from .contenders import Series, dense_with_lora, rates_table, seeds_table, series_of
from .grid import Cell
from .recorded import RECORD, read_record
from .records import format_table, markdown_table, write_json

Row = dict[str, Any]


def write_comparison(folder: Path, cells: Sequence[Cell], reference: str | None = None) -> str:
    """Write comparison.{json,md,csv,svg,png} of the cells that are there; returns the tables as text.

    Args:
        reference: the cell that others are compared with seed by seed; by default the first that was pruned.
    """
    paths = {cell.name: folder / cell.name / RECORD for cell in cells}
    records = {name: read_record(path) for name, path in paths.items() if path.exists()}
    rows = [_row(record | {"name": name}) for name, record in records.items()]  # a folder may have been renamed
    if not rows:
        return "no cell has been run yet"
    series = series_of(cells, records)
    header, lines = _table(rows, dense_with_lora(series))
    tables = [("", (lines, header))]
    found: dict[str, Any] = {"cells": rows, "conditions": _conditions(list(records.values()))}
    if rates := rates_table(series):
        tables.append(("Best learning rate of each contender, by the first text:", rates[0]))
        found["best_rates"] = rates[1]
    if seeds := seeds_table(series, reference):
        words = "Over seeds, mean ± standard deviation; against the reference: ratio (difference of log perplexity)"
        tables.append((f"{words} of the same seeds:", seeds[0]))
        found["over_seeds"] = seeds[1]
    text = "\n\n".join(part for title, table in tables for part in (title, markdown_table(*table)) if part)
    (folder / "comparison.md").write_text(text + "\n", encoding="utf-8")
    write_json(folder / "comparison.json", found)
    with (folder / "comparison.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(lines)
    plot_perplexity(rows, folder / "comparison.svg")
    plot_perplexity(rows, folder / "comparison.png")
    return "\n\n".join(f"{title}\n{format_table(*table)}".lstrip() for title, table in tables)


def _row(record: dict[str, Any]) -> Row:
    failed = record["status"] != "done"
    return {
        "cell": record["name"],
        "kind": record["kind"],
        "status": record["status"] if not failed else f"failed: {record['reason']}",
        "sparsity": record.get("sparsity", 0.0),
        "parameters": record.get("parameters"),
        "perplexity": {Path(text).name: m["perplexity"] for text, m in record.get("perplexity", {}).items()},
        "stderr_nll": {Path(text).name: m["stderr_nll"] for text, m in record.get("perplexity", {}).items()},
        "step_seconds": record.get("step_seconds"),
        "total_seconds": record.get("total_seconds"),
    }


def _table(rows: list[Row], base: Series | None) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    texts = list(dict.fromkeys(text for row in rows for text in row["perplexity"]))
    header = ["cell", "gone", "parameters", *texts]
    header += [f"ratio, {text}" for text in texts] if base else []
    lines = []
    for row in rows:
        found = [row["perplexity"].get(text) for text in texts]
        cells = [f"{value:.2f}" if value is not None else row["status"] for value in found]
        if base:
            cells += [
                f"{value / exp(base.level(text)):.3f}" if value is not None and text in base.nll else ""
                for value, text in zip(found, texts, strict=True)
            ]
        size = f"{row['parameters']:,}" if row["parameters"] else ""
        lines.append((row["cell"], f"{row['sparsity']:.1%}", size, *cells, _seconds(row)))
    return (*header, "s/step"), lines


def _seconds(row: Row) -> str:
    return f"{row['step_seconds']:.2f}" if row["step_seconds"] else ""


def _conditions(records: list[dict[str, Any]]) -> dict[str, Any]:
    """What every figure was measured under."""
    done = [record for record in records if record["status"] == "done"]
    if not done:
        return {}
    first = done[0]
    keep = ("model", "steps", "batch_size", "seq_len", "lr", "rank", "eval_tokens", "eval_seq_len", "dtype")
    return {
        "options": {name: first["config"][name] for name in keep},
        "training_data": first["training_data"],
        "evaluation": {
            Path(text).name: {key: m[key] for key in ("tokens_scored", "segments", "seq_len", "dtype")}
            for text, m in first["perplexity"].items()
        },
        "environment": first["environment"],
    }


def plot_perplexity(rows: list[Row], path: Path) -> None:
    """Perplexity (log scale) against parameters kept, one panel per text."""
    from matplotlib.figure import Figure

    done = [row for row in rows if row["perplexity"]]
    texts = list(dict.fromkeys(text for row in done for text in row["perplexity"]))
    figure = Figure(figsize=(5.5 * len(texts), 4.2), layout="constrained")
    for number, text in enumerate(texts, 1):
        axes = figure.add_subplot(1, len(texts), number)
        for row in done:
            x, y = row["parameters"] / 1e6, row["perplexity"][text]
            marker = "o" if row["kind"] == "prune" else "s"
            axes.plot([x], [y], marker, markersize=5)
            axes.annotate(row["cell"], (x, y), textcoords="offset points", xytext=(5, 2), fontsize=7)
        axes.set_yscale("log")
        axes.set_xlabel("parameters kept (millions)")
        axes.set_ylabel(f"perplexity on {text}")
        axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
