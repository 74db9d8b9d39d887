"""Every registered model type, from its real config class: masked = sliced, the budget's count, a stock checkpoint."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from secateur import Pruner
from secateur.families import FAMILIES

SIZES = {
    "vocab_size": 128, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 3, "head_dim": 16, "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": 0,
    "pad_token_id": 0,
}  # fmt: skip
TYPES: dict[str, dict[str, object]] = {
    "llama": {"attention_bias": True},
    "mistral": {"sliding_window": 8},
    "qwen2": {"head_dim": None},
    "qwen3": {},
    "granite": {"head_dim": None, "attention_multiplier": 0.25, "residual_multiplier": 0.7, "logits_scaling": 2.0},
    "smollm3": {"head_dim": None, "no_rope_layer_interval": 2},
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 16, "sliding_window": 8},
    "gemma3_text": {"query_pre_attn_scalar": 16, "sliding_window": 8, "sliding_window_pattern": 2},
}
"""Model type -> what its config is given beside `SIZES` (None: left out)."""


def tiny(model_type: str):
    """A wide random model: norms around their own start, linears of standard deviation 0.2."""
    options = {key: value for key, value in {**SIZES, **TYPES[model_type]}.items() if value is not None or "_id" in key}
    if TYPES[model_type].get("head_dim", 1) is None:
        options |= {"hidden_size": 96}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **options), dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.copy_(parameter + values if "norm" in name else values)
    return model.eval()


def test_every_family_has_a_row() -> None:
    assert set(TYPES) == set(FAMILIES)


@pytest.mark.parametrize("attention", ["kv_group", "query_head"])
@pytest.mark.parametrize("model_type", list(TYPES))
def test_masked_is_sliced_and_loads_in_the_stock_class(model_type, attention, tmp_path) -> None:
    torch.manual_seed(0)
    base = tiny(model_type)
    dense = base(torch.arange(3, 40).unsqueeze(0)).logits
    before = sum(parameter.numel() for parameter in base.parameters())
    stock = type(base)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=list(_linears(model_type)), init_lora_weights=False))
    pruner = Pruner(
        model, sparsity=0.5, total_steps=4, prune_start=1, prune_end=3, frequency=1, attention=attention, shrink=False,
        allocation="protected", protect_first=0, protect_last=0,
    )  # fmt: skip
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    ids = torch.arange(3, 40).unsqueeze(0)
    for _ in range(4):
        model(ids, labels=ids).loss.backward()
        pruner.observe()
        optimizer.step()
        pruner.step(optimizer)
        optimizer.zero_grad()
    masked = model.eval()(ids).logits
    pruner.export(tmp_path / "out")  # compares masked with sliced, and reads back in a fresh process
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(small) is stock
    assert sum(parameter.numel() for parameter in small.parameters()) == before - pruner.removed_params
    heads = small.config.num_attention_heads, small.config.num_key_value_heads
    assert heads != (6, 3), "attention was pruned"
    scale = dense.abs().max()
    torch.testing.assert_close(small(ids).logits, masked, rtol=0.0, atol=float(2e-5 * scale))
    assert (masked - dense).abs().max() > 2e-3 * scale, "a change that the tolerance would hide"
    small.train()
    small(ids, labels=ids).loss.backward()


def _linears(model_type):
    return [path.rsplit(".", 1)[-1] for path in FAMILIES[model_type].linears]
