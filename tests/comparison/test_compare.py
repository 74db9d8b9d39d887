"""A grid of runs: axes and cells, what may be compared, one record a cell, going on after a stop."""

import csv
import json
import math
import signal
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch
from tiny import save_tiny, tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer
from zygote import run_until

import secateur
from secateur.cli import main
from secateur.comparison import cell as cell_module
from secateur.comparison import command as compare_module
from secateur.comparison.command import compare
from secateur.comparison.grid import build_comparison, differences
from secateur.comparison.tables import write_comparison
from secateur.config.options import build
from secateur.config.prune import PruneConfig
from secateur.data.same_source import same_source
from secateur.parallel.distributed import Share
from secateur.system.errors import InputError, NumericsError
from secateur.system.locks import locked
from secateur.training.checkpoints import MANIFEST, find_latest
from secateur.training.saving import SavingCallback
from tests.speed import made_up

WORDS = "the quick brown fox jumps over the lazy dog while seven wizards box and quarrel about nothing at all. "


@pytest.fixture(autouse=True)
def plots_are_not_drawn(request, monkeypatch) -> None:
    """They take as long as a cell."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("secateur.comparison.tables.plot_perplexity", lambda rows, path: None)


@pytest.fixture
def drawn() -> None:
    """Plots are drawn after all."""


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
        "gate_sparsity0.5", "best_sparsity0.3", "best_sparsity0.5",
    ]  # fmt: skip
    best = cells[-1].config
    assert (best.criterion, best.lora_init, best.lr, best.sparsity) == ("gate", "pissa", 0.01, 0.5)
    assert cells[0].kind == "dense"
    assert cells[3].config.sparsity == 0.5


def test_named_cells_and_the_trained_baseline_cross_with_conditions(inputs) -> None:
    named = ("gate: criterion=gate", "own: criterion=lora lr=1e-4")
    cells = build_comparison({**inputs, "criterion": "lora", "sparsity": "0.3", "lr": "2e-4,1e-3", "seed": "0,1",
                              "cells": named}).cells  # fmt: skip
    crossed = [f"{lr}_{seed}" for lr in ("lr2e-4", "lr1e-3") for seed in ("seed0", "seed1")]
    assert [cell.name for cell in cells] == [
        "dense", *(f"dense+lora_{c}" for c in crossed), *(f"gate_{c}" for c in crossed), "own_seed0", "own_seed1",
    ]  # fmt: skip
    assert [(cell.config.lr, cell.config.seed) for cell in cells[5:9]] == [(2e-4, 0), (2e-4, 1), (1e-3, 0), (1e-3, 1)]
    assert {(cell.series, cell.contender) for cell in cells[7:9]} == {("gate_lr1e-3", "gate")}
    assert (cells[-1].config.lr, cells[-1].series, cells[-1].contender) == (1e-4, "own", "own")


def test_a_contender_gets_its_best_rate_and_seeds_are_paired(inputs, tmp_path) -> None:
    given = {**inputs, "criterion": "lora", "sparsity": "0.3", "lr": "1e-3,2e-3", "seed": "0,1",
             "cells": ("a: criterion=gate", "b: criterion=wanda"), "reference": "b"}  # fmt: skip
    cells = build_comparison(given).cells
    nll = {  # cell -> its loss with seed 0 and 1
        "dense+lora_lr1e-3": (2.0, 2.0), "dense+lora_lr2e-3": (1.9, 2.0),
        "a_lr1e-3": (3.0, 3.2), "a_lr2e-3": (3.1, 3.2), "b_lr1e-3": (3.5, 3.5), "b_lr2e-3": (3.1, 3.4),
    }  # fmt: skip
    for cell in cells:
        loss = 2.5 if cell.kind == "dense" else nll[cell.series][cell.config.seed]
        measured = {"perplexity": math.exp(loss), "mean_nll": loss, "stderr_nll": 0.1, "tokens_scored": 1,
                    "segments": 1, "seq_len": 2, "dtype": "float32", "text": {"sha256": "0"}}  # fmt: skip
        (tmp_path / cell.name).mkdir()
        record = {"name": cell.name, "kind": cell.kind, "status": "done", "config": asdict(cell.config),
                  "parameters": 10, "perplexity": {"dir/t.txt": measured}, "training_data": [],
                  "environment": {}}  # fmt: skip
        (tmp_path / cell.name / "result.json").write_text(json.dumps(record))
    text = write_comparison(tmp_path, cells, "b")
    found = json.loads((tmp_path / "comparison.json").read_text())
    best = {row["contender"]: (row["lr"], row["ratio"].get("t.txt")) for row in found["best_rates"]}
    assert best == {
        "dense": (1e-3, pytest.approx(math.exp(2.5 - 1.95))),
        "dense+lora": (2e-3, 1.0),
        "a": (1e-3, pytest.approx(math.exp(3.1 - 1.95))),
        "b": (2e-3, pytest.approx(math.exp(3.25 - 1.95))),
    }
    seeds = {row["name"]: row["difference"].get("t.txt") for row in found["over_seeds"]["series"]}
    assert found["over_seeds"]["reference"] == "b_lr2e-3"  # the contender's best
    assert seeds["a_lr1e-3"] == {"0": pytest.approx(-0.1), "1": pytest.approx(-0.2)}
    line = next(line for line in text.splitlines() if line.startswith("a_lr1e-3 "))
    assert f"×{math.exp(-0.15):.3f} (-0.1500 ± {stdev([0.1, 0.2]):.4f})" in line
    assert f"{mean([math.exp(3.0), math.exp(3.2)]):.2f} ± " in line
    assert f"{math.exp(3.1) / math.exp(1.95):.3f}" in text.split("Best learning rate")[1].split("Over seeds")[0]


def test_what_an_untrained_baseline_does_not_feel_may_change() -> None:
    one, other = ({**asdict(build(PruneConfig, {"model": "m", "data": ("d",), "output": "o"})), **changes}
                  for changes in ({"lr": 0.1}, {"lr": 0.2, "floor": 0.5}))  # fmt: skip
    assert differences(one, other, "dense") == []
    assert differences(one, other, "dense+lora") == ["lr: 0.1 -> 0.2"]
    assert differences(one, other) == ["lr: 0.1 -> 0.2"], "a floor is felt by global allocation alone"
    assert len(differences(one | {"allocation": "global"}, other)) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": "8,16"}, r"cells differ in --steps \(16, 8\).*--allow-different"),
        ({"cells": ("a: seq_len=16",)}, "cells differ in --seq-len"),
        ({"cells": ("a: sparcity=0.1",)}, "unknown option 'sparcity'. Did you mean 'sparsity'"),
        ({"cells": ("a",)}, "write it as `name: option=value"),
        ({"cells": ("dense: criterion=gate sparsity=0.2",)}, "two cells are called 'dense'"),
        ({"criterion": "gate,magnitude", "lr": "0.1,-1"}, "cell .*--lr is -1"),
        ({"baselines": ("denze",)}, "--baselines denze"),
        ({"reference": "gatt_sparsity0.3"}, "no cell is called that. Did you mean 'gate_sparsity0.3'"),
        ({"cells": ("../x: lr=0.1",)}, r"'../x' is to be a folder's name"),
        ({"cells": ("a/b: lr=0.1",)}, "to be a folder's name"),
    ],
)
def test_what_does_not_compare_is_refused(inputs, change, message) -> None:
    with pytest.raises(InputError, match=message):
        build_comparison({**inputs, **change})


def test_budgets_that_differ_are_refused(inputs) -> None:
    given = {**inputs, "sparsity": "0.3", "cells": ("coarse: criterion=gate round_to=32",)}
    with pytest.raises(InputError, match="would lose .*same budget"):
        compare(build_comparison(given))


def test_of_a_time_it_is_the_time_that_must_be_alike(inputs, tmp_path) -> None:
    """A whole layer of 12 ms or 36 of each layer's 96 channels: other parameters, and the same time."""
    save_tiny(tmp_path / "deep", layers=4)
    made = made_up.table(tiny_llama(layers=4), lambda _, kv: 2.0 * kv, lambda width: width / 12, step=4, rest_ms=2.0)
    costs = str(made_up.written(tmp_path / "costs.json", made))
    given = {**inputs, "model": str(tmp_path / "deep"), "criterion": "gate", "cost_table": costs, "baselines": ()}
    given |= {"target_speedup": str(50 / 38)}
    del given["sparsity"]
    cells = ["narrow: attention=none", "whole: units=layers", "coarse: attention=none round_to=32"]
    compare_module._check_budgets(build_comparison({**given, "cells": tuple(cells[:2])}).cells, {}, tmp_path)
    with pytest.raises(InputError, match=r"narrow and coarse would take 38 ms and 39.33 ms \(prefill:1x512\)"):
        compare_module._check_budgets(build_comparison({**given, "cells": tuple(cells)}).cells, {}, tmp_path)


