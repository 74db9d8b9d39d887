"""A mixture's tensors as transformers has them, from experts that are apart."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ..families import Beside, Family
from .apart import BIAS, STOCK_NAMES, expert_names


def stack_experts(tensors: Iterable[tuple[str, Tensor]], family: Family) -> Iterator[tuple[str, Tensor]]:
    """A state's tensors with each layer's experts in one tensor again, as the stock class has them."""
    marker = f".{family.experts}."
    names = expert_names(family)
    stock = dict(zip(names, STOCK_NAMES, strict=True))
    waiting: dict[str, list[Tensor]] = {}
    for name, tensor in tensors:
        prefix, found, rest = name.partition(marker)
        if not found:
            yield from _with_halves(name, tensor, family, names)
            continue
        linear, _, leaf = rest.partition(".")[2].rpartition(".")
        turned = tensor.T if family.stacking.turned and leaf == "weight" else tensor
        waiting.setdefault(f"{prefix}{marker}{stock[linear]}{BIAS if leaf == 'bias' else ''}", []).append(turned)
    for name, experts in waiting.items():
        yield name, torch.stack(experts)


def _with_halves(name: str, tensor: Tensor, family: Family, names: tuple[str, str]) -> Iterator[tuple[str, Tensor]]:
    """Gate and up of an FFN beside the experts apart again; another tensor as it is."""
    path, _, leaf = name.rpartition(".")
    beside = next((beside for beside in family.beside if _is_of(path, beside, family, names)), None)
    if beside is None or beside.stock is None:
        yield name, tensor
        return
    place, _, linear = path.rpartition(".")
    gate, up, down = beside.stock
    parts = tensor.chunk(2) if linear == names[0] else (tensor,)
    for part, called in zip(parts, (gate, up) if linear == names[0] else (down,), strict=True):
        yield f"{place}.{called}.{leaf}", part


def _is_of(path: str, beside: Beside, family: Family, names: tuple[str, str]) -> bool:
    """Whether a linear's path is that of an FFN beside, in some layer."""
    layer, _, rest = path.removeprefix(f"{family.layers}.").partition(".")
    return layer.isdigit() and rest in [f"{beside.at}.{name}" for name in names]
