"""What a layer does with what its `o` and `down` make: added to the hidden states, or something else first."""

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .layerwise import Call, replaced

EXACT = 0.02
"""How far a layer's output may lie from the sum, over its norm: rounding in bfloat16. A norm is off by about 1."""


@dataclass(frozen=True)
class Factors:
    """A layer's output is its input + attention · (what `o` makes) + ffn · (what `down` makes)."""

    attention: float
    ffn: float


def factors_of(layer: nn.Module, call: Call, hidden: Tensor, o: nn.Module, down: nn.Module) -> Factors | None:
    """Those of a layer; None where it is no such sum (norms behind `o` or `down`: Gemma 2 and 3, OLMo 2).

    It is tried out: with other values in the place of what the two linears make, what does the layer's output become?

    Args:
        call: how the model calls the layer.
        hidden: (sequences, tokens, width) of the same shape as in that call; few tokens are enough.
    """
    generator = torch.Generator().manual_seed(0)

    def some() -> Tensor:  # of unlike sizes, which a norm would make alike
        sizes = torch.logspace(-0.5, 0.5, hidden.shape[0] * hidden.shape[1]).view(*hidden.shape[:2], 1)
        return (torch.randn(hidden.shape, generator=generator) * sizes).bfloat16().to(hidden)

    def output(given: Tensor, of_o: Tensor, of_down: Tensor) -> Tensor:
        with ExitStack() as stack:
            stack.enter_context(replaced(o, of_o))
            stack.enter_context(replaced(down, of_down))
            return call(layer, given)

    nothing, x, u, v = torch.zeros_like(hidden), some(), some(), some()
    attention, ffn = _ratio(output(nothing, u, nothing), u), _ratio(output(nothing, nothing, v), v)
    said = output(x, u, v).double()
    expected = x.double() + attention * u.double() + ffn * v.double()
    off = (said - expected).norm() / expected.norm()
    exact = bool(attention) and bool(ffn) and float(off) < EXACT
    return Factors(attention, ffn) if exact else None


def _ratio(made: Tensor, of: Tensor) -> float:
    """The least-squares factor between two."""
    return float((made.double() * of.double()).sum() / of.double().square().sum())
