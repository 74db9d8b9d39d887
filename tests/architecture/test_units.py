"""Units: which rows and columns go together, and what they weigh."""

import pytest
import torch
from tiny import tiny_llama
from torch import nn

from secateur.architecture.discovery import find_units
from secateur.architecture.families import Family, family_of
from secateur.system.errors import InputError


def pools_of(model: nn.Module, attention: str, layer: int = 0):
    units = find_units(model, family_of("llama"), attention)
    return {pool.kind: pool for pool in units.pools if pool.layer == layer}, units


def test_a_query_head_belongs_to_kv_head_h_div_n_rep() -> None:
    pools, _ = pools_of(tiny_llama(hidden=96, heads=6, kv_heads=2), "kv_group")
    index = {m.linear.rsplit(".", 1)[-1]: m.index for m in pools["kv_group"].members}
    head_dim, n_rep = 16, 3
    for h in range(6):
        rows = torch.arange(h * head_dim, (h + 1) * head_dim)
        for linear in ("q_proj", "o_proj"):
            owner = [u for u in range(2) if set(rows.tolist()) <= set(index[linear][u].tolist())]
            assert owner == [h // n_rep]
    assert index["k_proj"].tolist() == index["v_proj"].tolist() == torch.arange(32).view(2, 16).tolist()


def test_query_heads_lie_in_one_set_per_kv_head() -> None:
    pools, _ = pools_of(tiny_llama(heads=4, kv_heads=2), "query_head")
    pool = pools["query_head"]
    assert (pool.size, pool.sets) == (4, 2)
    assert [m.linear.rsplit(".", 1)[-1] for m in pool.members] == ["q_proj", "o_proj"]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("attention", ["kv_group", "query_head"])
def test_unit_params_are_what_a_smaller_model_lacks(bias: bool, attention: str) -> None:
    big = tiny_llama(heads=4, kv_heads=2, ffn=96, bias=bias, head_dim=16)
    pools, units = pools_of(big, attention)
    fewer = {"kv_group": dict(heads=2, kv_heads=1), "query_head": dict(heads=2, kv_heads=2)}[attention]
    removed = {"kv_group": 1, "query_head": 2}[attention]
    small = tiny_llama(ffn=95, bias=bias, head_dim=16, **fewer)
    count = lambda m: sum(p.numel() for p in m.parameters())  # noqa: E731
    expected = 3 * (removed * pools[attention].unit_params + pools["ffn"].unit_params)
    assert count(big) - count(small) == expected
    linears = [m for n, m in big.named_modules() if isinstance(m, nn.Linear) and "layers" in n]
    assert units.prunable_params == sum(count(m) for m in linears)


def test_a_pool_prints_what_goes_together() -> None:
    pools, _ = pools_of(tiny_llama(), "kv_group")
    assert str(pools["ffn"]) == (
        "layer.0.ffn: 96 units of 192 parameters: gate_proj[rows x1], up_proj[rows x1], down_proj[columns x1]"
    )


def test_unknown_model_type_and_layout_name_the_remedy() -> None:
    with pytest.raises(InputError, match=r"unknown model type 'qwen22'. Did you mean 'qwen2'\?.*--family"):
        family_of("qwen22")
    with pytest.raises(InputError, match=r"no module 'model.layers.0.mlp.gate'.*--family"):
        find_units(tiny_llama(), Family(name="other", mlp_in=("mlp.gate",)))
