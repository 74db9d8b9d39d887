"""Components that go from layer to layer: the ranks' sum and the function of what grows stay."""

import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_llama

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "ranks"))
from growing import Growing

from secateur.models.surgery import lora_factors


def test_the_lowest_go_and_what_grows_adds_nothing_yet() -> None:
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(tiny_llama(layers=2), lora)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    growing = Growing(model, rank=4, total_steps=20, every=2, seed=1)
    growing.moved = 6
    lowest = "model.layers.0.mlp.up_proj"
    factors = lora_factors(growing.layers[lowest])
    factors.b.data[:, :2], factors.a.data[:2] = 0, 0
    ids = torch.randint(3, 99, (2, 16), generator=torch.Generator().manual_seed(1))
    for step in range(1, 5):
        model(ids, labels=ids).loss.backward()
        growing.observe()
        optimizer.step()
        before = {path: lora_factors(layer) for path, layer in growing.layers.items()}
        growing.step(optimizer)
        if step == 4:  # a tenth of the run, and two steps more
            break
        assert set(growing.ranks.values()) == {4}
        optimizer.zero_grad()
    ranks = growing.ranks
    assert sum(ranks.values()) == 4 * len(ranks)
    assert max(ranks.values()) > 4 > min(ranks.values())
    for path, rank in ranks.items():
        now = lora_factors(growing.layers[path])
        assert now.a.shape[0] == now.b.shape[1] == rank == len(growing.importance[path])
        if rank > 4:
            torch.testing.assert_close(now.b @ now.a, before[path].b @ before[path].a, msg="what grew does something")
            assert not now.b[:, 4:].any()
            assert optimizer.state[now.b]["exp_avg"].shape == now.b.shape
    optimizer.zero_grad()
    model(ids, labels=ids).loss.backward()
    optimizer.step()
