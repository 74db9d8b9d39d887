"""A comparison's records as tables (terminal, Markdown, CSV, JSON) and a plot."""

import csv
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from .records import format_table, markdown_table, write_json

Row = dict[str, Any]


def write_comparison(folder: Path, names: list[str]) -> str:
    """Write comparison.{json,md,csv,svg,png} of the cells that are there; returns the table as text."""
    paths = [folder / name / "result.json" for name in names]
    records = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
    rows = [_row(record) for record in records]
    if not rows:
        return "no cell has been run yet"
    header, lines = _table(rows)
    text = markdown_table(lines, header)
    if groups := _over_seeds(records):
        text += "\n\nOver seeds, mean ± standard deviation:\n\n" + markdown_table(*groups)
    (folder / "comparison.md").write_text(text + "\n", encoding="utf-8")
    write_json(folder / "comparison.json", {"cells": rows, "conditions": _conditions(records)})
    with (folder / "comparison.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(lines)
    plot_perplexity(rows, folder / "comparison.svg")
    plot_perplexity(rows, folder / "comparison.png")
    return format_table(lines, header)


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


def _table(rows: list[Row]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    texts = list(dict.fromkeys(text for row in rows for text in row["perplexity"]))
    base = next((row for row in rows if row["kind"] == "dense+lora" and row["perplexity"]), None)
    header = ["cell", "gone", "parameters", *texts]
    header += [f"ratio, {text}" for text in texts] if base else []
    lines = []
    for row in rows:
        found = [row["perplexity"].get(text) for text in texts]
        cells = [f"{value:.2f}" if value is not None else row["status"] for value in found]
        if base:
            cells += [
                f"{value / base['perplexity'][text]:.3f}" if value is not None else ""
                for value, text in zip(found, texts, strict=True)
            ]
        size = f"{row['parameters']:,}" if row["parameters"] else ""
        lines.append((row["cell"], f"{row['sparsity']:.1%}", size, *cells, _seconds(row)))
    return (*header, "s/step"), lines


def _seconds(row: Row) -> str:
    return f"{row['step_seconds']:.2f}" if row["step_seconds"] else ""


def _over_seeds(records: list[dict[str, Any]]) -> tuple[list[tuple[str, ...]], tuple[str, ...]] | None:
    """Lines and header of mean ± standard deviation over cells that differ in their seed alone; None without such."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if record["status"] == "done" and record["kind"] == "prune":
            options = {k: v for k, v in record["config"].items() if k not in ("seed", "output", "overwrite")}
            groups.setdefault(json.dumps(options, sort_keys=True), []).append(record)
    several = [group for group in groups.values() if len(group) > 1]
    if not several:
        return None
    texts = list(several[0][0]["perplexity"])
    lines = []
    for group in several:
        cells = []
        for text in texts:
            values = [record["perplexity"][text]["perplexity"] for record in group]
            cells.append(f"{mean(values):.2f} ± {stdev(values):.2f}")
        lines.append((group[0]["name"], str(len(group)), *cells))
    return lines, ("first cell", "seeds", *(Path(text).name for text in texts))


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
