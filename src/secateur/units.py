"""The prunable units of a model: which rows and columns of which linears go together.

A *unit* is the smallest thing that is removed: an FFN channel (a row of gate and up, a column of down),
a KV group (a KV head with its query heads) or a query head. The units of one kind in one layer form a
*pool*; a pool lists, for each linear that it touches, the entries of every unit. Everything else in
secateur (scores, masks, slicing, parameter counts) is computed from these index tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from .errors import InputError
from .families import Family

ATTENTION_KINDS = ("kv_group", "query_head")


@dataclass(frozen=True, eq=False)
class Member:
    """One linear's share in the units of a pool."""

    linear: str
    """Path of the linear in the base model."""
    dim: int
    """0: units own rows (outputs); 1: units own columns (inputs)."""
    index: Tensor
    """(units, entries) positions along `dim`."""

    def entries(self, keep: Tensor) -> Tensor:
        """Ascending positions along `dim` of the units that `keep` (units,) marks."""
        return self.index[keep].flatten().sort().values


@dataclass(frozen=True, eq=False)
class Pool:
    """All units of one kind in one layer."""

    layer: int
    kind: str
    """`ffn`, `kv_group` or `query_head`."""
    members: tuple[Member, ...]
    unit_params: int
    """Weights and biases that go with one unit."""
    sets: int = 1
    """Units lie in this many contiguous sets of equal size, and each set must lose the same number
    (query heads of each KV head)."""

    @property
    def name(self) -> str:
        return f"layer.{self.layer}.{self.kind}"

    @property
    def size(self) -> int:
        return self.members[0].index.shape[0]

    @property
    def gate(self) -> Member:
        """The member whose input carries the units: zeroing its columns removes them (Eqs. 12, 13)."""
        return next(member for member in self.members if member.dim == 1)

    def __str__(self) -> str:
        parts = ", ".join(
            f"{m.linear.rsplit('.', 1)[-1]}[{'rows' if m.dim == 0 else 'columns'} x{m.index.shape[1]}]"
            for m in self.members
        )
        return f"{self.name}: {self.size} units of {self.unit_params:,} parameters: {parts}"