def test_a_stopped_comparison_goes_on_to_the_same_table(inputs, tmp_path, monkeypatch, capsys) -> None:
    inputs = {**inputs, "sparsity": "0.3"}
    whole = compare(build_comparison(inputs))
    assert len(whole.splitlines()) == 5
    expected = perplexities(tmp_path / "grid")
    assert len(set(expected.values())) == 4, "every cell did something of its own"

    given = {**inputs, "output": str(tmp_path / "again")}
    real, calls = compare_module.run_cell, []

    def stopping(cell, job, comparison):
        calls.append(cell.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(cell, job, comparison)

    monkeypatch.setattr(compare_module, "run_cell", stopping)
    with pytest.raises(KeyboardInterrupt):
        compare(build_comparison(given))
    assert len(perplexities(tmp_path / "again")) == 2
    monkeypatch.setattr(compare_module, "run_cell", real)
    capsys.readouterr()
    compare(build_comparison(given))
    assert "4 cells, 2 to run, about" in capsys.readouterr().out
    assert perplexities(tmp_path / "again") == expected

    with pytest.raises(InputError, match=r"run with other options \(lr: 0.001 -> 0.002\)"):
        compare(build_comparison({**given, "lr": "2e-3"}))


def test_the_estimate_counts_the_tokens_that_there_are(inputs, tmp_path, monkeypatch) -> None:
    """--eval-tokens is a bound: a test set that is shorter takes no longer for it."""
    (tmp_path / "second.txt").write_text(WORDS * 10)
    texts = (*inputs["evaluate_on"], str(tmp_path / "second.txt"))
    tokenizer = AutoTokenizer.from_pretrained(inputs["model"])
    lengths = [
        len(tokenizer(Path(text).read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]) for text in texts
    ]
    asked = []
    monkeypatch.setattr(compare_module, "estimated_seconds", lambda *given: asked.append(given[-1]))
    monkeypatch.setattr(compare_module, "run_cell", fails_at_once)
    for most in ("1000000", "100"):
        given = {**inputs, "evaluate_on": texts, "eval_tokens": most, "output": str(tmp_path / most)}
        compare(build_comparison(given))
    assert min(lengths) > 100
    assert asked == [sum(lengths), 200]


def test_what_is_missing_is_dealt_out_evenly(inputs, monkeypatch) -> None:
    """Also where one of the processes had done its part before all were stopped."""
    monkeypatch.setattr(compare_module, "run_cell", fails_at_once)
    monkeypatch.setattr(compare_module, "estimated_seconds", lambda *given: None)
    Path(inputs["output"]).mkdir()  # by the first process
    found = []
    for _ in range(3):
        before = set(Path(inputs["output"]).glob("*/result.json"))
        compare(build_comparison(inputs), Share(number=1, of=2))
        found.append(len(set(Path(inputs["output"]).glob("*/result.json")) - before))
    assert found == [3, 1, 1], "the second process of two, of 6 cells, then of 3 and 2 that are missing"


def fails_at_once(cell, job, comparison):
    raise NumericsError("not run")


@pytest.mark.usefixtures("drawn")
def test_cli_writes_every_form_of_the_table(inputs, tmp_path, capsys) -> None:
    flags = flags_of({**inputs, "sparsity": "0.3", "seed": "0,1", "criterion": "gate"})
    assert main(["compare", *flags, "--keep-checkpoints"]) == 0
    out = capsys.readouterr().out
    assert "gate" not in out.split("cell", 1)[0] or "seed1" in out
    folder = tmp_path / "grid"
    rows = list(csv.DictReader((folder / "comparison.csv").read_text().splitlines()))
    assert [row["cell"] for row in rows] == ["dense", "dense+lora_seed0", "dense+lora_seed1", "seed0", "seed1"]
    assert "against run" in out
    assert "2 | " in (folder / "comparison.md").read_text().split("Over seeds")[1]
    for name in ("comparison.svg", "comparison.png"):
        assert (folder / name).stat().st_size > 1000
    assert (folder / "seed0" / "checkpoint" / "config.json").is_file()
    record = json.loads((folder / "seed1" / "result.json").read_text())
    assert record["perplexity"][inputs["evaluate_on"][0]]["seq_len"] == 32
    assert record["sparsity"] == pytest.approx(0.3, abs=0.005)
    assert (folder / "seed1" / "metrics.jsonl").is_file()
    given = {name: ",".join(value) if name == "evaluate_on" else value for name, value in inputs.items()}
    asked, again = (
        build_comparison(*of)
        for of in (({**given, "sparsity": "0.3", "seed": "0,1", "criterion": "gate", "keep_checkpoints": True},),
                   ({"output": str(folder)}, str(folder / "run.yaml")))
    )  # fmt: skip
    assert (asked.settings, asked.cells) == (again.settings, again.cells)


ZEROS = ("gate: criterion=gate", "wanda: method=wanda pattern=2:4 steps=0", "pst: method=pst pattern=0.5")


def test_cells_of_sparsify_stand_beside_those_of_prune(inputs, tmp_path, monkeypatch) -> None:
    """What such a cell holds is what the command writes; it is recorded, and recognised, like any other."""
    given = inputs | {"criterion": "gate", "sparsity": "0.5", "steps": "4", "lr": "1e-3,2e-3", "baselines": ("dense",)}
    comparison = build_comparison(given | {"cells": ZEROS})
    names = [cell.name for cell in comparison.cells]
    assert names == ["dense", "gate_lr1e-3", "gate_lr2e-3", "wanda", "pst_lr1e-3", "pst_lr2e-3"]
    table = str(compare(comparison))
    records = {name: json.loads((tmp_path / "grid" / name / "result.json").read_text()) for name in names}
    alone = {name: given[name] for name in ("model", "data", "batch_size", "seq_len", "dtype")}
    for name, more in {
        "wanda": {"method": "wanda"},
        "pst_lr2e-3": {"method": "pst", "pattern": "0.5", "steps": 4, "lr": 2e-3},
    }.items():
        secateur.sparsify(output=tmp_path / name, **alone, **more)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype="auto").float()
        assert records[name]["weights_sha256"] == cell_module._weights_sha256(model)
        assert records[name]["sparsity"] == pytest.approx(0.5, abs=1e-3)
        assert (records[name]["kind"], records[name]["parameters"]) == ("sparsify", records["dense"]["parameters"])
    assert records["gate_lr1e-3"]["bytes"] < records["wanda"]["bytes"] == records["dense"]["bytes"]
    assert records["wanda"]["step_seconds"] is None
    assert "MB on disk" in table
    assert "pst" in table
    assert not (tmp_path / "grid" / "wanda" / "checkpoint").exists()
    assert secateur.load_result(tmp_path / "grid").cells
    monkeypatch.setattr(compare_module, "run_cell", lambda *_: pytest.fail("a cell was run"))
    assert str(compare(comparison)) == table
    for line, message in {
        "wanda: method=wanda pattern=4:8 steps=0": "pattern: 2:4 -> 4:8",
        "other: method=wanda pattern=0.3 steps=0": "cell other makes 30.0% of the weights zero, and others lose 50.0%",
        "x: method=nope": "cell 'x.*': --method is 'nope'",
        "x: method=pst pattern=2:4": "pst chooses from a whole matrix",
        "x: method=wanda criterion=gate": "--cells x: unknown option 'criterion'",
    }.items():
        with pytest.raises(InputError, match=message):
            compare(build_comparison(given | {"cells": (*ZEROS[:1], line)}))


