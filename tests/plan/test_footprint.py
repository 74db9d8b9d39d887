"""The fake step runs through the first layers of each kind alone: to the byte what all layers come to."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from secateur.architecture.discovery import find_units
from secateur.architecture.experts import unstack_experts
from secateur.architecture.families import FAMILIES
from secateur.config.prune import PruneConfig
from secateur.models import coverage
from secateur.plan import footprint
from secateur.training.finetune import lora_config
from secateur.training.prepare import lora_names
from tests.architecture.rows import SIZES, TYPES

KINDS = {
    "llama": {},
    "gemma3_text": {"layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 2 + ["sliding_attention"] * 2},
    "smollm3": {"no_rope_layers": [1, 1, 1, 0] * 3 + [1, 1]},
    "qwen2_moe": {"mlp_only_layers": [0, 5, 12]},
    "gpt2": {},
    "jetmoe": {},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 3, "num_hidden_layers": 6},
}
"""Model types whose layers are alike, in which they differ in mask, in rotation and in kind, whose router asks for
numbers, and in which they share a block."""


def config_of(name: str):
    options = {**SIZES, **TYPES[name], "num_hidden_layers": 14, **KINDS[name]}
    return AutoConfig.for_model(name, **{key: value for key, value in options.items() if value is not None})


# PEFT's of `down_proj` in a mixture of experts, which it looks for in one tensor.
@pytest.mark.filterwarnings("ignore:target_parameters:RuntimeWarning")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_layers_that_are_alike_count_alike(name, checkpointing, monkeypatch) -> None:
    options = {
        "linears": lora_names(FAMILIES[name]), "rank": 4, "micro_batch": 2, "seq_len": 24, "dtype": torch.float32,
        "device_type": "cpu", "gradient_checkpointing": checkpointing,
    }  # fmt: skip
    left = {}
    trim = footprint._leave_first_layers
    monkeypatch.setattr(footprint, "_leave_first_layers", lambda *a: left.update(trim(*a)) or left)
    short = footprint.training_footprint(config_of(name), **options)
    assert sum(left.values()) >= 2  # something was left out
    monkeypatch.setattr(footprint, "_leave_first_layers", lambda *a: {})
    assert short == footprint.training_footprint(config_of(name), **options)


def test_layers_of_an_old_class_are_all_counted() -> None:
    options = {"rank": 4, "micro_batch": 2, "seq_len": 24, "dtype": torch.float32, "device_type": "cpu"}
    found = [
        footprint.training_footprint(
            AutoConfig.for_model("openai-gpt", n_embd=48, n_head=3, n_layer=count, vocab_size=128),
            linears=lora_names(FAMILIES["openai-gpt"]), **options,
        ).activations
        for count in (4, 6, 8)
    ]  # fmt: skip
    assert found[2] - found[1] == found[1] - found[0] > 0


@pytest.mark.parametrize("restarts", [False, True])
def test_what_is_trained_or_merged_into_is_held_wide(restarts, monkeypatch) -> None:
    """A bfloat16 base: two bytes a parameter more, and of what is trained a gradient and two moments in float32."""
    config = config_of("llama")
    config.dtype = torch.bfloat16
    options = {
        "linears": lora_names(FAMILIES["llama"]), "rank": 4, "micro_batch": 2, "seq_len": 24, "dtype": torch.bfloat16,
        "device_type": "cpu",
    }  # fmt: skip
    also = () if restarts else ("norms", "gains", "weights")
    plain = footprint.training_footprint(config, **options)
    wide = footprint.training_footprint(config, **options, also=also, restarts=restarts)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    units = find_units(model, FAMILIES["llama"])
    linears = sum(model.get_submodule(path).weight.numel() for path in units.linears)
    gains = sum(pool.size for pool in units.pools)
    norms = sum(p.numel() for name, p in model.named_parameters() if "norm" in name)
    trained = 0 if restarts else 4 * (linears + norms + gains)
    assert wide.weights - plain.weights == 2 * linears + (0 if restarts else 2 * norms + 4 * gains)
    assert wide.gradients - plain.gradients == trained == (wide.optimizer - plain.optimizer) // 2
    assert wide.lora == plain.lora
    assert wide.activations > plain.activations  # copies in bfloat16, which the products take
    monkeypatch.setattr(footprint, "_leave_first_layers", lambda *a: {})
    assert wide == footprint.training_footprint(config, **options, also=also, restarts=restarts)


def test_lora_reaches_the_same_linears_whether_one_expert_is_looked_at_or_all(monkeypatch) -> None:
    found = []
    for whole in (False, True):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                AutoConfig.for_model("mixtral", **{k: v for k, v in {**SIZES, **TYPES["mixtral"]}.items() if v})
            )
        unstack_experts(model)
        if whole:
            monkeypatch.setattr(coverage, "expert_lists", lambda model: {})
        config = PruneConfig(model="m", data=("d",), output="o")
        found.append(coverage.planned_lora(model, config, lora_config(config, lora_names(FAMILIES["mixtral"]))))
    assert sorted(found[0]) == sorted(found[1])
    assert any(".experts.3." in path for path in found[0])
