"""A layer as a refit in sequence meets it: what it does with what its linears make, and what of them stays."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor, nn

from ...architecture.depth import is_absent
from ...architecture.layout import LAYER, WHOLE_KINDS
from ...architecture.units import Units, base_linear, weight_of
from ...system.errors import InputError
from .blocks import Block, block_of
from .layerwise import at_rest, recorded

PROBE = 8
"""Tokens of two sequences that show what a layer does with what its linears make."""


@dataclass(frozen=True, eq=False)
class Gate:
    """An o or down whose input loses columns, or may make up for what went before it."""

    path: str
    linear: nn.Module
    columns: Tensor
    """(n,) positions along its input that stay."""
    mask: Tensor
    """(columns,) 1 at those, else 0."""

    @property
    def loses(self) -> bool:
        return len(self.columns) < len(self.mask)

    @property
    def stays(self) -> bool:
        return len(self.columns) > 0


@dataclass(frozen=True, eq=False)
class Step:
    """A layer, and which of its linears lose columns or may make up for others'."""

    number: int
    layer: nn.Module
    block: Block | None
    gone: bool
    """Whether it is gone as a whole, or goes: what comes out of it is then what came in."""
    attention: Gate | None
    ffn: Gate | None
    ends: tuple[str, str]
    """Paths of its o and down."""

    @property
    def gates(self) -> list[Gate]:
        return [gate for gate in (self.attention, self.ffn) if gate is not None]

    @property
    def leaves_nothing(self) -> bool:
        """Whether none of its linears stays to make up for anything."""
        absent = all(is_absent(self.layer, path) for path in self.ends)
        return self.gone or absent or (bool(self.gates) and not any(gate.stays for gate in self.gates))


def gates_of(
    units: Units, layer: int, stay: Mapping[str, Tensor], base: nn.Module
) -> tuple[bool, Gate | None, Gate | None, tuple[str, str]]:
    """Whether a layer is gone or goes; the gates of its attention and its FFN, of those that it has; their paths."""
    place, gone, masks = units.places[layer], units.shapes[layer].gone, dict[str, Tensor]()
    for pool in (pool for pool in units.pools if pool.layer == layer):
        gone |= pool.kind == LAYER and not bool(stay[pool.name].all())
        for end in pool.ends:  # a block's and those of its heads or channels are one
            masks.setdefault(end.linear, torch.ones(end.size))[end.entries(~stay[pool.name])] = 0
    gates = {path: _gate(path, mask, base.get_submodule(path)) for path, mask in masks.items()}
    ffn = gates.pop(f"{place.prefix}.{place.family.mlp_out}", None)
    return gone, next(iter(gates.values()), None), ffn, (place.family.o, place.family.mlp_out)


def _gate(path: str, mask: Tensor, linear: nn.Module) -> Gate:
    device = weight_of(base_linear(linear)).device
    return Gate(path, linear, mask.nonzero().flatten().to(device), mask.to(device))


def blocks_of_all(base: nn.Module, units: Units, batch: Mapping[str, Tensor]) -> list[Block | None]:
    """What each layer does with what its linears make; None where it is no sum, or of a hybrid's something beside.

    Raises:
        InputError: whole layers or blocks are units, and none of the layers is such a sum.
    """
    layers = [base.get_submodule(place.prefix) for place in units.places]
    (hidden,), (small,) = recorded(base, layers, [{"input_ids": batch["input_ids"][:2, :PROBE]}])
    blocks: list[Block | None] = []
    for layer, place, shape, call in zip(layers, units.places, units.shapes, small.calls, strict=True):
        paths = {place.family.o: shape.heads, place.family.mlp_out: shape.ffn}
        whole = all(size or is_absent(layer, path) for path, size in paths.items())
        blocks.append(block_of(layer, call, hidden, *map(layer.get_submodule, paths)) if whole else None)
    if units.of_kind(*WHOLE_KINDS) and not any(blocks):
        raise InputError(
            f"compensate='sequential': the layers of a {units.family.name} do not add to the hidden states what their "
            "linears make (a norm stands behind the sum), so none can make up for another: use compensate='none'."
        )
    return blocks


@torch.no_grad()
def check_repairable(model: nn.Module, units: Units, batch: Mapping[str, Tensor], dtype: torch.dtype | None) -> None:
    """Refuse layers that cannot make up for whole ones, before anything is trained.

    Raises:
        InputError: says why.
    """
    if units.of_kind(*WHOLE_KINDS):
        with at_rest(model, dtype):
            blocks_of_all(model.get_base_model() if isinstance(model, PeftModel) else model, units, batch)
