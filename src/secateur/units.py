"""The prunable units of a model: which rows and columns of which linears go together.

A *unit* is the smallest thing that is removed: an FFN channel (a row of gate and up, a column of down),
a KV group (a KV head with its query heads) or a query head. The units of one kind in one layer form a
*pool*; a pool lists, for each linear that it touches, the entries of every unit. Everything else in
secateur (scores, masks, slicing, parameter counts) is computed from these index tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .errors import InputError
from .families import FAMILIES, Family, family_of
from .layout import LayerShape, Part, kv_heads_of, linear_sizes, parts

ATTENTION_KINDS = ("kv_group", "query_head")
Linear = nn.Linear | Conv1D


@dataclass(frozen=True, eq=False)
class Member:
    """One projection's share in the units of a pool."""

    linear: str
    """Path of its linear in the base model; several members may lie in one."""
    dim: int
    """0: units own rows (outputs); 1: units own columns (inputs)."""
    index: Tensor
    """(units, entries) positions along `dim`."""

    def entries(self, units: Tensor) -> Tensor:
        """Ascending positions along `dim` of the units that `units` (units,) marks."""
        return self.index[units].flatten().sort().values


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


def find_units(model: nn.Module, family: Family, attention: str = "auto") -> Units:
    """The prunable units of a base model (LoRA layers may wrap its linears).

    Sizes come from the linears' own shapes, so layers may differ (an earlier run's result).

    Args:
        attention: `auto` (KV groups where the family can lose some), `kv_group`, `query_head` or `none`.
    Raises:
        InputError: a linear of the family's layout is not there, or its heads cannot be pruned.
    """
    attention = attention_kind(family, attention)
    layers = list(_submodule(model, family.layers, "").children())
    pools: list[Pool] = []
    shapes: list[LayerShape] = []
    attention_params: list[int] = []
    ffn_params: list[int] = []
    for number, layer in enumerate(layers):
        prefix = f"{family.layers}.{number}"
        linears = {path: base_linear(_submodule(layer, path, prefix)) for path in family.linears}
        shape = _layer_shape(layer, family, linears, prefix)
        shapes.append(shape)
        attention_params.append(sum(_parameters(linears[path]) for path in family.attention_linears))
        ffn_params.append(sum(_parameters(linears[path]) for path in family.ffn_linears))
        if attention != "none":
            heads = {part.role: part for part in parts(family, shape, "attention")}
            chosen = [heads[role] for role in ("qkvo" if attention == "kv_group" else "qo")]
            units, sets = (shape.kv_heads, 1) if attention == "kv_group" else (shape.heads, shape.kv_heads)
            pools.append(_pool(number, attention, prefix, linears, chosen, units, sets))
        pools.append(_pool(number, "ffn", prefix, linears, parts(family, shape, "ffn"), shape.ffn))
    return Units(family, tuple(pools), tuple(shapes), tuple(attention_params), tuple(ffn_params))


def family_for(model: nn.Module, model_type: str, override: str | Family | None = None) -> Family:
    """The layout of a model, or the one that the user names.

    Raises:
        InputError: the model type is not known; says what layout the model looks like.
    """
    if override is None and model_type and model_type not in FAMILIES and (alike := _looks_like(model)):
        raise InputError(
            f"unknown model type {model_type!r}, whose modules look like the {alike} layout: pass --family {alike} to "
            "try it (a result that computes something else is never kept), or write its own (docs/add-a-family.md)."
        )
    return family_of(model_type, override)


def _looks_like(model: nn.Module) -> str | None:
    """The first known layout whose modules and sizes the model has."""
    for name, family in FAMILIES.items():
        try:
            find_units(model, family)
        except (InputError, AttributeError):
            continue
        attention = model.get_submodule(f"{family.layers}.0.{family.attention}")
        if all(hasattr(attention, key.split(".")[0]) for key in family.attributes):
            return name
    return None


def attention_kind(family: Family, attention: str) -> str:
    """`auto` made definite.

    Raises:
        InputError: the architecture cannot lose what is asked for, with the reason.
    """
    if attention == "auto":
        return "none" if family.no_heads else "kv_group"
    if attention != "none" and family.no_heads:
        raise InputError(
            f"--attention {attention}: {family.name} cannot lose heads: {family.no_heads}. Leave --attention out."
        )
    if attention == "query_head" and "query_head" not in family.kinds:
        raise InputError(
            f"--attention query_head: each of {family.name}'s query heads has a KV head of its own, so neither goes "
            "alone: use --attention kv_group."
        )
    return attention


def base_linear(module: nn.Module) -> Linear:
    """The frozen linear inside a PEFT layer, or the linear itself."""
    linear = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    if not isinstance(linear, nn.Linear | Conv1D):
        raise InputError(
            f"a {type(linear).__name__} stands where the family's layout has a linear: pass another --family."
        )
    return linear


def weight_of(linear: Linear) -> Tensor:
    """The frozen weight as (out, in): a view, also of a `Conv1D`'s, which is stored the other way round."""
    return linear.weight.T if isinstance(linear, Conv1D) else linear.weight


def _submodule(root: nn.Module, path: str, prefix: str) -> nn.Module:
    try:
        return root.get_submodule(path)
    except AttributeError:
        full = f"{prefix}.{path}".lstrip(".")
        raise InputError(
            f"the model has no module {full!r}, which its family's layout names: pass another --family."
        ) from None


def _parameters(linear: nn.Module) -> int:
    return sum(parameter.numel() for parameter in linear.parameters())


def _layer_shape(layer: nn.Module, family: Family, linears: dict[str, Linear], prefix: str) -> LayerShape:
    attention = _submodule(layer, family.attention, prefix)
    head_dim = int(getattr(attention, family.head_dim_at))
    heads = weight_of(linears[family.o]).shape[1] // head_dim
    kv_heads = kv_heads_of(family, heads, head_dim, weight_of(linears[family.k]).shape[0])
    ffn = int(weight_of(linears[family.mlp_out]).shape[1])
    shape = LayerShape(heads, kv_heads, ffn, head_dim)
    whole = kv_heads > 0 and heads % kv_heads == 0
    for (path, dim), size in linear_sizes(family, shape).items() if whole else ():
        whole &= weight_of(linears[path]).shape[dim] == size
    if not whole:
        sizes = ", ".join(f"{path} {tuple(weight_of(linear).shape)}" for path, linear in linears.items())
        raise InputError(
            f"{prefix}: its linears ({sizes}) do not make whole groups of heads of {head_dim} and whole channels: "
            f"the checkpoint does not follow the {family.name} layout."
        )
    return shape


def _pool(
    number: int,
    kind: str,
    prefix: str,
    linears: dict[str, Linear],
    chosen: Sequence[Part],
    units: int,
    sets: int = 1,
) -> Pool:
    """Units that each own the same number of heads or channels of every part."""
    members = tuple(Member(f"{prefix}.{part.linear}", part.dim, part.index.reshape(units, -1)) for part in chosen)
    unit_params = 0
    for part, member in zip(chosen, members, strict=True):
        linear = linears[part.linear]
        per_entry = weight_of(linear).shape[1 - part.dim] + (part.dim == 0 and linear.bias is not None)
        unit_params += member.index.shape[1] * int(per_entry)
    return Pool(number, kind, members, unit_params, sets)
