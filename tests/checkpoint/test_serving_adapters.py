"""An adapter with one rank and scaling 1 in every layer computes what it did with its own ranks and scalings."""

import json
import re
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import tiny_llama

from secateur.checkpoint.serving.adapters import bake_, check_same_updates
from secateur.cli import main
from secateur.system.errors import VerificationError

IDS = torch.randint(3, 99, (2, 20), generator=torch.Generator().manual_seed(1))
PATTERNS = {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 7}, "alpha_pattern": {"v_proj": 3, "q_proj": 5}}


def adapter(folder, **more):
    """A written adapter, the logits of a float64 model with it, and the largest |Δlogit| that it makes."""
    base = tiny_llama(layers=2).double()
    dense = base(IDS).logits
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", **more)).double()
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data = (torch.randn(parameter.shape, generator=generator) * 0.1).double()
    model.save_pretrained(folder)
    logits = model.eval()(IDS).logits
    assert (logits - dense).abs().max() > 1
    return logits


@pytest.mark.parametrize("more", [{}, PATTERNS, {"use_rslora": True, **PATTERNS}])
def test_baked_computes_the_same_with_one_rank_and_no_patterns(tmp_path, capsys, more) -> None:
    expected = adapter(tmp_path / "a", **more)
    assert main(["export", "--model", str(tmp_path / "a"), "--format", "adapter", "--output", str(tmp_path / "b")]) == 0
    config = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    rank = 7 if more else 4
    assert f"rank {rank} and scaling 1 in every layer" in capsys.readouterr().out
    assert config["r"] == config["lora_alpha"] == rank
    assert not (config["rank_pattern"])
    assert not (config["alpha_pattern"])
    assert not (config["use_rslora"])
    tensors = load_file(tmp_path / "b" / "adapter_model.safetensors")
    assert {min(t.shape) for t in tensors.values()} == {rank}
    assert {t.dtype for t in tensors.values()} == {torch.float64}
    model = PeftModel.from_pretrained(tiny_llama(layers=2).double(), tmp_path / "b").double().eval()
    assert (model(IDS).logits - expected).abs().max() < 1e-9
    # What takes alpha over the configuration's rank, or over the layer's, for every layer finds 1.
    assert {config["lora_alpha"] / config["r"]} == {config["lora_alpha"] / min(t.shape) for t in tensors.values()}


def test_a_factor_that_is_off_is_noticed(tmp_path) -> None:
    adapter(tmp_path / "a", **PATTERNS)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    bake_(tmp_path / "b")
    assert check_same_updates(tmp_path / "a", tmp_path / "b") < 1e-12
    tensors = load_file(tmp_path / "b" / "adapter_model.safetensors")
    name = max(name for name in tensors if "lora_B" in name)
    tensors[name][0, 0] *= 1.01
    save_file(tensors, tmp_path / "b" / "adapter_model.safetensors")
    with pytest.raises(VerificationError, match="updates are .* off"):
        check_same_updates(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"use_dora": True}, "is DoRA"),
        ({"bias": "lora_only"}, "biases \\(bias=lora_only\\)|other tensors"),
        ({"modules_to_save": ["lm_head"], "exclude_modules": ["lm_head"]}, "modules that were trained in full"),
    ],
)
def test_what_engines_do_not_take_is_refused(tmp_path, capsys, more, said) -> None:
    model = get_peft_model(tiny_llama(layers=1, bias=True), LoraConfig(r=4, target_modules=["q_proj"], **more))
    model.save_pretrained(tmp_path / "a")
    assert main(["export", "--model", str(tmp_path / "a"), "--format", "adapter", "--output", str(tmp_path / "b")]) == 2
    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "b").exists()
