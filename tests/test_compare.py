"""A grid of runs: axes and cells, what may be compared, one record a cell, going on after a stop."""

import csv
import json
from dataclasses import asdict

import pytest
from tiny import save_tiny

from secateur import compare as compare_module
from secateur.cli import main
from secateur.compare import compare
from secateur.config import PruneConfig
from secateur.errors import InputError, NumericsError
from secateur.grid import build_comparison, differences
from secateur.options import build

WORDS = "the quick brown fox jumps over the lazy dog while seven wizards box and quarrel about nothing at all. "


@pytest.fixture
def inputs(tmp_path):
    """Options of a small grid on a tiny model."""
    model = save_tiny(tmp_path / "model", layers=2)
    (tmp_path / "train_text.txt").write_text(WORDS * 60)
    (tmp_path / "other.txt").write_text(WORDS[::-1] * 20)
    return {
        "model": str(model),
        "data": (str(tmp_path / "train_text.txt"),),
        "evaluate_on": (str(tmp_path / "other.txt"),),
        "output": str(tmp_path / "grid"),
        "criterion": "magnitude,gate",
        "sparsity": "0.3,0.5",
        "steps": "8",
        "batch_size": "2",
        "seq_len": "32",
        "frequency": "2",
        "lr": "1e-3",
        "dtype": "float32",
    }


def perplexities(folder):
    rows = json.loads((folder / "comparison.json").read_text())["cells"]
    return {row["cell"]: row["perplexity"]["other.txt"] for row in rows}


def test_axes_cells_and_baselines(inputs) -> None:
    cells = build_comparison({**inputs, "cells": ("best: criterion=gate lora-init=pissa lr=0.01",)}).cells
    assert [cell.name for cell in cells] == [
        "dense", "dense+lora", "magnitude_sparsity0.3", "magnitude_sparsity0.5", "gate_sparsity0.3",
        "gate_sparsity0.5", "best",
    ]  # fmt: skip
    best = cells[-1].config
    assert (best.criterion, best.lora_init, best.lr, best.sparsity) == ("gate", "pissa", 0.01, 0.3)
    assert cells[0].kind == "dense"
    assert cells[3].config.sparsity == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": "8,16"}, r"cells differ in --steps \(16, 8\).*--allow-different"),
        ({"cells": ("a: seq_len=16",)}, "cells differ in --seq-len"),
        ({"cells": ("a: sparcity=0.1",)}, "unknown option 'sparcity'. Did you mean 'sparsity'"),
        ({"cells": ("a",)}, "write it as `name: option=value"),
        ({"cells": ("dense: lr=0.1",)}, "two cells are called 'dense'"),
        ({"criterion": "gate,magnitude", "lr": "0.1,-1"}, "cell .*--lr is -1"),
        ({"baselines": ("denze",)}, "--baselines denze"),
    ],
)
def test_what_does_not_compare_is_refused(inputs, change, message) -> None:
    with pytest.raises(InputError, match=message):
        build_comparison({**inputs, **change})


def test_budgets_that_differ_are_refused(inputs) -> None:
    given = {**inputs, "sparsity": "0.3", "cells": ("coarse: criterion=gate round_to=32",)}
    with pytest.raises(InputError, match="would lose .*same budget"):
        compare(build_comparison(given))


def test_a_stopped_comparison_goes_on_to_the_same_table(inputs, tmp_path, monkeypatch, capsys) -> None:
    whole = compare(build_comparison(inputs))
    assert len(whole.splitlines()) == 7
    expected = perplexities(tmp_path / "grid")
    assert len(set(expected.values())) == 6, "every cell did something of its own"

    given = {**inputs, "output": str(tmp_path / "again")}
    real, calls = compare_module.run_cell, []

    def stopping(cell, job, comparison):
        calls.append(cell.name)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(cell, job, comparison)

    monkeypatch.setattr(compare_module, "run_cell", stopping)
    with pytest.raises(KeyboardInterrupt):
        compare(build_comparison(given))
    assert len(perplexities(tmp_path / "again")) == 3
    monkeypatch.setattr(compare_module, "run_cell", real)
    capsys.readouterr()
    compare(build_comparison(given))
    assert "6 cells, 3 to run, about" in capsys.readouterr().out
    assert perplexities(tmp_path / "again") == expected

    with pytest.raises(InputError, match=r"run with other options \(lr: 0.001 -> 0.002\)"):
        compare(build_comparison({**given, "lr": "2e-3"}))


def test_cli_writes_every_form_of_the_table(inputs, tmp_path, capsys) -> None:
    flags = [
        part
        for key, value in {**inputs, "sparsity": "0.3", "seed": "0,1", "criterion": "gate"}.items()
        for part in ("--" + key.replace("_", "-"), *(value if isinstance(value, tuple) else (value,)))
    ]
    assert main(["compare", *flags, "--keep-checkpoints"]) == 0
    out = capsys.readouterr().out
    assert "gate" not in out.split("cell", 1)[0] or "seed1" in out
    folder = tmp_path / "grid"
    rows = list(csv.DictReader((folder / "comparison.csv").open()))
    assert [row["cell"] for row in rows] == ["dense", "dense+lora", "seed0", "seed1"]
    assert "2 | " in (folder / "comparison.md").read_text().split("Over seeds")[1]
    for name in ("comparison.svg", "comparison.png"):
        assert (folder / name).stat().st_size > 1000
    assert (folder / "seed0" / "checkpoint" / "config.json").is_file()
    record = json.loads((folder / "seed1" / "result.json").read_text())
    assert record["perplexity"][inputs["evaluate_on"][0]]["seq_len"] == 32
    assert record["sparsity"] == pytest.approx(0.3, abs=0.005)
    assert (folder / "seed1" / "metrics.jsonl").is_file()


def test_same_source_is_said(inputs, tmp_path, capsys) -> None:
    (tmp_path / "train_eval.txt").write_text(WORDS * 20)
    given = {**inputs, "evaluate_on": (str(tmp_path / "train_eval.txt"),), "criterion": "magnitude"}
    compare(build_comparison({**given, "sparsity": "0.3", "baselines": ("dense",)}))
    assert "come from the same source" in capsys.readouterr().out


def test_a_cell_that_fails_leaves_the_others(inputs, tmp_path, monkeypatch) -> None:
    real = compare_module.run_cell

    def failing(cell, job, comparison):
        if cell.config.criterion == "gate":
            raise NumericsError("step 3: the loss is nan")
        return real(cell, job, comparison)

    monkeypatch.setattr(compare_module, "run_cell", failing)
    text = compare(build_comparison({**inputs, "sparsity": "0.3", "baselines": ("dense",)}))
    assert "failed: step 3: the loss is nan" in text
    assert "magnitude" in text


def test_an_option_that_an_older_record_lacks_was_at_its_default() -> None:
    now = json.loads(json.dumps(asdict(build(PruneConfig, {"model": "m", "data": ("d",), "output": "o"}))))
    older = {name: value for name, value in now.items() if name not in ("packing", "load_in", "targets")}
    assert differences(older, now) == []
    assert differences(older, now | {"packing": "separate"}) == ["packing: joined -> separate"]
