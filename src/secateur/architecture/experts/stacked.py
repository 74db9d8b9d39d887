"""A mixture's tensors as transformers has them, from experts that are apart."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ..families import Beside, Family, Stacking
from .apart import expert_names
from .stock_tensors import BIAS
from .together import parted


def stack_experts(tensors: Iterable[tuple[str, Tensor]], family: Family) -> Iterator[tuple[str, Tensor]]:
    """A state's tensors with each layer's experts in one tensor again, as the stock class has them."""
    stacking = family.stacking
    marker = f".{family.experts}."
    names = expert_names(family)
    waiting: dict[str, list[Tensor]] = {}
    spare: dict[str, Tensor] = {}
    later: list[tuple[str, Tensor, Beside]] = []
    width = 0
    for name, tensor in tensors:
        prefix, found, rest = name.partition(marker)
        if not found:
            beside = _beside(name, family, names)
            if beside is not None and beside.together:  # how wide each is, the routed ones say
                later.append((name, tensor, beside))
            else:
                yield from _with_halves(name, tensor, beside, names)
            continue
        place = f"{prefix}.{stacking.at or family.experts}."
        if rest == "spare":
            spare[place + stacking.tensors[0]] = tensor
            continue
        linear, _, leaf = rest.partition(".")[2].rpartition(".")
        width = tensor.shape[1] if linear == names[1] and leaf == "weight" else width
        for stock, piece in _pieces(linear == names[0], leaf, tensor, stacking):
            waiting.setdefault(place + stock, []).append(piece)
    for name, experts in waiting.items():
        whole = torch.cat(experts) if stacking.flat else torch.stack(experts)
        if name in spare:
            beyond = spare[name].unflatten(1, (-1, whole.shape[2])).transpose(0, 1)
            whole = torch.cat([whole, beyond])
        yield name, whole
    for name, tensor, beside in later:
        yield from parted(name, tensor, beside, names, width)


def _pieces(both: bool, leaf: str, tensor: Tensor, stacking: Stacking) -> Iterator[tuple[str, Tensor]]:
    """What one expert's weight or bias is of tensors of all: their names and its part.

    Args:
        both: it is of gate and up in one, and not of down.
    """
    if stacking.flat:
        *inputs, output = stacking.tensors
        yield from zip(inputs, tensor.chunk(len(inputs)), strict=True) if both else [(output, tensor.T)]
        return
    stock = stacking.tensors[0 if both else 1]
    turned = tensor.T if stacking.turned and leaf == "weight" else tensor
    yield f"{stock}{BIAS if leaf == 'bias' else ''}", turned


def _with_halves(
    name: str, tensor: Tensor, beside: Beside | None, names: tuple[str, str]
) -> Iterator[tuple[str, Tensor]]:
    """Gate and up of an FFN beside the experts apart again; another tensor as it is."""
    if beside is None or beside.stock is None:
        yield name, tensor
        return
    place, linear, leaf = name.rsplit(".", 2)
    gate, up, down = beside.stock
    parts = tensor.chunk(2) if linear == names[0] else (tensor,)
    for part, called in zip(parts, (gate, up) if linear == names[0] else (down,), strict=True):
        yield f"{place}.{called}.{leaf}", part


def _beside(name: str, family: Family, names: tuple[str, str]) -> Beside | None:
    """The FFN beside the experts that a tensor is of, in some layer."""
    layer, _, rest = name.rpartition(".")[0].removeprefix(f"{family.layers}.").partition(".")
    if not layer.isdigit():
        return None
    return next((each for each in family.beside if rest in [f"{each.at}.{linear}" for linear in names]), None)
