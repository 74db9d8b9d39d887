"""The pools of a layer: its heads, with what goes with them, and the channels of each of its FFNs."""

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..system.errors import InputError
from .experts import ExpertList, find
from .families import Family
from .layout import LayerShape, beside_parts, parts
from .units import Linear, Member, Place, Pool, base_linear, pool_of

BY_HEAD_SOURCE = '''
def of_heads(held, heads, before):
    """What has rows for each head, a linear or a vector, with those of so many `heads` instead of `before`."""
    if held is None:
        return None
    if isinstance(held, nn.Parameter):
        return nn.Parameter(held.new_empty(len(held) * heads // before, *held.shape[1:]))
    return resized(held, rows=held.out_features * heads // before)

'''
"""Of the modelling file of layers that differ: what resizes what goes with heads."""


def submodule(root: nn.Module, path: str, prefix: str) -> nn.Module:
    try:
        return root.get_submodule(path)
    except AttributeError:
        full = f"{prefix}.{path}".lstrip(".")
        raise InputError(
            f"the model has no module {full!r}, which its family's layout names: pass another --family."
        ) from None


def head_pool(
    kind: str, number: int, place: Place, layer: nn.Module, linears: dict[str, Linear], shape: LayerShape
) -> Pool:
    pool = _of_projections(kind, number, place, linears, shape)
    members, unit_params = list(pool.members), pool.unit_params
    for path, held in by_head(layer, place.family).items():
        index = torch.arange(len(held)).view(pool.size, -1)
        members.append(Member(f"{place.prefix}.{path}", 0, index, len(held), scored=False))
        unit_params += held.numel() // pool.size
    return replace(pool, members=tuple(members), unit_params=unit_params)


def by_head(layer: nn.Module, family: Family) -> dict[str, Tensor]:
    """Path in the layer -> what has an entry or a row for each entry of a query head beside the projections."""
    found: dict[str, Any] = {}
    for path in family.by_head:
        place, _, leaf = path.rpartition(".")
        try:
            held = getattr(submodule(layer, place, ""), leaf)
        except AttributeError:
            raise InputError(
                f"the model has no {path!r}, which its family's layout names: pass another --family."
            ) from None
        found[path] = base_linear(held).weight if isinstance(held, nn.Module) else held
    return {path: held for path, held in found.items() if held is not None}


def _of_projections(kind: str, number: int, place: Place, linears: dict[str, Linear], shape: LayerShape) -> Pool:
    heads = {part.role: part for part in parts(place.family, shape, "attention")}
    if kind == "kv_group":
        return pool_of(number, kind, place, linears, [heads[role] for role in "qkvo"], shape.kv_heads)
    return pool_of(number, kind, place, linears, [heads[role] for role in "qo"], shape.heads, shape.kv_heads)


def ffn_pools(
    number: int, layer: nn.Module, place: Place, linears: dict[str, Linear], shape: LayerShape, config: Any
) -> list[Pool]:
    """The channels of a layer's FFN, or of each of its experts and of each FFN beside them."""
    family, pools = place.family, []
    if _stays(layer, family):
        return []
    if family.experts is None and shape.ffn:
        pool = pool_of(number, "ffn", place, linears, parts(family, shape, "ffn"), shape.ffn)
        for path, linear in by_channel(layer, family).items():
            pool = _with_rows(pool, f"{place.prefix}.{path}", linear.weight)
        return [pool]
    if family.experts is not None and shape.ffn:
        experts = layer.get_submodule(family.experts)
        numbers = experts.numbers if isinstance(experts, ExpertList) else range(len(list(experts.children())))
        pools += [
            pool_of(number, "ffn", place, linears, parts(family, shape, "ffn", expert), shape.ffn, part=f"expert{name}")
            for expert, name in enumerate(numbers)
        ]
        if (spare := spare_of(layer, family)) is not None:
            pools[0] = _with_rows(pools[0], f"{place.prefix}.{family.experts}.spare", spare)
    widths, besides = dict(shape.beside), {each.name: each for each in family.beside}
    for name, chosen in beside_parts(family, shape).items():
        times = int(getattr(config, besides[name].times or "", 1))
        sets = times if besides[name].together else 1  # each FFN of several loses the same number
        pool = pool_of(number, "ffn", place, linears, chosen, widths[name], sets, part=name)
        pools.append(replace(pool, beside=True, together=times))
    return pools


def spare_of(layer: nn.Module, family: Family) -> Tensor | None:
    """What a layer's experts have in gate and up for experts that hand on what they read (`ExpertList.spare`)."""
    experts = find(layer, family.experts) if family.experts else None
    return experts.spare if isinstance(experts, ExpertList) else None


def by_channel(layer: nn.Module, family: Family) -> dict[str, nn.Linear]:
    """Path in the layer -> what adds to gate and up beside their own linears (`Family.by_channel`)."""
    parts = layer.get_submodule(family.by_channel).named_children() if family.by_channel else ()
    lists = {f"{family.by_channel}.{name}": part for name, part in parts if isinstance(part, nn.Sequential)}
    return {f"{path}.{len(part) - 1}": cast(nn.Linear, base_linear(part[-1])) for path, part in lists.items()}


def _with_rows(pool: Pool, path: str, held: Tensor) -> Pool:
    """The pool with what has a row for each of gate and up, and counts for nothing in the scores."""
    rows = [member for member in pool.members if member.dim == 0]
    further = tuple(Member(path, 0, member.index, len(held), scored=False) for member in rows if member.scored)
    more = sum(member.index.shape[1] for member in rows if member.scored) * held.shape[1]
    return replace(pool, members=(*pool.members, *further), unit_params=pool.unit_params + more)


def _stays(layer: nn.Module, family: Family) -> bool:
    """Whether no channel of a layer's FFN can go."""
    if family.ffn_stays is None:
        return False
    place, _, name = family.ffn_stays.rpartition(".")
    return bool(getattr(submodule(layer, place, ""), name, 0))


def taken_alone(model: nn.Module, stack: Family, heads: list[Pool], number: int) -> list[Pool]:
    """The last of `heads`, taken out, where a layer's go for themselves; with the bias that it has of its own."""
    if not heads or (stack.head_bias is not None and not stack.own_head_bias):
        return []
    return [together(model, stack, [heads.pop()], number)] if stack.head_bias else [heads.pop()]


def together(model: nn.Module, stack: Family, heads: list[Pool], first: int = 0) -> Pool:
    """One pool of the heads of all layers, with the bias by head that they share, which is in the `first` one."""
    path = f"{stack.layers}.{first}.{stack.head_bias}"
    bias = submodule(model, path, "").weight
    assert isinstance(bias, Tensor)
    count = bias.shape[1]
    shared = Member(path, 1, torch.arange(count).unsqueeze(1), count, scored=False)
    members = (*(member for pool in heads for member in pool.members), shared)
    layers = tuple(pool.layer for pool in heads)
    return Pool(layers, heads[0].kind, members, sum(pool.unit_params for pool in heads) + bias.shape[0])
