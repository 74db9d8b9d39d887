"""`secateur plan`: counts that a run reproduces, memory that a run takes."""

import json
import time

import pytest
import torch
from tiny import save_tiny

from secateur.benchmark import matmul_flops_per_s
from secateur.cli import main
from secateur.config_speed import PlanConfig
from secateur.models import load_config, resolve_model
from secateur.options import build
from secateur.prepare import plan_budget
from secateur.timing import units_gone

WORDS = "the quick brown fox jumps over the lazy dog while seven wizards box and quarrel about nothing at all. "


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    save_tiny(folder / "model", layers=3, heads=8, kv_heads=4)
    (folder / "text.txt").write_text(WORDS * 60)
    return folder


@pytest.mark.parametrize("allocation", ["uniform", "protected", "global"])
def test_a_run_does_what_the_plan_says(place, tmp_path, capsys, allocation) -> None:
    options = [
        "--model", str(place / "model"), "--sparsity", "0.25", "--allocation", allocation, "--seq-len", "32",
        "--batch-size", "2", "--dtype", "float32",
    ]  # fmt: skip
    assert main(["plan", *options, "--json", str(tmp_path / "plan.json")]) == 0
    planned = json.loads((tmp_path / "plan.json").read_text())
    printed = capsys.readouterr().out
    assert f"{planned['after']['parameters']:,}" in printed
    run = ["prune", *options, "--data", str(place / "text.txt"), "--output", str(tmp_path / "out"), "--steps", "10"]
    assert main([*run, "--frequency", "2"]) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert planned["before"]["parameters"] == result["dense"]["parameters"]
    if allocation == "global":  # to within a unit
        assert planned["after"]["parameters"] == pytest.approx(result["pruned"]["parameters"], rel=0.01)
        return
    assert planned["after"]["parameters"] == result["pruned"]["parameters"]
    assert planned["sparsity"] == result["sparsity"]["reached"]
    head = 2 * 32 * 64 * 128  # the output head is no part of the decoder's linears
    for when, model in (("before", "dense"), ("after", "pruned")):
        assert planned[when]["decoder_flops"] == result["speed"][model]["flops"] - head


def test_warns_when_the_machine_has_less(place, capsys) -> None:
    options = ["--model", str(place / "model"), "--sparsity", "0.2", "--seq-len", "32", "--batch-size", "2"]
    assert main(["plan", *options, "--device-memory", "100kB"]) == 0
    assert "WARNING: that is more than the 100.0 kB" in capsys.readouterr().out
    assert main(["plan", *options, "--device-memory", "1GB"]) == 0
    assert "WARNING" not in capsys.readouterr().out
    assert main(["plan", *options, "--sparsity", "0.99"]) == 2
    assert main(["plan", *options, "--device-memory", "much"]) == 2
    assert "--device-memory is 'much': give a number with a unit" in capsys.readouterr().err


def test_the_time_is_the_flops_over_the_measured_speed(place, tmp_path, capsys) -> None:
    options = ["plan", "--model", str(place / "model"), "--sparsity", "0.5", "--seq-len", "32", "--batch-size", "2"]
    assert main([*options, "--json", str(tmp_path / "plan.json"), "--steps", "100", "--criterion", "taylor"]) == 0
    found = json.loads((tmp_path / "plan.json").read_text())["time"]
    speed = found["matmul_flops_per_s"] * found["training_efficiency"]
    assert found["seconds"] == {name: pytest.approx(count / speed) for name, count in found["flops"].items()}
    for step, parts in found["flops_by_part"].items():
        assert found["flops"][step] == sum(parts.values())
    assert found["flops_by_part"]["first_step"]["scoring"] > 0 == found["flops_by_part"]["last_step"]["scoring"]
    assert 100 * found["flops"]["last_step"] < found["flops"]["run"] < 100 * found["flops"]["first_step"]
    assert "100 steps" in capsys.readouterr().out
    assert main(options) == 0
    assert "Give --steps for the whole run." in capsys.readouterr().out
    assert main([*options, "--steps", "100", "--prune-end", "200"]) == 2
    assert "--prune-end 200 is step 200 of a run of 100" in capsys.readouterr().err


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_what_is_gone_for_the_time_is_what_the_budget_removes(place, allocation) -> None:
    config = build(PlanConfig, {"model": str(place / "model"), "sparsity": 0.3, "allocation": allocation})
    budget = plan_budget(config, load_config(resolve_model(config.model))).budget
    gone = units_gone(budget)
    assert sum(gone[pool.name] * pool.unit_params for pool in budget.units.pools) == pytest.approx(
        budget.removed_params, abs=1
    )


def test_the_speed_of_products_is_measured_briefly() -> None:
    began = time.perf_counter()
    speed = matmul_flops_per_s([(64, 96), (9000, 64)], tokens=256, dtype=torch.float32, device=torch.device("cpu"))
    assert speed > 0
    assert time.perf_counter() - began < 2