def test_same_source_is_said(inputs, tmp_path, capsys) -> None:
    (tmp_path / "fox.train.txt").write_text(WORDS * 60)
    (tmp_path / "fox.test.txt").write_text(WORDS * 20)
    given = {**inputs, "data": (str(tmp_path / "fox.train.txt"),), "evaluate_on": (str(tmp_path / "fox.test.txt"),)}
    compare(build_comparison({**given, "criterion": "magnitude", "sparsity": "0.3", "baselines": ("dense",)}))
    assert "come from the same source" in capsys.readouterr().out
    assert "come from the same source" in (tmp_path / "grid" / "comparison.md").read_text()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("wiki.train.raw", "wiki.test.raw", True),
        ("c4/train.jsonl", "c4/test.jsonl", True),
        ("x/c4_calib.jsonl", "y/c4_eval.jsonl", True),
        ("allenai/c4:train", "c4_eval.jsonl", True),
        ("wiki/test_a.txt", "ptb/test_b.txt", False),
        ("c4_calib.jsonl", "wikitext2_raw_test.txt", False),
    ],
)
def test_sources_by_name(one, other, same) -> None:
    assert same_source(one, other) == same_source(other, one) == same


def record(name, perplexities, kind="prune", **more):
    """What a cell leaves, with these perplexities of texts."""
    measured = {
        text: {
            "perplexity": value, "mean_nll": None if value is None else math.log(value), "stderr_nll": 0.01,
            "tokens_scored": 9, "segments": 1, "seq_len": 32, "dtype": "float32", "text": {"sha256": "0"},
        }
        for text, value in perplexities.items()
    }  # fmt: skip
    options = ("model", "steps", "batch_size", "seq_len", "lr", "rank", "eval_tokens", "eval_seq_len", "dtype")
    done = {"status": "done", "config": dict.fromkeys(options), "environment": {}, "training_data": []}
    return {"name": name, "kind": kind, "parameters": 10, "perplexity": measured} | done | more


