"""The prunable units of a model: which rows and columns of which linears go together.

A *unit* is the smallest thing that is removed: an FFN channel (a row of gate and up, a column of down),
a KV group (a KV head with its query heads) or a query head. The units of one kind in one layer form a
*pool*; a pool lists, for each linear that it touches, the entries of every unit. Everything else in
secateur (scores, masks, slicing, parameter counts) is computed from these index tables.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..system.errors import InputError
from .families import Family
from .layout import LAYER, WHOLE_KINDS, LayerShape, Part
from .quantised import bits_of, dequantised

GAIN = "unit_gain"
"""Name of the parameter that scales units (`models.surgery.gains`), at a linear or at the LoRA layer around it."""
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
    size: int
    """How long that side of the linear is."""
    scored: bool = True
    """False for what is no linear (an embedding whose columns are heads): it goes along, and counts for nothing."""
    _copies: dict[torch.device, Tensor] = field(default_factory=dict, repr=False)

    def index_on(self, device: torch.device) -> Tensor:
        """`index` on a device, copied there once."""
        if device not in self._copies:
            self._copies[device] = self.index.to(device)
        return self._copies[device]

    def entries(self, units: Tensor) -> Tensor:
        """Ascending positions along `dim` of the units that `units` (units,) marks."""
        return self.index[units].flatten().sort().values


@dataclass(frozen=True, eq=False)
class Pool:
    """All units of one kind in one place: a layer, an expert, or layers whose heads go together."""

    layers: tuple[int, ...]
    """The layers whose shape changes."""
    kind: str
    """`ffn`, `kv_group`, `query_head`, or of `WHOLE_KINDS`: the one unit of a pool is all of a layer, of its attention
    or of its FFN."""
    members: tuple[Member, ...]
    unit_params: int
    """Weights and biases that go with one unit."""
    sets: int = 1
    """Units lie in this many contiguous sets of equal size, and each set must lose the same number
    (query heads of each KV head)."""
    part: str = ""
    """Which part of the layer, where it has several pools of a kind."""
    beside: bool = False
    """Whether `part` is an FFN beside the routed experts (`LayerShape.beside`)."""
    together: int = 1
    """Units go by whole multiples of this many."""
    path: str = ""
    """Of the layer that is the one unit, where it is one (`LAYER`)."""

    @property
    def layer(self) -> int:
        """The first of the layers."""
        return self.layers[0]

    @property
    def name(self) -> str:
        return ".".join(filter(None, ("layer", str(self.layer), self.part, self.kind)))

    @property
    def size(self) -> int:
        return self.members[0].index.shape[0]

    def only(self, units: Tensor) -> "Pool":
        """The pool of the units that `units` (units,) marks, in the same places of the same linears."""
        members = (Member(m.linear, m.dim, m.index[units], m.size, m.scored) for m in self.members)
        return replace(self, members=tuple(members))

    def without(self, left: Mapping[tuple[str, int], Tensor]) -> "Pool":
        """The pool of a block of which units of its own are masked: less their entries.

        Args:
            left: (linear, dim) -> the positions that are not, where some are.
        """
        if self.kind not in WHOLE_KINDS or not any((m.linear, m.dim) in left for m in self.members):
            return self
        members = []
        for m in self.members:
            there = left.get((m.linear, m.dim), m.index)
            members.append(Member(m.linear, m.dim, m.index[:, torch.isin(m.index[0], there)], m.size, m.scored))
        return replace(self, members=tuple(members))

    @property
    def ends(self) -> tuple[Member, ...]:
        """The linears that give out what the units make, by the columns that read them."""
        return tuple(member for member in self.members if member.dim == 1 and member.scored)

    @property
    def gates(self) -> tuple[Member, ...]:
        """The linears whose inputs carry the units: zeroing their columns removes them (Eqs. 12, 13).

        None of a layer: what removes it is that its output is what came in.
        """
        return () if self.kind == LAYER else self.ends

    def __str__(self) -> str:
        parts = ", ".join(
            f"{m.linear.rsplit('.', 1)[-1]}[{'rows' if m.dim == 0 else 'columns'} x{m.index.shape[1]}]"
            for m in self.members
        )
        return f"{self.name}: {self.size} units of {self.unit_params:,} parameters: {parts}"


@dataclass(frozen=True)
class Place:
    """Where a layer of one shape is in the model."""

    prefix: str
    """Path of the layer; the family's paths are relative to it."""
    family: Family


