"""Looking at the backward pass: identity functions in the graph that see a tensor and its gradient."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .distributed import processes

MOMENT_TOKENS = 512
"""Tokens of a micro-batch that second moments are taken from, evenly spaced: those of all 2,048 tokens of a step would
cost a tenth of the step."""

Observe = Callable[[Tensor, Tensor], None]


class _Tap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, seen: Tensor, observe: Observe) -> Tensor:
        ctx.save_for_backward(seen)
        ctx.observe = observe
        return value.detach()  # the model may go on in place, which a view made here would forbid

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (seen,) = ctx.saved_tensors
        # Trainer scales the loss by the number of processes, as it expects gradients to be averaged over them.
        ctx.observe(seen, gradient / processes() if processes() > 1 else gradient)
        return gradient, None, None


def tap(value: Tensor, seen: Tensor, observe: Observe) -> Tensor:
    """`value`; in the backward pass, `observe(seen, ∂L/∂value)` is called."""
    result: Tensor = _Tap.apply(value, seen, observe)
    return result
