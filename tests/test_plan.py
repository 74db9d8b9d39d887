"""`secateur plan`: counts that a run reproduces, memory that a run takes."""

import json

import pytest
from tiny import save_tiny

from secateur.cli import main

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