def written(tmp_path, inputs, records):
    """comparison.json of cells with these records, by name."""
    given = {**inputs, "allow_different": True}
    comparison = build_comparison(given)
    for name, found in records.items():
        (tmp_path / "grid" / name).mkdir(parents=True)
        (tmp_path / "grid" / name / "result.json").write_text(json.dumps(record(name, **found)))
    text = write_comparison(tmp_path / "grid", comparison.cells)
    return text, json.loads((tmp_path / "grid" / "comparison.json").read_text())


def test_texts_of_one_name_stay_apart(inputs, tmp_path) -> None:
    given = {**inputs, "criterion": "magnitude", "sparsity": "0.3", "baselines": (), "cells": ()}
    text, found = written(tmp_path, given, {"run": {"perplexities": {"/a/wiki/test.txt": 3.0, "/a/ptb/test.txt": 9.0}}})
    assert found["cells"][0]["perplexity"] == {"wiki/test.txt": 3.0, "ptb/test.txt": 9.0}
    assert "3.00" in text
    assert "9.00" in text


@pytest.mark.usefixtures("drawn")
def test_tables_take_what_is_missing_infinite_or_failed(inputs, tmp_path) -> None:
    given = {**inputs, "criterion": "magnitude,gate,random,wanda", "sparsity": "0.3", "baselines": ()}
    text, _ = written(
        tmp_path,
        given,
        {
            "gate": {"perplexities": {"a.txt": 3.0, "b.txt": 5.0}},
            "magnitude": {"perplexities": {"a.txt": 4.0}},
            "random": {"perplexities": {"a.txt": None, "b.txt": 7.0}},
            "wanda": {"perplexities": {}, "status": "failed", "reason": "nan\nor so"},
        },
    )
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "inf" in lines["random"]
    assert lines["wanda"].split()[-2:] == ["failed", "failed"], "the reason would widen every column"
    assert "`wanda` failed: nan or so" in text.splitlines()
    assert "`wanda` failed: nan or so" in (tmp_path / "grid" / "comparison.md").read_text()
    assert (tmp_path / "grid" / "comparison.png").stat().st_size > 1000


