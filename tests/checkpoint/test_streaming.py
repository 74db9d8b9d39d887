"""`--stream-export`: the same checkpoint, made from the original's files one tensor at a time."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from tiny import save_tiny
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig

from secateur.cli import main
from secateur.models.files import INDEX
from secateur.runs import prune
from tests.parallel.test_distributed import ENVIRONMENT

WORDS = "the quick brown fox jumps over the lazy dog while seven wizards box and quarrel about nothing at all. "


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streamed")
    save_tiny(folder / "model", layers=2, ffn=128, tied=True, dtype=torch.bfloat16, max_shard_size="60kB")
    (folder / "text.txt").write_text(WORDS * 60)
    return folder


def command(place, output, *more, model="model") -> list[str]:
    return ["prune", "--model", str(place / model), "--data", str(place / "text.txt"), "--eval-data",
            str(place / "text.txt"), "--output", str(output), "--sparsity", "0.4", "--steps", "8", "--frequency", "2",
            "--seq-len", "32", "--batch-size", "2", "--lr", "5e-3", "--dtype", "float32", *more]  # fmt: skip


def tensors(folder) -> dict[str, torch.Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def test_a_result_that_cannot_be_measured_stays(place, tmp_path, capsys, monkeypatch) -> None:
    whole = prune.outcome

    def no_room(job, pruner, dense, small, *more):
        if not next(small.parameters()).is_meta:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return whole(job, pruner, dense, small, *more)

    monkeypatch.setattr(prune, "outcome", no_room)
    assert main(command(place, tmp_path / "out", "--stream-export")) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert "can't allocate memory" in result["not_measured"]
    assert result["pruned"]["perplexity"] is None
    assert result["pruned"]["parameters"] == sum(v.numel() for v in tensors(tmp_path / "out").values())
    printed = capsys.readouterr()
    assert "the result was not measured: RuntimeError on cpu" in printed.out
    assert "written and verified, but could not be measured" in printed.out + printed.err


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--no-shrink"],
        ["--allocation", "global", "--train-also", "norms,gains"],
        ["--load-in", "8bit", "--train-also", "norms,gains"],
        ["--load-in", "4bit"],
        ["--units", "layers", "--load-in", "8bit"],
        ["--load-in", "8bit", "--criterion", "compresso"],
    ],
    ids=lambda more: " ".join(more) or "plain",
)
def test_the_files_hold_what_an_export_from_memory_writes(place, tmp_path, capsys, more) -> None:
    if "--load-in" in more:
        pytest.importorskip("bitsandbytes")
    for name, streamed in (("memory", []), ("streamed", ["--stream-export"])):
        assert main(command(place, tmp_path / name, *more, *streamed)) == 0
    whole, parts = tensors(tmp_path / "memory"), tensors(tmp_path / "streamed")
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name
    result = json.loads((tmp_path / "streamed" / "result.json").read_text())
    same = json.loads((tmp_path / "memory" / "result.json").read_text())
    assert result["pruned"]["perplexity"]["mean_nll"] == same["pruned"]["perplexity"]["mean_nll"]
    assert result["dense"]["parameters"] == same["dense"]["parameters"]
    assert result["speed"]["flop_speedup"] == same["speed"]["flop_speedup"]
    assert "speedup" not in result["speed"]
    assert "not loaded" in capsys.readouterr().out
    assert (tmp_path / "streamed" / "report.html").exists()
    assert "not measured" in (tmp_path / "streamed" / "README.md").read_text()


def test_a_transposed_linear_with_bias(place, tmp_path, capsys) -> None:
    config = GPT2Config(vocab_size=128, n_embd=64, n_layer=2, n_head=4, n_positions=64, n_inner=128)
    GPT2LMHeadModel(config).save_pretrained(place / "gpt2", max_shard_size="60kB")
    for file in (place / "model").glob("token*"):
        (place / "gpt2" / file.name).write_bytes(file.read_bytes())
    assert main(command(place, tmp_path / "masks", "--criterion", "compresso", model="gpt2")) == 2
    assert "the FFN of a gpt2 has no gate (transformer.h.0.mlp.c_fc alone)" in capsys.readouterr().err
    for name, streamed in (("memory", []), ("streamed", ["--stream-export"])):
        assert main(command(place, tmp_path / name, *streamed, model="gpt2")) == 0
    whole, parts = tensors(tmp_path / "memory"), tensors(tmp_path / "streamed")
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    assert whole["transformer.h.0.mlp.c_proj.weight"].shape[0] < 128


def test_other_weights_than_were_trained_on_are_found(place, tmp_path, capsys, monkeypatch) -> None:
    """Of an unquantised run to the bit; nothing is put in place."""
    from secateur.checkpoint import shards

    real = shards.sliced_as
    monkeypatch.setattr(
        shards,
        "sliced_as",
        lambda value, path, stay: real(value.roll(1, 0) if "up_proj" in path else value, path, stay),
    )
    assert main(command(place, tmp_path / "out", "--stream-export")) == 4
    assert "up_proj: the weight in the checkpoint is not the one that was trained on" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--compensate", "lstsq"], "--compensate lstsq changes the weights that --stream-export reads anew"),
        (["--compensate", "sequential"], "--compensate sequential changes the weights that --stream-export reads anew"),
        (["--lora-init", "pissa"], "--lora-init pissa changes the weights"),
    ],
)
def test_what_changes_the_frozen_weights_is_refused(place, tmp_path, capsys, more, message) -> None:
    assert main(command(place, tmp_path / "out", "--stream-export", *more)) == 2
    assert message in capsys.readouterr().err


EXPORT = """
import json, sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM
from peft import LoraConfig, get_peft_model
from secateur import Pruner
from secateur.models.memory import peak_bytes, reset_peak
from secateur.models.loading import ModelSource
from secateur.checkpoint.streaming import export_streamed
from secateur.checkpoint import streaming
from secateur.checkpoint.verify import Verified
source, output, streamed = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "streamed"
# What the fresh process reads is not measured here.
streaming.verify = lambda checks: [Verified("LlamaForCausalLM", 0.0, 0.0)]
model = get_peft_model(
    AutoModelForCausalLM.from_pretrained(source, dtype="auto"), LoraConfig(r=4, target_modules="all-linear")
)
pruner = Pruner(model, sparsity=0.3, total_steps=4, shrink=False)
for pool in pruner.units.pools:
    pruner.keep[pool.name][: pool.size // 2] = False
ids = torch.arange(32)[None]
model(input_ids=ids)
before = reset_peak()
export_streamed(model, pruner.live, pruner.live_keep, output, probe_ids=ids, dtype=torch.bfloat16,
                source=ModelSource("m", source) if streamed else None, file_bytes=20_000_000)
print("PEAK", peak_bytes() - before)
"""


def test_memory_is_bounded_by_a_file_and_not_by_the_model(tmp_path) -> None:
    """90 MB of weights in files of 10 MB; what is written waits in files of 20 MB."""
    config = LlamaConfig(
        vocab_size=512, hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=64,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(
        tmp_path / "large", max_shard_size="10MB"
    )
    size = sum(file.stat().st_size for file in (tmp_path / "large").glob("*.safetensors"))
    assert size > 90e6
    assert (tmp_path / "large" / INDEX).exists()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", EXPORT, str(tmp_path / "large"), str(tmp_path / "out"), "streamed"],
        env={**ENVIRONMENT, "MALLOC_MMAP_THRESHOLD_": "131072"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    # A file being written (twice, as safetensors makes bytes of it), one being read, a linear merged in float32.
    assert int(done.stdout.split("PEAK")[1]) < 20e6 * 2 + 10e6 + 3 * 4 * 512 * 2048 + 15e6
