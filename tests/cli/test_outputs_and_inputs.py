"""An output never takes an input with it; a GGUF file is a model of its own, whatever lies beside it."""

import json
from types import SimpleNamespace

import pytest
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny import save_tiny, tiny_llama
from tiny_gguf import save_gguf

from secateur.cli import main
from secateur.data.forms.tally import Tally
from secateur.runs.outcome import token_counts
from secateur.training import finetune
from secateur.training.loss import causal_lm_loss
from secateur.training.recording import RecordingCallback

WORDS = "the quick brown fox jumps over the lazy dog while seven wizards box and quarrel about nothing at all. "
TRAIN = ["--steps", "6", "--batch-size", "2", "--seq-len", "32", "--frequency", "2", "--dtype", "float32"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("inputs") / "model", layers=2)


def test_a_gguf_file_is_pruned_into_its_own_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    gguf = save_gguf(tmp_path / "m.gguf")
    (tmp_path / "text.txt").write_text(WORDS * 40)
    argv = ["prune", "--model", "m.gguf", "--data", "text.txt", "--output", "out", "--sparsity", "0.3", *TRAIN]
    assert main(argv) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["dense"]["bytes"] == gguf.stat().st_size
    assert result["export"]["format"] == "stock"
    assert result["sparsity"]["reached"] == pytest.approx(0.3, abs=0.005)


@pytest.mark.parametrize("kind", ["--data", "--eval-data", "--adapter", "--model", "a link"])
def test_an_output_with_an_input_in_it_is_refused(model, tmp_path, capsys, monkeypatch, kind) -> None:
    monkeypatch.setattr(finetune, "load_model", None)
    out = tmp_path / "out"
    inside, outside = out / "deep" / "text.txt", tmp_path / "text.txt"
    inside.parent.mkdir(parents=True)
    inside.write_text(WORDS * 40)
    outside.write_text(WORDS * 40)
    given = {"--model": str(model), "--data": str(outside)}
    if kind == "a link":
        (out / "link.txt").symlink_to(outside)
        given |= {"--data": str(out / "link.txt")}
    elif kind == "--model":
        given |= {kind: str(save_gguf(out / "m.gguf"))}
    else:
        given |= {kind: str(inside if kind != "--adapter" else inside.parent)}
    if kind == "--adapter":
        get_peft_model(tiny_llama(layers=2), LoraConfig(target_modules="all-linear")).save_pretrained(inside.parent)
    words = [word for pair in given.items() for word in pair]
    assert main(["prune", *words, "--output", str(out), "--overwrite", "--sparsity", "0.3", *TRAIN]) == 2
    printed = capsys.readouterr().err
    assert f"--output {out} holds" in printed
    assert "which would be deleted with it" in printed
    assert inside.exists()


def test_what_was_trained_on_is_counted_and_the_width_is_round(model, tmp_path, monkeypatch, capsys) -> None:
    """One-shot: the steps that only score train nothing, and say how far they are. 70 % of 96 channels would be 67."""
    monkeypatch.setattr("secateur.system.progress.COUNTING_SECONDS", 0.0)
    (tmp_path / "text.txt").write_text(WORDS * 40)
    argv = ["prune", "--model", str(model), "--data", str(tmp_path / "text.txt"), "--output", str(tmp_path / "out")]
    argv += ["--schedule", "one-shot", "--prune-start", "2", "--sparsity", "0.3", "--round-to", "16", *TRAIN]
    assert main(argv) == 0
    assert "scoring: 1 of 2 batches" in capsys.readouterr().err
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    width = load_file(tmp_path / "out" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].shape[0]
    assert width == json.loads((tmp_path / "out" / "config.json").read_text())["intermediate_size"] < 96
    assert width % 16 == 0
    data = result["data"]
    assert (data["steps"], data["trained_steps"], data["trained_tokens"]) == (6, 4, 4 * 2 * 32)


def test_a_scoring_batch_that_is_not_finite_is_left_out(model, tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "text.txt").write_text(WORDS * 40)
    argv = ["prune", "--model", str(model), "--data", str(tmp_path / "text.txt"), "--output", str(tmp_path / "out")]
    argv += ["--schedule", "one-shot", "--prune-start", "3", "--sparsity", "0.3", "--criterion", "gate", *TRAIN]
    losses = iter([1.0, float("nan"), 1.0])
    monkeypatch.setattr(
        "secateur.training.one_shot.causal_lm_loss", lambda *given: causal_lm_loss(*given) * next(losses)
    )
    assert main(argv) == 0
    assert "batch 2: its gradients are not finite" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "result.json").read_text())["sparsity"]["reached"] == pytest.approx(
        0.3, abs=0.01
    )


def test_a_step_that_was_left_out_does_not_count(tmp_path) -> None:
    blocks = SimpleNamespace(n_documents=1, n_tokens=1000, left_out=Tally())
    config = SimpleNamespace(eval_steps=0, eval_data=None)
    job = SimpleNamespace(work=tmp_path, tokens_per_step=10, total_steps=3, blocks=blocks, config=config)
    watched = SimpleNamespace(steps_done=lambda: 0, facts=dict, words=str, cuts_left=lambda: 0)
    shown = SimpleNamespace(begin=lambda step: None, update=lambda *args, **kwargs: None)
    recording = RecordingCallback(watched, job, shown, lambda: None)
    state = SimpleNamespace(max_steps=3, global_step=1)
    for norm in (1.5, float("nan"), 2.5):
        recording.on_log(None, state, None, logs={"loss": 1.0, "learning_rate": 0.1, "grad_norm": norm})
    recording.close()
    counts = token_counts(job)
    assert (counts["steps"], counts["trained_steps"], counts["trained_tokens"]) == (3, 2, 20)
