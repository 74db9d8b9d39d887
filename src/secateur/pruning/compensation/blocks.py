"""What a layer does with what its `o` and `down` make: it adds them, scaled or behind a norm, to the hidden states."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...system.machine.devices import doubled
from .layerwise import Call, replaced

EXACT = 0.02
"""How far a layer's output may lie from what is said of it here, over its norm: rounding in bfloat16."""


@dataclass(frozen=True, eq=False)
class Branch:
    """A layer adds gain · y of what its linear makes, or with `normed` gain · y / rms(y): Gemma 2 and 3, OLMo 2."""

    gain: Tensor
    """() or (width,)"""
    normed: bool

    def scale(self, y: Tensor) -> Tensor:
        """(..., 1) what y is divided by."""
        return rms(y) if self.normed else y.new_ones(())

    def adds(self, y: Tensor) -> Tensor:
        """What comes to the hidden states."""
        return self.gain.to(y) * y / self.scale(y)


def rms(y: Tensor) -> Tensor:
    """(..., 1) root mean square of each token's entries."""
    return y.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)


@dataclass(frozen=True, eq=False)
class Block:
    """A layer's output is its input + what both branches add."""

    attention: Branch
    ffn: Branch


def block_of(layer: nn.Module, call: Call, hidden: Tensor, o: nn.Module, down: nn.Module) -> Block | None:
    """What a layer is; None where it is no such sum (norms behind the sum).

    It is tried out: with other values in the place of what the two linears make, what does the layer's output become?

    Args:
        call: how the model calls the layer.
        hidden: (sequences, tokens, width) of the same shape as in that call; few tokens are enough.
    """
    generator = torch.Generator().manual_seed(0)

    def some() -> Tensor:  # of unlike sizes, which a norm makes alike
        sizes = torch.logspace(-0.5, 0.5, hidden.shape[0] * hidden.shape[1]).view(*hidden.shape[:2], 1)
        return (torch.randn(hidden.shape, generator=generator) * sizes).bfloat16().to(hidden)

    def output(given: Tensor, of_o: Tensor, of_down: Tensor) -> Tensor:
        with ExitStack() as stack:
            stack.enter_context(replaced(o, of_o))
            stack.enter_context(replaced(down, of_down))
            return doubled(call(layer, given))

    nothing, x, u, v = torch.zeros_like(hidden), some(), some(), some()
    attention = _branch(lambda y: output(nothing, y, nothing), u)
    ffn = _branch(lambda y: output(nothing, nothing, y), v)
    if attention is None or ffn is None:
        return None
    expected = doubled(x) + attention.adds(doubled(u)) + ffn.adds(doubled(v))
    return Block(attention, ffn) if _close(output(x, u, v), expected) else None


def _branch(layer: Callable[[Tensor], Tensor], y: Tensor) -> Branch | None:
    """What becomes of y on its way to the output."""
    made, wide = layer(y), doubled(y)
    factor = (made * wide).sum() / wide.square().sum()
    unit = Branch(torch.ones((), dtype=torch.float64), normed=True).adds(wide)
    gain = (made * unit).sum((0, 1)) / unit.square().sum((0, 1))
    for found in (Branch(factor, normed=False), Branch(gain, normed=True)):
        if bool(found.gain.any()) and _close(made, found.adds(wide)):
            return found
    return None


def _close(made: Tensor, expected: Tensor) -> bool:
    return bool((made - expected).norm() < EXACT * expected.norm())
