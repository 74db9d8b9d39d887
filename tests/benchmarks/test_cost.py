"""The cost benchmark runs, with every part, and measures what its rows say."""

import json
import sys
from pathlib import Path

import pytest
from zygote import run

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "cost"))
import cost
import cost_cases

TINY = ["--shape", "tiny", "--batch", "1", "--seq-len", "16", "--rounds", "1", "--checkpointing", "off"]


def test_every_part_of_the_cost_benchmark_adds_rows_to_the_file(tmp_path, capsys, monkeypatch) -> None:
    # What is alone in a process is alone in a fork.
    monkeypatch.setattr("cost_memory.subprocess.run", lambda command, **more: run(*command[3:]))
    file = tmp_path / "cost.json"
    parts = ["--parts", "steps", "schedule", "ranks", "inference", "profile", "--steps", "4"]
    cost.main([*TINY, *parts, "--cases", "plain LoRA", "lora", "obs", "gate + lstsq", "PST", "--json", str(file)])
    # Later calls leave earlier rows where they are.
    cost.main([*TINY, "--parts", "steps", "--cases", "magnitude", "--json", str(file)])
    cost.main([*TINY, "--parts", "memory", "--cases", "shrinking", "--json", str(file)])
    ((_, found),) = json.loads(file.read_text()).items()
    assert set(found) == set(cost.PARTS)
    steps, memory = found["steps"]["rows"], found["memory"]["rows"]
    assert list(steps) == ["plain LoRA", "lora", "obs", "gate + lstsq", "PST", "magnitude"]
    assert list(memory) == ["shrinking"]
    assert memory["shrinking"]["peak_of_cuts_bytes"] > 0, memory
    assert list(found["profile"]["rows"]) == ["lora, freed pages handed back", "plain LoRA", "lora"]
    assert "| magnitude (scored at cuts only) |" in capsys.readouterr().out


def test_a_case_that_watches_nothing_is_refused(monkeypatch) -> None:
    stepper = cost_cases.make_stepper(cost_cases.Setup("tiny", 1, 16, 1, "none", False), "lora")
    monkeypatch.setattr("secateur.pruning.scorer.Scorer._score", lambda self, step: None)
    with pytest.raises(AssertionError, match="no scores were made"):
        stepper.turn("lora")


@pytest.mark.parametrize("load_in", ["8bit", "4bit"])
def test_a_quantised_base_has_the_cases_that_it_can_have(load_in) -> None:
    pytest.importorskip("bitsandbytes")
    setup = cost_cases.Setup("tiny", 1, 16, 1, load_in, False)
    rows = cost.steps_rows(setup, ["plain LoRA", "lora", "gate + lstsq"], 1)
    assert rows["lora"]["seconds"] > 0
    (whole,) = cost.steps_rows(setup.with_(load_in="none"), ["plain LoRA"], 1).values()
    assert rows["lora"]["weight_bytes"] < whole["weight_bytes"]
    assert "compensate" in rows["gate + lstsq"]["failed"]


def test_a_missing_library_is_a_row_that_failed(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", None)
    rows = cost.steps_rows(cost_cases.Setup("tiny", 1, 16, 1, "4bit", False), ["plain LoRA", "shrinking"], 1)
    assert list(rows) == ["plain LoRA"]
    assert "bitsandbytes" in rows["plain LoRA"]["failed"]
