"""`--target-speedup` and `--target-latency` from the command line: plan, run, records, resuming, refusals."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from tiny import save_tiny, tiny_llama

from secateur.cli import main
from secateur.config.options import build
from secateur.config.prune import PruneConfig
from secateur.speed import measure
from secateur.system.errors import InputError
from secateur.training.checkpoints import work_folder
from secateur.training.prepare import COSTS, prepare
from tests.speed.made_up import AT, by_parameters, table, written

WORDS = "the quick brown fox jumps over the lazy dog while seven wizards box and quarrel about nothing at all. "
SHAPE = dict(layers=3, heads=8, kv_heads=4, ffn=256, tied=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("time")
    save_tiny(folder / "model", **SHAPE)
    (folder / "text.txt").write_text(WORDS * 60)
    model = tiny_llama(**SHAPE)
    written(folder / "parameters.json", by_parameters(model))
    heads = (0.0, 2.0, 3.0, 6.0, 7.0)
    steep = table(
        model, lambda layer, kv: heads[kv], lambda width: width / 8 + (width > 128) * 4.0, step=16, rest_ms=6.0
    )
    written(folder / "steep.json", steep)
    return folder


def options(place, *more):
    return [
        "--model", str(place / "model"), "--seq-len", "32", "--batch-size", "2", "--dtype", "float32", *more,
    ]  # fmt: skip


def planned(place, tmp_path, *more):
    assert main(["plan", *options(place, *more), "--json", str(tmp_path / "plan.json")]) == 0
    return json.loads((tmp_path / "plan.json").read_text())


def run(place, output, *more):
    data = ["--data", str(place / "text.txt"), "--output", str(output)]
    assert main(["prune", *options(place, *more), *data]) == 0
    return json.loads((output / "result.json").read_text())


def test_a_run_says_what_was_asked_predicted_and_measured(place, tmp_path, capsys) -> None:
    """Without training, in one cut: the time that the plan predicts, and one that is measured."""
    more = ("--target-speedup", "1.6x", "--cost-table", str(place / "steep.json"))
    plan = planned(place, tmp_path, *more, "--steps", "0")
    said = capsys.readouterr().out
    result = run(place, tmp_path / "out", *more, "--steps", "0", "--criterion", "gate", "--calibration-tokens", "256")
    time = result["time"]
    dense = 6.0 + 3 * (7.0 + 256 / 8 + 4.0)
    assert time["asked"]["speedup"] == 1.6
    assert time["asked"]["dense_ms"] == time["predicted"]["dense_ms"] == pytest.approx(dense)
    (shape,) = {tuple(shape.values()) for shape in result["shapes"]}
    heads = {4: 7.0, 2: 3.0, 1: 2.0}[shape[1]]
    pruned = 6.0 + 3 * (heads + shape[2] / 8 + (shape[2] > 128) * 4.0)
    assert time["predicted"]["pruned_ms"] == plan["speed"]["pruned_ms"] == pytest.approx(pruned)
    assert shape[2] % 16 == 0
    assert f"{shape[0]} of 8 heads, {shape[2]:,} of 256 channels" in said
    point = time["measured"]["points"][AT]
    assert time["measured"]["speedup"] == pytest.approx(point["dense"]["median_ms"] / point["pruned"]["median_ms"])
    assert (point["dense"]["batch"], point["dense"]["seq_len"]) == (1, 512)
    said = capsys.readouterr()
    assert f"asked for --target-speedup 1.6x (1.6x): predicted {dense / pruned:.3g}x, measured " in said.out
    assert (
        f"(--target-speedup 1.6x: {AT} in {dense / 1.6:.4g} ms where the dense model takes {dense:.4g} ms" in said.err
    )
    assert "1.60× asked" in (tmp_path / "out" / "report.html").read_text()


def test_a_latency_is_the_speedup_that_it_comes_to(place, tmp_path) -> None:
    costs = ("--cost-table", str(place / "steep.json"))
    by_latency = planned(place, tmp_path, "--target-latency", "90ms", *costs)
    by_speedup = planned(place, tmp_path, "--target-speedup", str(135 / 90), *costs)
    assert by_latency["speed"]["dense_ms"] == 135
    assert by_latency["after"] == by_speedup["after"]
    assert by_latency["speed"]["pruned_ms"] == pytest.approx(90, abs=3 * 16 / 8)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--target-speedup", "9x"), "--target-speedup 9x (prefill:1x512) is not reachable with --allocation uniform"),
        (
            ("--target-latency", "9ms"),
            "--target-latency 9ms (prefill:1x512) is not reachable with --allocation uniform",
        ),
        (("--target-latency", "2s"), "--target-latency 2s is not below what the dense model takes, 135 ms: give less"),
        (("--target-speedup", "9x", "--allocation", "global", "--floor", "0.5"), "with a floor of 0.5: at most 2.14x."),
        (("--target-speedup", "2x", "--speed-at", "prefill:1x8"), "has no times of prefill:1x8, but of prefill:1x512"),
    ],
)
def test_what_cannot_be_is_said_before_the_run(place, capsys, more, said) -> None:
    assert main(["plan", *options(place, *more), "--cost-table", str(place / "steep.json")]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_the_highest_that_is_named_can_be_reached(place, tmp_path, capsys) -> None:
    costs = ("--cost-table", str(place / "steep.json"))
    assert main(["plan", *options(place, "--target-speedup", "9x", *costs)]) == 2
    most = capsys.readouterr().err.split("at most ")[1].split("x")[0]
    assert float(most) == pytest.approx(135 / (6 + 3 * (2.0 + 16 / 8)), rel=0.01)
    assert planned(place, tmp_path, "--target-speedup", most, *costs)["speed"]["speedup"] == pytest.approx(
        float(most), rel=0.01
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"target_speedup": "1.5x", "sparsity": 0.2}, "--sparsity 0.2 and --target-speedup 1.5x each say how small"),
        ({"target_speedup": "1.5x", "target_latency": "4ms"}, "1.5x and --target-latency 4ms each say how small"),
        ({"target_speedup": "0.9x"}, "--target-speedup is '0.9x': give how many times as fast, above 1, such as 1.5x"),
        ({"target_latency": "40"}, "--target-latency is '40': give a time above 0 with its unit, such as 40ms"),
        ({"target_speedup": 2, "speed_at": "decode:1x512"}, "--speed-at is 'decode:1x512': give prefill:1x512"),
        ({"target_speedup": 2, "speed_at": "prefill:1x9,prefill:1x9"}, "prefill:1x9 is there twice"),
        ({"sparsity": 0.2, "cost_table": "f"}, "--cost-table goes with --target-speedup or --target-latency: add one"),
        ({"target_speedup": 2, "allocation": "search"}, "--allocation search keeps to a number of parameters"),
        ({"target_speedup": 2, "experts": 2}, "--experts goes with --sparsity"),
        (
            {"target_speedup": 2, "allocation": "global", "attention_sparsity": 0.3},
            "--attention-sparsity parts a budget of parameters, and a time is asked for",
        ),
    ],
)
def test_options_that_contradict(given, said) -> None:
    with pytest.raises(InputError) as caught:
        build(PruneConfig, {"model": "m", "data": ("d",), "output": "o"} | given)
    assert said in str(caught.value)


def test_a_run_that_goes_on_keeps_its_table(place, tmp_path, monkeypatch) -> None:
    """Interrupted, and gone on with after the file has changed: the cuts and weights of a run that was not."""
    from safetensors.torch import load_file

    from secateur.runs import prune as runs

    file = tmp_path / "table.json"
    file.write_text((place / "steep.json").read_text())
    more = (
        "--target-speedup", "1.5x", "--cost-table", str(file), "--allocation", "global", "--steps", "4",
        "--frequency", "1", "--save-steps", "2", "--prune-end", "1.0", "--prune-start", "0.0",
    )  # fmt: skip
    whole = run(place, tmp_path / "whole", *more)
    stopped, real = tmp_path / "stopped", runs.write_result

    def stops(*_):
        raise InputError("stopped")

    monkeypatch.setattr(runs, "write_result", stops)
    data = ["--data", str(place / "text.txt"), "--output", str(stopped)]
    assert main(["prune", *options(place, *more), *data]) == 2
    monkeypatch.setattr(runs, "write_result", real)
    work = work_folder(stopped)
    shutil.rmtree(work / "checkpoint-4")
    assert json.loads((work / COSTS).read_text()) == json.loads((place / "steep.json").read_text())
    file.write_text((place / "parameters.json").read_text())
    resumed = run(place, stopped, *more, "--resume")
    assert resumed["time"]["predicted"] == whole["time"]["predicted"]
    assert resumed["shapes"] == whole["shapes"]
    one, other = (load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", stopped))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_without_a_file_this_machine_is_measured(place, tmp_path, monkeypatch, capsys) -> None:
    """And `bench` writes the table that `plan` finds, of a clock that counts parameters."""
    from secateur.models.benchmark import parameter_count

    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(measure, "_forward_ms", lambda model, ids, subject: float(parameter_count(model)))
    monkeypatch.setattr(measure, "REPEATS", 2)
    at = ("--speed-at", "prefill:1x8")
    here = planned(place, tmp_path, "--target-speedup", "1.2x", *at)
    assert "measured on" in here["speed"]["table"]
    assert "kept from an earlier run" in planned(place, tmp_path, "--target-speedup", "1.2x", *at)["speed"]["table"]
    file = tmp_path / "table.json"
    model = ["--model", str(place / "model"), "--dtype", "float32"]
    assert main(["bench", *model, *at, "--cost-table", str(file)]) == 0
    assert "FFN widths that are multiples of" in capsys.readouterr().out
    again = planned(place, tmp_path, "--target-speedup", "1.2x", *at, "--cost-table", str(file))
    assert again["after"] == here["after"]
    assert main(["bench", *model, *at, "--cost-table", str(file)]) == 2
    assert "exists: pass --overwrite" in capsys.readouterr().err


def test_processes_and_dry_runs_take_the_same_budget(place, tmp_path) -> None:
    config = build(
        PruneConfig,
        {
            "model": str(place / "model"), "data": (str(place / "text.txt"),), "output": str(tmp_path / "out"),
            "target_speedup": "1.5x", "cost_table": str(place / "steep.json"), "seq_len": 32, "batch_size": 2,
            "steps": 4, "dtype": "float32", "save_steps": 0,
        },
    )  # fmt: skip
    job = prepare(config)
    assert job.costs is not None
    assert json.loads(json.dumps(job.records[COSTS])) == json.loads((place / "steep.json").read_text())
    assert prepare(replace(config, dry_run=True)).budget.quota == job.budget.quota