@pytest.mark.usefixtures("drawn")
def test_a_grid_of_failures_has_a_table(inputs, tmp_path) -> None:
    given = {**inputs, "criterion": "magnitude", "sparsity": "0.3", "baselines": ()}
    text, _ = written(tmp_path, given, {"run": {"perplexities": {}, "status": "failed", "reason": "out of memory"}})
    assert "failed: out of memory" in text
    assert not (tmp_path / "grid" / "comparison.png").exists()


def test_each_is_compared_with_its_own_budget_and_steps(inputs, tmp_path) -> None:
    given = {**inputs, "baselines": ("dense+lora",), "steps": "8,16", "seed": "0,1", "criterion": "gate,magnitude"}
    names = [cell.name for cell in build_comparison({**given, "allow_different": True}).cells]
    values = {name: 2.0 + place for place, name in enumerate(names)}
    records = {name: {"perplexities": {"a.txt": value}} for name, value in values.items()}
    for name in names:
        if name.startswith("dense+lora"):
            records[name]["kind"] = "dense+lora"
    _, found = written(tmp_path, given, records)
    series = {each["name"]: each for each in found["over_seeds"]["series"]}
    assert series["magnitude_sparsity0.5_steps16"]["reference"] == "gate_sparsity0.5_steps16"
    assert series["magnitude_sparsity0.3_steps8"]["reference"] == "gate_sparsity0.3_steps8"
    rows = list(csv.DictReader((tmp_path / "grid" / "comparison.csv").read_text().splitlines()))
    for row in rows:
        steps = "steps16" if "steps16" in row["cell"] else "steps8"
        base = math.exp(mean(math.log(v) for n, v in values.items() if n.startswith("dense+lora") and steps in n))
        assert float(row["ratio, a.txt"]) == pytest.approx(values[row["cell"]] / base, abs=1e-3)


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
    monkeypatch.setattr(compare_module, "run_cell", real)
    given = {**inputs, "sparsity": "0.3", "baselines": ("dense",)}
    assert "failed" in compare(build_comparison(given))
    assert "failed" not in compare(build_comparison({**given, "overwrite": True}))


