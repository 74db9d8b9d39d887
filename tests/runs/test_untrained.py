"""`--steps 0`: scores, cuts and refit without training, through the command."""

import html
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tiny import save_tiny
from transformers import AutoModelForCausalLM

from secateur.cli import main
from secateur.comparison.grid import build_comparison
from secateur.config.files.recipes import build_values, read_with_recipe, recipes
from secateur.config.prune import PruneConfig
from secateur.config.speed import PlanConfig
from secateur.data.embedded import stdlib_docs
from secateur.models.surgery import merged_and_sliced
from secateur.runs import prune as runs
from secateur.system.progress import Progress
from secateur.training.finetune import load_base
from secateur.training.prepare import PruneJob, prepare

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    save_tiny(folder / "model", layers=5, ffn=160)
    text = stdlib_docs("train")[0][1].encode("ascii", "ignore").decode()
    (folder / "text.txt").write_text(text * 3, encoding="utf-8")
    return folder


def given(place: Path, output: Path, **changes: object) -> dict[str, object]:
    """Options by name; 500 tokens are four batches of 128."""
    options = {
        "model": str(place / "model"), "data": [str(place / "text.txt")], "output": str(output), "steps": 0,
        "seq_len": 32, "batch_size": 4, "sparsity": 0.4, "dtype": "float32", "calibration_tokens": 500, **changes,
    }  # fmt: skip
    return {name: value for name, value in options.items() if value is not None}


def config_of(place: Path, output: Path, **changes: object) -> PruneConfig:
    return build_values(PruneConfig, read_with_recipe(given(place, output, **changes), None, "prune"))


def command(place: Path, output: Path, *more: str, **changes: object) -> list[str]:
    found = ["prune", *more]
    for name, value in given(place, output, **changes).items():
        found += ["--" + name.replace("_", "-"), *map(str, value if isinstance(value, list) else [value])]
    return found


def pruned(job: PruneJob) -> tuple[torch.nn.Module, Tensors]:
    """The model when a run's training would begin, and as a checkpoint would hold it."""
    torch.manual_seed(job.config.seed)
    model, pruner, *_ = runs.fine_tune_and_prune(load_base(job, torch.float32), job, torch.float32, Progress(0))
    return model, dict(merged_and_sliced(model, pruner.live, pruner.live_keep))


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("criterion", "compensate"),
    [("gate", "sequential"), ("taylor-accumulated", "none"), ("lora", "lstsq"), ("obs", "lstsq")],
)
def test_one_cut_is_the_one_shot_orders_model_before_its_training(
    place, tmp_path, criterion, compensate, monkeypatch
) -> None:
    monkeypatch.setattr(runs, "run_trainer", lambda *args, **options: None)
    shared = {"criterion": criterion, "compensate": compensate}
    order = {"schedule": "one-shot", "prune_start": 4, "steps": 9}
    _, free = pruned(prepare(config_of(place, tmp_path / "free", cuts=1, **shared)))
    _, first = pruned(prepare(config_of(place, tmp_path / "first", **shared, **order)))
    assert same(free, first)
    _, twice = pruned(prepare(config_of(place, tmp_path / "twice", cuts=2, **shared)))
    assert {name: tensor.shape for name, tensor in twice.items()} == {name: t.shape for name, t in free.items()}
    assert not same(free, twice)


