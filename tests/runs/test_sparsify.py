"""`secateur sparsify`: an ordinary checkpoint with zeros by a pattern, LoRA merged over them, resumable."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny import save_tiny
from transformers import AutoModelForCausalLM

from secateur.cli import main
from secateur.runs.baseline import WatchedSteps
from secateur.sparsity.pst import PstCallback
from tests.runs.test_adapt import QUESTIONS


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sparsify")
    save_tiny(folder / "model", layers=2, dtype=torch.bfloat16)
    (folder / "sums.jsonl").write_text(QUESTIONS)
    return folder


def command(place, output, *more) -> list[str]:
    return [
        "sparsify", "--model", str(place / "model"), "--data", str(place / "sums.jsonl"), "--output", str(output),
        "--batch-size", "2", "--seq-len", "48", "--dtype", "float32", "--calibration-tokens", "500", *more,
    ]  # fmt: skip


def weights(folder):
    return load_file(folder / "model.safetensors")


def zeros(folder):
    """Name -> bool (rows, groups, 4) of the layers' linears: which entries are zero."""
    found = {name: t for name, t in weights(folder).items() if name.endswith("proj.weight")}
    return {name: (tensor == 0).view(len(tensor), -1, 4) for name, tensor in found.items()}


def test_a_stock_checkpoint_with_zeros(place, tmp_path, capsys) -> None:
    out, text = tmp_path / "out", str(place / "sums.jsonl")
    assert main(command(place, out, "--eval-data", text, "--eval-tokens", "480")) == 0
    printed = capsys.readouterr()
    assert "50.00% of the weights of 14 linears are zero" in printed.out
    assert "AutoModelForCausalLM.from_pretrained" in printed.out
    assert "memory: " in printed.err
    assert len(zeros(out)) == 14
    assert all((mask.sum(2) == 2).all() for mask in zeros(out).values())
    before, after = weights(place / "model"), weights(out)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[n], t) for n, t in before.items() if not n.endswith("proj.weight"))
    assert after["model.layers.0.mlp.up_proj.weight"].dtype == torch.bfloat16
    result = json.loads((out / "result.json").read_text())
    assert result["zeros"]["share"] == 0.5
    assert result["zeros"]["calibration_tokens"] == 11 * 48
    assert result["pruned"]["perplexity"]["perplexity"] != result["dense"]["perplexity"]["perplexity"]
    card = (out / "README.md").read_text()
    assert "method `sparsegpt`, pattern `2:4`, by 528 tokens of sums.jsonl." in card
    assert "lora" not in card
    page = (out / "report.html").read_text()
    assert "secateur sparsify" in page
    assert "50% of the layers&#39; weights are zero (2:4)" in page
    assert main(["sparsify", "--config", str(out / "run.yaml"), "--output", str(tmp_path / "again")]) == 0
    assert all(torch.equal(weights(tmp_path / "again")[name], tensor) for name, tensor in after.items())
    assert yaml.safe_load((out / "run.yaml").read_text())["pattern"] == "2:4"


@pytest.mark.parametrize(
    ("more", "left"),
    [
        (("--method", "wanda", "--pattern", "1:4"), True),
        (("--method", "magnitude", "--pattern", "1:4", "--lora-plus", "4"), True),
        (("--method", "wanda", "--pattern", "1:4", "--no-keep-pattern"), False),
    ],
)
def test_lora_over_the_zeros(place, tmp_path, capsys, more, left) -> None:
    train = ("--steps", "3", "--lr", "1e-2", "--rank", "4")
    assert main(command(place, tmp_path / "plain", *more[:4])) == 0
    assert main(command(place, tmp_path / "out", *train, *more)) == 0
    plain, trained = weights(tmp_path / "plain"), weights(tmp_path / "out")
    for name, mask in zeros(tmp_path / "plain").items():
        assert (mask.sum(2) == 3).all()
        assert not torch.equal(plain[name], trained[name])
        assert torch.equal(trained[name] == 0, plain[name] == 0) == left
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["data"]["trained_steps"] == 3
    assert (result["export"]["merge_kl"] > 1e-6) == left  # what LoRA did where zeros are is gone
    assert result["zeros"]["share"] == (0.75 if left else pytest.approx(0, abs=1e-3))
    assert "merged into the weights that stay alone" in (tmp_path / "out" / "README.md").read_text() or not left