def test_a_cell_that_scores_in_all_steps_and_trains_in_none(inputs, tmp_path) -> None:
    one = {"criterion": "gate", "sparsity": "0.3", "baselines": (), "schedule": "one-shot", "prune_start": "8"}
    compare(build_comparison({**inputs, **one}))
    (path,) = (tmp_path / "grid").glob("*/result.json")
    record = json.loads(path.read_text())
    assert (record["status"], record["step_seconds"]) == ("done", None)


def test_a_cell_is_measured_in_the_precision_that_its_record_says(inputs, tmp_path, monkeypatch) -> None:
    """A checkpoint in bfloat16: its weights are rounded to it, and multiplied in float32."""
    AutoModelForCausalLM.from_pretrained(inputs["model"]).bfloat16().save_pretrained(inputs["model"])
    real, seen = cell_module.perplexity, []
    monkeypatch.setattr(cell_module, "perplexity", lambda small, *a, **k: seen.append(small) or real(small, *a, **k))
    compare(build_comparison({**inputs, "criterion": "magnitude", "sparsity": "0.3"}))
    weights = [weight for model in seen for weight in model.parameters()]
    assert len(seen) == 3
    assert {weight.dtype for weight in weights} == {torch.float32}
    assert all(torch.equal(weight, weight.bfloat16().float()) for weight in weights)


