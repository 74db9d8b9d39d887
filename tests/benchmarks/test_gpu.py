"""The report on a machine with a GPU: a section that fails or takes too long leaves the others."""

import json
import sys
from pathlib import Path

import pytest
from zygote import run

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "cost"))
import gpu


def forked(command, file, limit_s) -> str:
    done = run(*command[1:])
    file.write(done.stdout + done.stderr)
    return "done" if done.returncode == 0 else f"failed with exit code {done.returncode}"


@pytest.fixture
def tiny(monkeypatch) -> None:
    for name in ("SECATEUR_GPU_TINY", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")  # so that what the script sets is taken back


@pytest.mark.usefixtures("tiny")
def test_a_section_that_fails_leaves_the_rest(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(gpu, "finish", forked)
    assert gpu.main(["--tiny", str(tmp_path), "model", "bench", "inference", "fsdp"]) == 1
    found = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    status = {name: each["status"] for name, each in found["sections"].items()}
    assert status == {"model": "done", "bench": "failed with exit code 2", "inference": "done", "fsdp": "done"}
    (cost,) = found["records"]["cost"].values()
    assert cost["inference"]["rows"]["dense"]["median_ms"] > 0
    assert found["records"]["fsdp"]["sharded"]["gone"] == found["records"]["fsdp"]["whole"]["gone"]
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| Inference of its result | failed with exit code 2 |" in page
    assert "pruned" in page.split("## Inference of its result")[1].split("```")[1], "it says why"
    assert "| dense |" in page


def test_a_section_that_takes_too_long_is_ended(tmp_path) -> None:
    with (tmp_path / "log").open("w") as file:
        assert gpu.finish(["sleep", "60"], file, 0.1) == "stopped after 0 s"


def test_what_is_not_installed_is_left_out(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    found = gpu.run("quantised", gpu.Place(tmp_path, tiny=True), 100)
    assert found["status"] == "left out: bitsandbytes is not installed"
    assert gpu.run("steps", gpu.Place(tmp_path, tiny=True), 0)["status"] == "left out: 570 s are over"