@dataclass(frozen=True, eq=False)
class LayerShape:
    """The sizes of one decoder layer that pruning can change."""

    heads: int
    kv_heads: int
    ffn: int
    head_dim: int

    def without(self, kind: str, removed: int) -> "LayerShape":
        """The shape after `removed` units of `kind` are gone from this layer."""
        heads, kv_heads, ffn = self.heads, self.kv_heads, self.ffn
        if kind == "ffn":
            ffn -= removed
        elif kind == "query_head":
            heads -= removed
        else:
            heads -= removed * (heads // kv_heads)
            kv_heads -= removed
        return LayerShape(heads, kv_heads, ffn, self.head_dim)

    def key(self) -> tuple[int, int, int]:
        """(query heads, KV heads, FFN width)."""
        return self.heads, self.kv_heads, self.ffn


@dataclass(frozen=True, eq=False)
class Units:
    """What can be pruned in a model: its pools, layer shapes and the size of its prunable linears."""

    family: Family
    pools: tuple[Pool, ...]
    shapes: tuple[LayerShape, ...]
    attention_params: tuple[int, ...]
    """Weights and biases of each layer's q, k, v and o."""
    ffn_params: tuple[int, ...]
    """Weights and biases of each layer's FFN linears."""

    @property
    def prunable_params(self) -> int:
        """Parameters of every prunable linear: the denominator of sparsity."""
        return sum(self.attention_params) + sum(self.ffn_params)

    def of_kind(self, *kinds: str) -> tuple[Pool, ...]:
        return tuple(pool for pool in self.pools if pool.kind in kinds)

    def shapes_after(self, keep: dict[str, Tensor]) -> tuple[LayerShape, ...]:
        """The layers' shapes when only the units marked in `keep` (pool name -> (units,) bool) stay."""
        shapes = list(self.shapes)
        for pool in self.pools:
            removed = pool.size - int(keep[pool.name].sum())
            shapes[pool.layer] = shapes[pool.layer].without(pool.kind, removed)
        return tuple(shapes)

    def removed_params(self, keep: dict[str, Tensor]) -> int:
        """Parameters that go when only the units marked in `keep` stay."""
        return sum(int((~keep[pool.name]).sum()) * pool.unit_params for pool in self.pools)

    @property
    def linears(self) -> tuple[str, ...]:
        """Paths of all linears that any unit touches, each once."""
        return tuple(dict.fromkeys(member.linear for pool in self.pools for member in pool.members))


def find_units(model: nn.Module, family: Family, attention: str = "kv_group") -> Units:
    """The prunable units of a base model (LoRA layers may wrap its linears).

    Sizes come from the linears' own shapes, so layers may differ (an earlier run's result).

    Args:
        attention: `kv_group`, `query_head` or `none`.
    Raises:
        InputError: a linear of the family's layout is not there.
    """
    layers = list(_submodule(model, family.layers, "").children())
    pools: list[Pool] = []
    shapes: list[LayerShape] = []
    attention_params: list[int] = []
    ffn_params: list[int] = []
    for number, layer in enumerate(layers):
        prefix = f"{family.layers}.{number}"
        linears = {path: base_linear(_submodule(layer, path, prefix)) for path in family.linears}
        shape = _layer_shape(model, layer, family, linears, prefix)
        shapes.append(shape)
        attention_params.append(sum(_parameters(linears[path]) for path in family.attention_linears))
        ffn_params.append(sum(_parameters(linears[path]) for path in family.ffn_linears))
        if attention == "kv_group":
            pools.append(_kv_groups(number, prefix, family, linears, shape))
        elif attention == "query_head":
            pools.append(_query_heads(number, prefix, family, linears, shape))
        pools.append(_ffn_channels(number, prefix, family, linears, shape))
    return Units(family, tuple(pools), tuple(shapes), tuple(attention_params), tuple(ffn_params))


def base_linear(module: nn.Module) -> nn.Linear:
    """The frozen linear inside a PEFT layer, or the linear itself."""
    linear = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    if not isinstance(linear, nn.Linear):
        raise InputError(
            f"a {type(linear).__name__} stands where the family's layout has a linear: pass another --family."
        )
    return linear


def _submodule(root: nn.Module, path: str, prefix: str) -> nn.Module:
    try:
        return root.get_submodule(path)
    except AttributeError:
        full = f"{prefix}.{path}".lstrip(".")
        raise InputError(
            f"the model has no module {full!r}, which its family's layout names: pass another --family."
        ) from None


def _parameters(linear: nn.Linear) -> int:
    return sum(parameter.numel() for parameter in linear.parameters())


def _layer_shape(
    model: nn.Module, layer: nn.Module, family: Family, linears: dict[str, nn.Linear], prefix: str
) -> LayerShape:
    head_dim = int(getattr(_submodule(layer, family.attention, prefix), "head_dim"))  # noqa: B009
    rows = {path: linear.weight.shape[0] for path, linear in linears.items()}
    heads, kv_heads = int(rows[family.q]) // head_dim, int(rows[family.k]) // head_dim
    if heads * head_dim != rows[family.q] or heads % kv_heads:
        raise InputError(
            f"{prefix}: {rows[family.q]} query rows and {rows[family.k]} key rows do not make whole groups "
            f"of heads of {head_dim}: the checkpoint does not follow the {family.name} layout."
        )
    return LayerShape(heads, kv_heads, int(rows[family.mlp_in[0]]), head_dim)


def _pool(
    number: int,
    kind: str,
    prefix: str,
    linears: dict[str, nn.Linear],
    members: Sequence[tuple[str, int, Tensor]],
    sets: int = 1,
) -> Pool:
    made = tuple(Member(f"{prefix}.{path}", dim, index) for path, dim, index in members)
    unit_params = 0
    for path, dim, index in members:
        weight, bias = linears[path].weight, linears[path].bias
        per_entry = weight.shape[1 - dim] + (dim == 0 and bias is not None)
        unit_params += index.shape[1] * int(per_entry)
    return Pool(number, kind, made, unit_params, sets)


def _blocks(units: int, entries: int) -> Tensor:
    """(units, entries): unit u owns the contiguous positions u*entries ... (u+1)*entries - 1."""
    return torch.arange(units * entries).view(units, entries)


def _kv_groups(number: int, prefix: str, family: Family, linears: dict[str, nn.Linear], shape: LayerShape) -> Pool:
    # Query head h attends with KV head h // n_rep, so a group's query heads are contiguous.
    queries = _blocks(shape.kv_heads, shape.heads // shape.kv_heads * shape.head_dim)
    keys = _blocks(shape.kv_heads, shape.head_dim)
    members = [(family.q, 0, queries), (family.k, 0, keys), (family.v, 0, keys), (family.o, 1, queries)]
    return _pool(number, "kv_group", prefix, linears, members)


def _query_heads(number: int, prefix: str, family: Family, linears: dict[str, nn.Linear], shape: LayerShape) -> Pool:
    heads = _blocks(shape.heads, shape.head_dim)
    members = [(family.q, 0, heads), (family.o, 1, heads)]
    return _pool(number, "query_head", prefix, linears, members, sets=shape.kv_heads)


def _ffn_channels(number: int, prefix: str, family: Family, linears: dict[str, nn.Linear], shape: LayerShape) -> Pool:
    channels = _blocks(shape.ffn, 1)
    members = [(path, 0, channels) for path in family.mlp_in] + [(family.mlp_out, 1, channels)]
    return _pool(number, "ffn", prefix, linears, members)