def test_an_option_that_an_older_record_lacks_was_at_its_default() -> None:
    now = json.loads(json.dumps(asdict(build(PruneConfig, {"model": "m", "data": ("d",), "output": "o"}))))
    older = {name: value for name, value in now.items() if name not in ("packing", "load_in", "targets", "lr_decay")}
    assert differences(older, now) == ["lr_decay: cosine -> after-cuts"], "which was another one then"
    older["lr_decay"] = now["lr_decay"]
    assert differences(older, now) == []
    assert differences(older, now | {"packing": "separate"}) == ["packing: joined -> separate"]


def one_cell(inputs, **more):
    """Options of a comparison of one pruned cell, with a checkpoint every second step and a third of the tokens in its
    moments."""
    return {**inputs, "criterion": "gate", "compensate": "lstsq", "sparsity": "0.3", "baselines": (), "steps": "40",
            "save_steps": "2", "seq_len": "64", **more}  # fmt: skip


def flags_of(given):
    return [
        part
        for key, value in given.items()
        for part in ("--" + key.replace("_", "-"), *(value if isinstance(value, tuple) else (value,)))
    ]


def record_of(folder, cell="run"):
    return json.loads((folder / cell / "result.json").read_text())


def test_a_cell_that_was_killed_goes_on_to_the_same_weights(inputs, tmp_path, capfd) -> None:
    compare(build_comparison(one_cell(inputs)))
    whole = record_of(tmp_path / "grid")
    given = one_cell(inputs, output=str(tmp_path / "again"))
    (tmp_path / "grid.yaml").write_text(json.dumps(given))
    begun = tmp_path / "again" / "run" / "checkpoint.run"
    killed = run_until(begun, f"checkpoint-*/{MANIFEST}", "compare", "--config", str(tmp_path / "grid.yaml"))
    assert killed.returncode == -signal.SIGKILL, "it ended before it could be killed"
    assert not (tmp_path / "again" / "run" / "result.json").exists()
    last = find_latest(begun)[0]
    assert last is not None
    capfd.readouterr()
    compare(build_comparison({**given, "resume": True}))
    assert f"resuming from {last.name}" in capfd.readouterr().out
    again = record_of(tmp_path / "again")
    assert again["weights_sha256"] == whole["weights_sha256"]
    assert [cut["removed"] for cut in again["units"]["cuts"]] == [cut["removed"] for cut in whole["units"]["cuts"]]
    assert not begun.exists()


class Died(Exception):
    pass


def test_the_trained_baseline_goes_on_too(inputs, tmp_path, monkeypatch) -> None:
    given = {**inputs, "criterion": "magnitude", "sparsity": "0.3", "baselines": ("dense+lora",), "save_steps": "2"}
    compare(build_comparison(given))
    whole = record_of(tmp_path / "grid", "dense+lora")
    assert whole["step_seconds"] > 0
    given["output"] = str(tmp_path / "again")
    real = SavingCallback.on_save

    def dying(self, args, state, control, **kwargs):
        real(self, args, state, control, **kwargs)
        if state.global_step == 4:
            raise Died

    monkeypatch.setattr(SavingCallback, "on_save", dying)
    with pytest.raises(Died):
        compare(build_comparison(given))
    monkeypatch.setattr(SavingCallback, "on_save", real)
    with pytest.raises(InputError, match="options were others: lr: 0.001 -> 0.01"):
        compare(build_comparison({**given, "lr": "0.01"}))
    compare(build_comparison(given))
    assert record_of(tmp_path / "again", "dense+lora")["weights_sha256"] == whole["weights_sha256"]
    lines = (tmp_path / "again" / "dense+lora" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 9))


