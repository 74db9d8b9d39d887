"""A cell of `secateur compare` told as a run: its record holds the same facts in other places."""

from pathlib import Path
from typing import Any

KINDS = ("prune", "sparsify", "dense", "dense+lora")


def is_cell(result: dict[str, Any]) -> bool:
    return result.get("kind") in KINDS and "name" in result


def from_cell(
    cell: dict[str, Any], dense: dict[str, Any], folder: Path
) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """The run's result, its units, and a record as `eval` writes it for each text.

    Args:
        cell: the cell's result.json.
        dense: that of the comparison's dense cell; empty where there is none.
    """
    config = cell.get("config") if isinstance(cell.get("config"), dict) else {}
    result = {key: value for key, value in cell.items() if key not in ("sparsity", "perplexity", "units", "kind")}
    result |= {
        "config": config,
        "cell": cell.get("kind"),
        "data": {"training": cell.get("training_data")},
        "pruned": {"parameters": cell.get("parameters")},
        "dense": {"parameters": dense.get("parameters")},
        "sparsity": {"reached": cell.get("sparsity") if cell.get("kind") == "prune" else None},
    }
    units = cell.get("units")
    model, place = str((config or {}).get("model")), str(folder.resolve())
    texts, other = cell.get("perplexity"), dense.get("perplexity")
    measured: list[dict[str, Any]] = []
    for spec, figures in texts.items() if isinstance(texts, dict) else ():
        before = other.get(spec) if isinstance(other, dict) and cell.get("kind") != "dense" else None
        models = {place: figures} | ({model: before} if isinstance(before, dict) else {})
        text = figures.get("text") if isinstance(figures, dict) else None
        measured.append({"data": text, "models": models, "folders": {place: place}})
    return result, units if isinstance(units, dict) else {}, measured
