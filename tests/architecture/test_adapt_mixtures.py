"""`adapt` on mixtures: PEFT trains, writes, reads and merges what it aims LoRA at, and routers stay as they are."""

import re

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from secateur.architecture.experts import stack_experts
from secateur.architecture.families import FAMILIES
from secateur.checkpoint.comparing import logits_of
from secateur.config.adapt import AdaptConfig
from secateur.models.coverage import uncalled_linears
from secateur.models.surgery import lora_layers
from secateur.ranks import RankPruner
from secateur.runs.adapt import _check_ranks
from secateur.training.finetune import add_lora
from tests.architecture.rows import IDS, tiny

ONCE_REFUSED = [
    "deepseek_v2", "deepseek_v3", "glm4_moe", "hunyuan_v1_moe", "phimoe", "llama4_text", "dots1", "afmoe",
    "glm4_moe_lite",
]  # fmt: skip
"""In these PEFT raised an error of its own: it takes names of routers and shared experts for stacked tensors."""
CONFIG = AdaptConfig(model="m", data=("d",), output="o", init_rank=4, rank=2)


def stock(name: str):
    apart = tiny(name, 2)
    model = AutoModelForCausalLM.from_config(apart.config, dtype=torch.float32)
    model.load_state_dict(dict(stack_experts(apart.state_dict().items(), FAMILIES[name])))
    return model.eval()


@pytest.mark.parametrize("name", [*ONCE_REFUSED, "ernie4_5_moe", "gpt_oss", "laguna"])
def test_an_adapter_of_a_mixture_is_trained_cut_read_and_merged(name, tmp_path) -> None:
    base = stock(name)
    base.config.use_cache = False
    dense = logits_of(base, IDS)
    fits = _check_ranks(CONFIG, base.config)
    assert any("LoRA does not reach" in note for note in fits.notes)
    without = [*uncalled_linears(base, IDS), *fits.without]
    model = add_lora(base, CONFIG, fits.linears, scaling=1.0, without=without).train()
    reached = lora_layers(model)
    assert all(not re.search(r"\b(router|gate|experts)\b", path) for path in reached), sorted(reached)
    assert any(path.endswith(".o_proj") for path in reached)
    pruner = RankPruner(model, rank=2, total_steps=4, prune_start=1, prune_end=3, frequency=1)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(4):
        model(input_ids=IDS, labels=IDS).loss.backward()
        pruner.observe()
        optimizer.step()
        pruner.step(optimizer)
        optimizer.zero_grad()
    adapted = logits_of(model.eval(), IDS)
    scale = float(adapted.abs().max())
    assert (adapted - dense).abs().max() > 1e-2 * scale
    model.save_pretrained(tmp_path)
    again = logits_of(PeftModel.from_pretrained(stock(name), tmp_path), IDS)
    merged = logits_of(model.merge_and_unload(), IDS)
    for found in (again, merged):
        torch.testing.assert_close(found, adapted, rtol=0.0, atol=2e-5 * scale)
