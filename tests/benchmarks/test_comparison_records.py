"""Records of a comparison are kept and put back, and goals are read from them."""

import json
from math import exp, sqrt
from pathlib import Path
from statistics import stdev

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks" / "criteria"


@pytest.fixture
def records(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import comparison_records

    return comparison_records


def cell(folder: Path, losses: list[float], nll: float | None = None, **config) -> None:
    folder.mkdir(parents=True)
    record = {"name": folder.name, "kind": "prune", "status": "done", "config": config, "sparsity": 0.5}
    measured = {"perplexity": exp(nll), "mean_nll": nll, "text": {"sha256": "0"}} if nll else None
    record |= {
        "perplexity": {"t.txt": measured} if measured else {},
        "parameters": 1,
        "training_data": {"data": "/d/t"},
        "units": [1],
    }
    (folder / "result.json").write_text(json.dumps(record))
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps({"loss": loss}) for loss in losses))


def test_kept_and_put_back(records, tmp_path) -> None:
    """The last fourth of the losses goes along, where they are the task's own; lists of units do not.

    A one-shot run trains for fewer steps than it has: the fourth is of all.
    """
    cell(tmp_path / "runs" / "lora", [*[9.0] * 7, 2.0, 3.0, 4.0], steps=12, distill=0.0)
    cell(tmp_path / "runs" / "taught", [9.0] * 12, distill=0.5)
    records.keep(tmp_path / "runs", tmp_path / "kept", "/d")
    records.restore(tmp_path / "again", tmp_path / "kept", "/e")
    back = {path.parent.name: json.loads(path.read_text()) for path in (tmp_path / "again").glob("*/result.json")}
    assert back["lora"]["last_losses"] == 3.0
    assert "last_losses" not in back["taught"]
    assert all("units" not in record and record["training_data"]["data"] == "/e/t" for record in back.values())


def test_a_contender_counts_at_its_best_rate_and_seeds_in_pairs(records, tmp_path) -> None:
    """The rate of the column's own: `lora` at 1e-3 by the training's loss, at 2e-3 by the text."""
    import goal_ratios

    for name, rate, losses, nlls in (
        ("lora", 1e-3, (2.0, 2.2), (3.0, 3.5)),
        ("lora", 2e-3, (2.5, 2.5), (2.0, 3.0)),
        ("best", 1e-3, (1.0, 1.0), (1.5, 2.0)),
    ):
        for seed, (loss, nll) in enumerate(zip(losses, nlls, strict=True)):
            folder = tmp_path / "runs" / f"{name}_lr{rate}_seed{seed}"
            cell(folder, [loss] * 4, nll=nll, lr=rate, seed=seed)
    records.keep(tmp_path / "runs", tmp_path / "kept", "/d")
    line = goal_ratios.goal_table([records.records_of(tmp_path / "kept")]).splitlines()[-1]
    text, trained = (part.strip() for part in line.split("|")[4:6])
    spread = stdev((-0.5, -1.0)) / sqrt(2)
    assert text == f"{exp(-0.75):.3f} ± {exp(-0.75) * spread:.3f}"
    assert trained.startswith(f"{exp(-1.1):.3f} ± ")


def test_the_pages_tables_are_what_the_records_say(records) -> None:
    import criteria_tables

    page = criteria_tables.PAGE.read_text(encoding="utf-8")
    assert criteria_tables.filled(page, criteria_tables.tables()) == page
