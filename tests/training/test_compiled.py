"""A model whose parts are compiled: `torch.compile` puts wrappers around them, and `_orig_mod.` into names."""

import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_llama

from secateur import Pruner, RankPruner
from secateur.checkpoint.comparing import logits_of
from secateur.checkpoint.export import build_small
from secateur.models.surgery import merged_and_sliced


def test_parts_in_compiles_wrappers_are_written_by_their_plain_names() -> None:
    torch.manual_seed(0)
    model = get_peft_model(tiny_llama(layers=2), LoraConfig(r=4, target_modules="all-linear"))
    inner = model.base_model.model.model
    inner.layers[1] = torch.compile(inner.layers[1], backend="eager")
    inner.layers[0].self_attn = torch.compile(inner.layers[0].self_attn, backend="eager")
    model.base_model.model.model = torch.compile(inner, backend="eager")
    pruner = Pruner(model, sparsity=0.4, total_steps=2, prune_start=0, prune_end=2, frequency=1)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    ids = torch.arange(3, 35).unsqueeze(0)
    for _ in range(2):
        model(input_ids=ids, labels=ids).loss.backward()
        pruner.observe()
        optimizer.step()
        pruner.step(optimizer)
        optimizer.zero_grad()
    assert "_orig_mod" not in "".join(RankPruner(model, rank=2, total_steps=2, frequency=1).ranks)
    shapes = pruner.live.shapes_after(pruner.live_keep)
    tensors = merged_and_sliced(model, pruner.live, pruner.live_keep)
    small = build_small(pruner.pruned.base.config, pruner.live.family, shapes, tensors, torch.float32, "keep")
    torch.testing.assert_close(logits_of(small, ids), logits_of(model, ids), rtol=1e-4, atol=1e-4)