@dataclass(frozen=True, eq=False)
class Units:
    """What can be pruned in a model: its pools, layer shapes and the size of its prunable linears."""

    family: Family
    pools: tuple[Pool, ...]
    places: tuple[Place, ...]
    shapes: tuple[LayerShape, ...]
    """One for each place, as the next two."""
    attention_params: tuple[int, ...]
    """Weights and biases of each layer's q, k, v and o."""
    ffn_params: tuple[int, ...]
    """Weights and biases of each layer's FFN linears."""

    @property
    def prunable_params(self) -> int:
        """Parameters of every prunable linear, or of all layers or blocks where these go: the denominator of
        sparsity."""
        if self.of_kind(*WHOLE_KINDS):
            return sum(pool.size * pool.unit_params for pool in self.pools)
        return sum(self.attention_params) + sum(self.ffn_params)

    def of_kind(self, *kinds: str) -> tuple[Pool, ...]:
        return tuple(pool for pool in self.pools if pool.kind in kinds)

    def shapes_after(self, keep: dict[str, Tensor]) -> tuple[LayerShape, ...]:
        """The layers' shapes when only the units marked in `keep` (pool name -> (units,) bool) stay."""
        removed: dict[tuple[int, str, str], int] = {}
        for pool in self.pools:
            gone, part = pool.size - int(keep[pool.name].sum()), pool.part if pool.beside else ""
            for layer in pool.layers:
                assert removed.setdefault((layer, pool.kind, part), gone) == gone, "the experts of a layer lose alike"
        shapes = list(self.shapes)
        for (layer, kind, part), gone in removed.items():
            shapes[layer] = shapes[layer].without(kind, gone, part)
        return tuple(shapes)

    def removed_params(self, keep: dict[str, Tensor]) -> int:
        """Parameters that go when only the units marked in `keep` stay."""
        return sum(int((~keep[pool.name]).sum()) * pool.unit_params for pool in self.pools)

    @property
    def linears(self) -> tuple[str, ...]:
        """Paths of all linears that any unit touches, each once."""
        return tuple(dict.fromkeys(member.linear for pool in self.pools for member in pool.members if member.scored))


def base_linear(module: nn.Module) -> Linear:
    """The frozen linear inside a PEFT layer, or the linear itself."""
    linear = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    if not isinstance(linear, nn.Linear | Conv1D):
        raise InputError(
            f"a {type(linear).__name__} stands where the family's layout has a linear: pass another --family."
        )
    return linear


def weight_of(linear: Linear | nn.Embedding) -> Tensor:
    """The frozen weight as (out, in): a view, also of a `Conv1D`'s or an embedding's, stored the other way round.

    Of a quantised linear a float32 copy: keep it no longer than it is needed.
    """
    if bits_of(linear):
        return dequantised(linear)
    return linear.weight.T if isinstance(linear, Conv1D | nn.Embedding) else linear.weight


def gain_of(module: nn.Module) -> Tensor | None:
    """(columns,) what forward pre-hooks multiply a linear's input by, where they say so (their attribute `gain`)."""
    gains = [hook.gain for hook in module._forward_pre_hooks.values() if hasattr(hook, "gain")]
    return torch.stack([gain.to(gains[0]) for gain in gains]).prod(0) if gains else None


def folded(module: nn.Module, leaf: str, value: Tensor) -> Tensor:
    """A linear's `weight` (out, in) or `bias` (out,) with the gains in it that hooks multiply its input and output by.

    Those of the output say so by their attribute `row_gain`.
    """
    if leaf == "weight" and (gain := gain_of(module)) is not None:
        value = value * gain.to(value.device)
    for hook in module._forward_hooks.values() if leaf in ("weight", "bias") else ():
        if hasattr(hook, "row_gain"):
            gain = hook.row_gain.to(value.device)
            value = value * (gain.unsqueeze(1) if leaf == "weight" else gain)
    return value


def sides_of(linear: Linear | nn.Embedding) -> tuple[int, int]:
    """(out, in) of a linear, without reading its weight."""
    if bits_of(linear):
        return int(linear.out_features), int(linear.in_features)  # type: ignore[arg-type]
    rows, columns = weight_of(linear).shape
    return int(rows), int(columns)


def pool_of(
    number: int,
    kind: str,
    place: Place,
    linears: dict[str, Linear],
    chosen: Sequence[Part],
    units: int,
    sets: int = 1,
    part: str = "",
) -> Pool:
    """Units that each own the same number of heads or channels of every part."""
    members, unit_params = [], 0
    for piece in chosen:
        linear = linears[piece.linear]
        shape = sides_of(linear)
        index = piece.index.reshape(units, -1)
        members.append(Member(f"{place.prefix}.{piece.linear}", piece.dim, index, shape[piece.dim]))
        unit_params += index.shape[1] * (shape[1 - piece.dim] + (piece.dim == 0 and linear.bias is not None))
    return Pool((number,), kind, tuple(members), unit_params, sets, part)
