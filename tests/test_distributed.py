"""Two processes with batch 4 each are one with batch 8: same scores, same cuts, same weights (gloo, float64)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import save_tiny

SCRIPT = Path(__file__).parent / "two_processes.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
WORDS = "the quick brown fox jumps over the lazy dog while seven wizards box and quarrel about nothing at all. "


def launch(processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run([*launcher, *arguments], capture_output=True, text=True, env=ENVIRONMENT, timeout=180)


@pytest.mark.parametrize(
    ("criterion", "compensate", "way"),
    [("lora", "none", "shrink"), ("taylor", "none", "mask"), ("gate", "lstsq", "shrink"), ("wanda", "none", "shrink"),
     ("obs", "lstsq", "mask"), ("rank-gradient", "none", "shrink")],
)  # fmt: skip
def test_two_processes_are_one(tmp_path, criterion, compensate, way) -> None:
    found = []
    for processes in (1, 2):
        output = tmp_path / f"{processes}.safetensors"
        done = launch(processes, str(SCRIPT), str(output), str(8 // processes), criterion, compensate, way)
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(load_file(output))
    one, two = found
    assert one.keys() == two.keys()
    for name, value in one.items():
        if name.startswith("keep."):
            assert torch.equal(two[name], value), name
        else:
            # the loss is float32 inside, and Adam amplifies its round-off where gradients are small
            torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5, msg=name)
    kept = [value for name, value in one.items() if name.startswith("keep.")]
    assert any(not value.all() if value.dim() else value < 4 for value in kept), "something went"


def test_disagreement_is_found_at_the_next_cut(tmp_path) -> None:
    done = launch(2, str(SCRIPT), str(tmp_path / "x"), "4", "magnitude", "none", "mask", "disagree")
    assert done.returncode != 0
    assert "process 1 cut other units than process 0" in done.stderr
    assert not (tmp_path / "x").exists()


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