def test_recorded_cells_are_checked(inputs, tmp_path, monkeypatch) -> None:
    given = {**inputs, "criterion": "magnitude", "sparsity": "0.3", "baselines": ()}
    compare(build_comparison(given))
    folder, path = tmp_path / "grid", tmp_path / "grid" / "run" / "result.json"
    coarse = {**given, "cells": ("run: criterion=magnitude", "coarse: criterion=gate round_to=32")}
    with pytest.raises(InputError, match="cells run and coarse would lose .*same budget"):
        compare(build_comparison(coarse))
    (tmp_path / "new.txt").write_text(WORDS * 20)
    more = (*given["evaluate_on"], str(tmp_path / "new.txt"))
    with pytest.raises(InputError, match="not measured on --evaluate-on .*new.txt as it is now.*--allow-different"):
        compare(build_comparison({**given, "evaluate_on": more}))
    compare(build_comparison({**given, "evaluate_on": more, "allow_different": True}))
    monkeypatch.setattr("secateur.comparison.recorded.dtype_of", lambda config: torch.bfloat16)
    with pytest.raises(InputError, match="computed in float32, and on this machine others would be in bfloat16"):
        compare(build_comparison(given))
    monkeypatch.undo()
    train = tmp_path / "train_text.txt"
    before = train.read_text()
    train.write_text(before + "more")
    with pytest.raises(InputError, match="train_text.txt holds other text now than when this cell was run"):
        compare(build_comparison(given))
    train.write_text(before)
    with locked(folder), pytest.raises(InputError, match="is in use by process"):
        compare(build_comparison(given))
    written = path.read_text()
    for text, message in (
        (written.replace('"record_format": 1', '"record_format": 99'), r"newer secateur \(record format 99"),
        (written[:200], "this cell's record is damaged .*move that folder away"),
        ("[]", "record is damaged"),
        ('{"name": "run", "kind": "prune", "status": "done", "config": {}}', "damaged .*perplexity"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            compare(build_comparison(given))


def test_a_short_text_is_noticed_before_the_first_cell(inputs, tmp_path, monkeypatch) -> None:
    (tmp_path / "short.txt").write_text("a few words")
    monkeypatch.setattr(compare_module, "run_cell", lambda *_: pytest.fail("a cell was run"))
    with pytest.raises(InputError, match=r"short.txt: 1\d tokens, fewer than one segment of 32"):
        compare(build_comparison({**inputs, "evaluate_on": (str(tmp_path / "short.txt"),)}))
    assert not list((tmp_path / "grid").glob("*"))


@pytest.mark.parametrize(
    ("grid", "records", "more"),
    [
        ("criteria", "criteria-50", {"sparsity": "0.5"}),
        ("criteria", "criteria-20", {"sparsity": "0.2"}),
        ("criteria-more", "criteria-50-more", {"sparsity": "0.5"}),
        ("criteria-more", "criteria-20-more", {"sparsity": "0.2"}),
        ("ablations", "ablations", {}),
        ("goals", "goals", {}),
        ("criteria-2048", "criteria-50-2048", {"sparsity": "0.5", "lr": "5e-4"}),
        ("criteria-2048", "criteria-20-2048", {"sparsity": "0.2", "lr": "5e-4"}),
        ("criteria-2048", "criteria-50-2048-float32", {"sparsity": "0.5", "lr": "5e-4,1e-3"}),
    ],
)
def test_committed_records_are_of_the_grids_that_their_page_names(monkeypatch, grid, records, more) -> None:
    """So the command beside a table takes them up."""
    monkeypatch.chdir(Path(__file__).parents[2])
    given = {"data": "$SECATEUR_DATA/c4_calib.jsonl", "evaluate_on": "t.txt", "output": "o", **more}
    cells = {cell.name: cell for cell in build_comparison(given, f"benchmarks/criteria/{grid}.yaml").cells}
    found = {path.stem: json.loads(path.read_text()) for path in Path(f"docs/results/{records}").glob("*.json")}
    assert found
    for name, record in found.items():
        now = json.loads(json.dumps(asdict(cells[name].config)))
        assert differences(record["config"], now, record["kind"]) == [], name