def test_each_cut_is_by_the_model_that_the_last_one_left(place, tmp_path) -> None:
    """Two cuts are two runs of one cut, the second on the first one's result: same batches, scores forgotten."""
    shared = {"criterion": "gate", "compensate": "none", "attention": "none", "schedule": "linear"}
    _, both = pruned(prepare(config_of(place, tmp_path / "both", cuts=2, **shared)))
    assert main(command(place, tmp_path / "half", cuts=1, **shared, sparsity=0.2)) == 0
    rest = config_of(place, tmp_path / "rest", cuts=1, **shared, model=str(tmp_path / "half"))
    dense = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(place / "model").parameters())
    count = sum(tensor.numel() for tensor in both.values())
    assert count < dense
    _, second = pruned(prepare(replace(rest, sparsity=None, target_params=count)))
    assert same(both, second)


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_a_run_says_what_it_did_and_computes_what_masks_would(place, tmp_path, allocation, capsys) -> None:
    out = tmp_path / "out"
    options = {"allocation": allocation, "cuts": 3}
    assert main(command(place, out, "--lr", "1e-3", eval_data=place / "text.txt", eval_tokens=640, **options)) == 0
    printed = capsys.readouterr()
    assert "without training these change nothing: --lr" in printed.err
    assert "by 3 cuts, each by 512 tokens, without training" in printed.err
    assert printed.err.count("cut after step") == 3
    assert "no training: 3 cuts by 512 tokens each" in printed.out
    result = json.loads((out / "result.json").read_text())
    assert result["config"]["recipe"] == "training-free"
    assert {key: result["data"][key] for key in ("trained_tokens", "trained_steps", "steps")} == dict.fromkeys(
        ("trained_tokens", "trained_steps", "steps"), 0
    )
    assert [cut["step"] for cut in json.loads((out / "units.json").read_text())["cuts"]] == [4, 8, 12]
    sparsity = result["sparsity"]
    assert sparsity["reached"] == pytest.approx(0.4, abs=0.005)
    assert sparsity["reached"] == pytest.approx(sparsity["target"], abs=1e-3 if allocation == "global" else 1e-12)
    card = (out / "README.md").read_text()
    assert "without training: criterion `gate`" in card
    assert "LoRA" not in card
    assert "no training, cuts: 3, each by 512 tokens" in (out / "report.html").read_text()
    masked, _ = pruned(prepare(config_of(place, tmp_path / "masked", shrink=False, **options)))
    ids = torch.arange(3, 60).unsqueeze(0)
    alone = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    torch.testing.assert_close(alone(ids).logits, masked.eval()(ids).logits, rtol=0.0, atol=2e-4)


def test_streamed_and_tried_first(place, tmp_path, capsys) -> None:
    shared = {"compensate": "none", "cuts": 2}
    assert main(command(place, tmp_path / "dry", "--dry-run", **shared)) == 0
    assert "nothing was trained" in capsys.readouterr().out
    assert not (tmp_path / "dry").exists()
    assert main(command(place, tmp_path / "streamed", "--stream-export", **shared)) == 0
    _, whole = pruned(prepare(config_of(place, tmp_path / "whole", **shared)))
    streamed = load_file(tmp_path / "streamed" / "model.safetensors")
    assert all(torch.equal(streamed[name], tensor) for name, tensor in whole.items() if name in streamed)
    assert len(streamed) > 5 * 7
    # The report's command, which leaves defaults out, leaves out none that the recipe would replace.
    page = html.unescape((tmp_path / "streamed" / "report.html").read_text())
    assert "--compensate none" in page
    assert "--steps 0" in page


def test_its_defaults_are_a_recipe_that_anything_else_wins_over() -> None:
    mine = recipes()["training-free"].options

    def built(**values: object) -> PruneConfig:
        values = {"model": "m", "data": "d", "output": "o", **values}
        return build_values(PruneConfig, read_with_recipe(values, None, "prune"))

    assert all(getattr(built(steps="0"), name) == value for name, value in mine.items())
    assert built(steps="0", criterion="obs").criterion == "obs"
    assert built(steps=0, recipe="best").allocation == "global"
    assert built(steps=0, recipe="best").cuts == 1
    assert built(steps=9).recipe == "default"


def test_the_plan_has_no_optimiser_and_the_batches_of_all_cuts(place, tmp_path, capsys) -> None:
    found = {}
    for steps in (0, 12):
        record = tmp_path / f"{steps}.json"
        options = ["--seq-len", "32", "--batch-size", "4", "--calibration-tokens", "500", "--json", str(record)]
        assert main(["plan", "--model", str(place / "model"), "--steps", str(steps), *options]) == 0
        found[steps] = SimpleNamespace(**json.loads(record.read_text()), text=capsys.readouterr().out)
    cuts = recipes()["training-free"].options["cuts"]
    assert found[0].memory["optimizer"] == 0 < found[12].memory["optimizer"]
    assert found[0].time["steps"] == 4 * cuts
    assert f"{cuts} cuts, {4 * cuts} batches" in found[0].text
    assert "at the peak of a scoring step" in found[0].text
    assert PlanConfig(model="m", steps=0, calibration_tokens=500, batch_size=4, seq_len=32).scoring_steps(2) == 2


def test_a_comparison_without_training_has_no_trained_baseline() -> None:
    values = {"model": "m", "data": "d", "output": "o", "evaluate_on": ["x"], "steps": "0", "criterion": "gate,obs"}
    cells = build_comparison(values).cells
    assert [cell.name for cell in cells] == ["dense", "gate", "obs"]
    assert all(cell.config.cuts == recipes()["training-free"].options["cuts"] for cell in cells)
