"""Two processes with batch 4 each are one with batch 8: same scores, same cuts, same weights (gloo, float64)."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import save_tiny
from two_processes import CASES, CUTS, FAULTS, OWN
from zygote import launch

SCRIPT = Path(__file__).parents[1] / "two_processes.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
WORDS = "the quick brown fox jumps over the lazy dog while seven wizards box and quarrel about nothing at all. "


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """What one process and two leave behind, all cases in one launch each."""
    found = []
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"processes-{processes}")
        done = launch(processes, str(SCRIPT), str(folder))
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(folder)
    return found


def assert_same(one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor], rtol: float = 1e-10) -> None:
    """The same at every cut and at the end: what is left exactly, scores and weights but for the order of sums."""
    assert one.keys() == two.keys()
    for name, value in one.items():
        if value.is_floating_point():
            largest = float(value.abs().max())  # a small entry is a difference of larger ones
            torch.testing.assert_close(two[name], value, rtol=rtol, atol=rtol * largest, msg=f"{name} ({largest:.2g})")
        else:
            assert torch.equal(two[name], value), name


def assert_cuts(found: Mapping[str, torch.Tensor], steps: Iterable[int]) -> None:
    """Every cut is there, and more than the first takes something away."""
    left = [sum(int(v.sum()) for k, v in found.items() if re.match(rf"cut{step}\.(keep|left)", k)) for step in steps]
    assert all(left)
    assert left == sorted(left, reverse=True), left
    assert left[-1] < left[0], left


@pytest.mark.parametrize("name", list(CASES))
def test_two_processes_are_one(folders, name) -> None:
    one, two = (load_file(folder / f"{name}.safetensors") for folder in folders)
    assert_cuts(one, CUTS)
    assert_same(one, two, rtol=1e-6 if name == "rank-sparsegpt" else 1e-10)  # its activations are kept in float32


@pytest.mark.parametrize("name", list(FAULTS))
def test_disagreement_is_found_at_the_next_cut(folders, name) -> None:
    """The second cut: the scores that it goes by are averaged, so units alone say nothing of the weights."""
    wrong = {"units": "step 5: process 1 cut other units than process 0"}
    for rank in (0, 1):
        said = json.loads((folders[1] / f"fault-{name}-{rank}.json").read_text())
        assert wrong.get(name, "step 8: process 1 holds other weights than process 0") in said
        assert "start again from a checkpoint" in said


def test_disagreement_after_the_last_cut_is_found(folders) -> None:
    """At the last step, where no cut averages anything any more; in a loop without averages, a step after the cut; by
    an export, where the processes come to it together."""
    for rank in (0, 1):
        late = json.loads((folders[1] / f"fault-last-{rank}.json").read_text())
        assert "step 14: process 1 holds other weights than process 0" in late
        apart = json.loads((folders[1] / f"apart-{rank}.json").read_text())
        assert "before the export: process 1 holds other weights than process 0" in apart["export"]
        assert "step 2: process 1 holds other weights" in apart["own"]
        assert "secateur.parallel.average_gradients_ after backward" in apart["own"]


@pytest.mark.parametrize("name", list(OWN))
def test_ddp_in_somebody_elses_loop_follows_cuts(folders, name) -> None:
    """Two processes come to the weights and units of one: after a cut, too, gradients are averaged."""
    one, two = (load_file(folder / f"own-{name}.safetensors") for folder in folders)
    up = "base_model.model.model.layers.0.mlp.up_proj"
    assert one[f"{up}.lora_B.default.weight"].shape != (96, 4), "cut: the FFN's width, or the rank"
    assert_same(one, two)


def test_the_command_on_two_processes(tmp_path) -> None:
    save_tiny(tmp_path / "model", layers=2)
    (tmp_path / "text.txt").write_text(WORDS * 60)
    output = tmp_path / "out"
    done = launch(
        2, "-m", "secateur", "prune", "--model", str(tmp_path / "model"), "--data", str(tmp_path / "text.txt"),
        "--output", str(output), "--sparsity", "0.3", "--steps", "10", "--batch-size", "2", "--seq-len", "32",
        "--frequency", "2", "--dtype", "float32", "--save-steps", "4",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert (output / "config.json").is_file()
    assert done.stdout.count("removed:") == 1, "only one process speaks"
    assert sorted(path.name for path in (tmp_path / "out.run").glob("checkpoint-*/rng_state_*.pth")) == [
        "rng_state_0.pth", "rng_state_0.pth", "rng_state_1.pth", "rng_state_1.pth"]  # fmt: skip