def test_the_merge_is_that_of_the_trained_adapter(place, tmp_path) -> None:
    """(W + s·B·A) ⊙ mask, from the factors of the last checkpoint."""
    train = ("--steps", "3", "--save-steps", "3", "--lr", "1e-2", "--rank", "4", "--alpha", "6")
    assert main(command(place, tmp_path / "plain")) == 0
    assert main(command(place, tmp_path / "out", *train)) == 0
    factors = load_file(tmp_path / "out.run" / "checkpoint-3" / "adapter_model.safetensors")
    plain = weights(tmp_path / "plain")
    for name, found in weights(tmp_path / "out").items():
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        if f"{key}A.weight" in factors:
            delta = 6 / 4 * factors[f"{key}B.weight"] @ factors[f"{key}A.weight"]
            expected = (plain[name].float() + delta) * (plain[name] != 0)
            torch.testing.assert_close(found.float(), expected, rtol=2**-7, atol=1e-4)


def test_lora_that_is_masked_in_training_loses_nothing_when_it_is_merged(place, tmp_path, capsys) -> None:
    found = {}
    for name, more in {"masked": ("--mask-lora",), "not": ()}.items():
        assert main(command(place, tmp_path / name, "--steps", "6", "--lr", "2e-2", *more)) == 0
        found[name] = json.loads((tmp_path / name / "result.json").read_text())["export"]["merge_kl"]
        assert all((mask.sum(2) == 2).all() for mask in zeros(tmp_path / name).values())
    assert found["masked"] < 1e-5 < 1e-4 < found["not"]
    assert "for masked LoRA in training" in capsys.readouterr().err


def test_resumed_is_uninterrupted(place, tmp_path, monkeypatch, capsys) -> None:
    more = ("--steps", "6", "--save-steps", "2", "--lr", "1e-2", "--dropout", "0.2")
    assert main(command(place, tmp_path / "whole", *more)) == 0
    real = WatchedSteps.on_step_end

    def dying(self, args, state, control, **kwargs):
        real(self, args, state, control, **kwargs)
        if state.global_step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(WatchedSteps, "on_step_end", dying)
    assert main(command(place, tmp_path / "out", *more)) == 130
    monkeypatch.undo()
    monkeypatch.setattr("secateur.runs.sparsify.command.sparsify_layers", None)  # what it began with is there
    assert main(command(place, tmp_path / "out", "--resume", *more)) == 0
    assert "resuming from checkpoint-4" in capsys.readouterr().err
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "out")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_dry_run(place, tmp_path, capsys) -> None:
    assert main(command(place, tmp_path / "out", "--dry-run", "--steps", "4")) == 0
    assert "with zeros (2:4)" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_it_computes_what_a_stock_reader_reads(place, tmp_path) -> None:
    assert main(command(place, tmp_path / "out", "--pattern", "0.6", "--method", "wanda")) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    masks = [p == 0 for n, p in model.named_parameters() if n.endswith("proj.weight")]
    assert all((mask.sum(1) == int(0.6 * mask.shape[1])).all() for mask in masks)


PST = ("--method", "pst", "--pattern", "0.5", "--steps", "10", "--save-steps", "2", "--lr", "1e-2", "--rank", "4")


def test_zeros_that_are_learnt(place, tmp_path, capsys) -> None:
    assert main(command(place, tmp_path / "out", *PST)) == 0
    plain = weights(place / "model")
    for name, tensor in weights(tmp_path / "out").items():
        if name.endswith("proj.weight"):
            assert int((tensor == 0).sum()) == tensor.numel() // 2
            smallest = plain[name].float().abs().flatten().topk(tensor.numel() // 2, largest=False).indices
            assert tensor.flatten()[smallest].any()  # something else than magnitude was learnt
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["export"]["merge_kl"] < 1e-6  # what was trained is what is written
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["sparsity"] == 0
    assert 0 < lines[3]["sparsity"] < 0.5
    assert lines[-1]["sparsity"] == 0.5


def test_learnt_zeros_resumed(place, tmp_path, monkeypatch, capsys) -> None:
    assert main(command(place, tmp_path / "whole", *PST)) == 0
    real = PstCallback.on_step_end

    def dying(self, args, state, control, **kwargs):
        real(self, args, state, control, **kwargs)
        if state.global_step == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(PstCallback, "on_step_end", dying)
    assert main(command(place, tmp_path / "out", *PST)) == 130
    monkeypatch.undo()
    assert main(command(place, tmp_path / "out", "--resume", *PST)) == 0
    assert "resuming from checkpoint-6" in capsys.readouterr().err
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "out")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
