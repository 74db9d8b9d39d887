"""What transformers holds a layer's experts in: tensors of all of them, in one of several forms."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...system.errors import InputError
from ..families import Family, Stacking

STOCK_NAMES = ("gate_up_proj", "down_proj")
"""What transformers calls a layer's expert tensors in nearly all classes."""
BIAS = "_bias"
"""What their biases' names end in."""
Pair = tuple[Tensor, Tensor | None]
"""A linear's weight (out, in) and bias."""


def linears_in(stacked: nn.Module, layer: nn.Module, family: Family) -> Iterator[tuple[Pair, Pair]]:
    """Gate and up in one, and down, of each expert."""
    stacking = family.stacking
    if stacking.flat:
        count = _count(layer, family)
        gate, up, down = (tensor.unflatten(0, (count, -1)) for tensor in _tensors(stacked, stacking))
        for number in range(count):
            yield (torch.cat([gate[number], up[number]]), None), (down[number].T, None)
        return
    *_, both, down = _tensors(stacked, stacking)
    biases = [getattr(stacked, name + BIAS, None) for name in stacking.tensors]
    for number in range(len(down)):
        first, second = (
            ((weights[number].T if stacking.turned else weights[number]), None if bias is None else bias.data[number])
            for weights, bias in zip((both, down), biases, strict=True)
        )
        yield first, second


def spare_in(stacked: nn.Module, stacking: Stacking) -> Tensor | None:
    """(rows of gate and up, spare experts x width) what gate and up have beyond the experts, which is not used."""
    if not stacking.hands_on:
        return None
    both, down = _tensors(stacked, stacking)
    return both[len(down) :].transpose(0, 1).flatten(1).clone()


def _tensors(stacked: nn.Module, stacking: Stacking) -> list[Tensor]:
    found = []
    for name in stacking.tensors:
        place, _, leaf = name.rpartition(".")
        found.append(getattr(stacked.get_submodule(place), leaf).data)
    return found


def _count(layer: nn.Module, family: Family) -> int:
    """Experts of a layer whose tensors do not say how many."""
    assert family.experts is not None
    return int(layer.get_submodule(family.experts).num_experts)  # type: ignore[arg-type]


def has_own_gate(tensors: Any) -> bool:
    """Whether a class says itself what is made of gate and up."""
    gate = getattr(type(tensors), "_apply_gate", None)  # transformers' own where a class has none
    return gate is not None and gate.__module__ != "transformers.integrations.moe"


def check_stacked(tensors: Any, layer: nn.Module, family: Family) -> None:
    """Refuse tensors that `Expert` would compute something else from than the layout says."""
    stacking = family.stacking
    if stacking.flat or stacking.routes:
        return _check_otherwise(tensors, layer, family)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.named_parameters(recurse=False)}
    weights = [found.pop(name, ()) for name in reversed(STOCK_NAMES)]
    biases = {name: found.pop(name + BIAS, None) for name in STOCK_NAMES}
    fits = not found and all(len(size) == 3 for size in weights) and len(set(map(bool, biases.values()))) == 1
    if fits:
        (count, width, ffn), gate_up = ((size[0], *size[:0:-1]) if stacking.turned else size for size in weights)
        fits = gate_up[1:] == (2 * ffn, width) and (gate_up[0] >= count if stacking.hands_on else gate_up[0] == count)
    own = vars(tensors)
    fits &= own.get("is_concatenated", not stacking.interleaved) is not stacking.interleaved
    fits &= own.get("is_transposed", stacking.turned) is stacking.turned and own.get("has_gate", True)
    fits &= has_own_gate(tensors) is stacking.own_gate
    if not fits:
        raise _other(tensors, family)


def _check_otherwise(tensors: nn.Module, layer: nn.Module, family: Family) -> None:
    """The same of classes that hold them in another form than most."""
    try:
        *inputs, down = _tensors(tensors, family.stacking)
        if family.stacking.flat:
            fits = all(each.shape == down.shape for each in inputs) and len(down) % _count(layer, family) == 0
        else:
            fits = inputs[0].shape == (down.shape[0], 2 * down.shape[2], down.shape[1])
    except (AttributeError, IndexError):
        fits = False
    if not fits:
        raise _other(tensors, family)


def _other(tensors: nn.Module, family: Family) -> InputError:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.named_parameters(recurse=False)}
    return InputError(
        f"the experts of this {family.name} are {type(tensors).__name__} with {shapes}, which is not as the layout "
        "says (Family.stacking): gate and up in one, (experts, 2 x channels, width), and down, (experts, width, "
        "channels). Name the layout that it has, or put a list of plain linears in their place and describe it "
        "(docs/add-a-family.md)."
    )
