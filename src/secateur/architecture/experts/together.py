"""FFNs that every token goes through, each with a weight of its own, which a class holds in tensors of all of them."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..families import Beside


class Together(nn.Module):
    """So many FFNs as one.

    Args:
        count: how many they are.
        linears: name -> linear, gate and up in one, and down; channels of the first FFN come first.
        activation: of the gate.
    """

    def __init__(self, count: int, linears: Mapping[str, nn.Module], activation: Any) -> None:
        super().__init__()
        self.count = count
        self.names = tuple(linears)
        for name, linear in linears.items():
            self.add_module(name, linear)
        self.act_fn = activation

    def forward(self, x: Tensor, gammas: Tensor) -> Tensor:
        """Σ over the FFNs of weight · FFN(token). Shapes: x (..., width), gammas (..., count)."""
        gate_up, down = map(self.get_submodule, self.names)  # LoRA may have been put around them
        gate, up = gate_up(x).chunk(2, dim=-1)
        said = (self.act_fn(gate) * up).unflatten(-1, (self.count, -1))
        weights = gammas.view(*x.shape[:-1], self.count, 1)
        return cast(Tensor, down((said * weights).flatten(-2)))


def joined(held: nn.Module, beside: Beside) -> tuple[int, Tensor, Tensor]:
    """How many FFNs a module holds in tensors (FFNs, out, in); gate and up of all in one, and down."""
    assert beside.stock is not None
    gate, up, down = (getattr(held, name).data for name in beside.stock)
    return len(gate), torch.cat([gate.flatten(0, 1), up.flatten(0, 1)]), down.transpose(0, 1).flatten(1)


def parted(
    name: str, tensor: Tensor, beside: Beside, names: tuple[str, str], width: int
) -> Iterator[tuple[str, Tensor]]:
    """The class's tensors, of one of the two linears' weights.

    Args:
        name: of the weight.
        names: of the linears.
        width: channels of one FFN.
    """
    assert beside.stock is not None
    place, linear, _ = name.rsplit(".", 2)
    gate, up, down = beside.stock
    if linear == names[1]:
        yield f"{place}.{down}", tensor.unflatten(1, (-1, width)).transpose(0, 1)
        return
    for part, called in zip(tensor.chunk(2), (gate, up), strict=True):
        yield f"{place}.{called}", part.unflatten(0, (-1, width))
