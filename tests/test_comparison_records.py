"""Records of a comparison are kept and put back, and goals are read from them."""

import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def records(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import comparison_records

    return comparison_records


def cell(folder: Path, losses: list[float], **config) -> None:
    folder.mkdir(parents=True)
    record = {"name": folder.name, "kind": "prune", "status": "done", "config": config, "perplexity": {}}
    record |= {"parameters": 1, "training_data": {"data": "/d/t"}, "units": [1]}
    (folder / "result.json").write_text(json.dumps(record))
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps({"loss": loss}) for loss in losses))


def test_kept_and_put_back(records, tmp_path) -> None:
    """The last fifteen losses go along, where they are the task's own; lists of units do not."""
    cell(tmp_path / "runs" / "lora", [9.0, *[2.0] * 10, *[3.0] * 5], distill=0.0)
    cell(tmp_path / "runs" / "taught", [9.0] * 16, distill=0.5)
    records.keep(tmp_path / "runs", tmp_path / "kept", "/d")
    records.restore(tmp_path / "again", tmp_path / "kept", "/e")
    back = {path.parent.name: json.loads(path.read_text()) for path in (tmp_path / "again").glob("*/result.json")}
    assert back["lora"]["last_losses"] == pytest.approx(35 / 15)
    assert "last_losses" not in back["taught"]
    assert all("units" not in record and record["training_data"]["data"] == "/e/t" for record in back.values())


def test_a_contender_counts_at_its_best_rate(records, tmp_path) -> None:
    import goal_ratios

    for rate, losses in ((1e-3, (2.0, 4.0)), (2e-3, (3.5, 2.0))):
        for seed, loss in enumerate(losses):
            cell(tmp_path / "runs" / f"lora_lr{rate}_seed{seed}", [loss], lr=rate, seed=seed)
    records.keep(tmp_path / "runs", tmp_path / "kept", "/d")
    records.restore(tmp_path / "again", tmp_path / "kept", "/d")
    assert goal_ratios.last_losses_of(tmp_path / "again") == {"lora": {"0": 3.5, "1": 2.0}}
