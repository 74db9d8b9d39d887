"""Looking at the backward pass: identity functions in the graph that see a tensor and its gradient."""

from collections.abc import Callable
from math import gcd
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..parallel.distributed import processes
from ..system.launcher import rank

MOMENT_TOKENS = 512
"""At most so many tokens of a micro-batch, of all processes together, give second moments: those of all 2,048 tokens of
a step would cost a tenth of the step."""
MOMENT_SHARE = 4
"""At most one token in so many, down to `FEW_TOKENS`, of which small inputs keep as many as there are."""
FEW_TOKENS = 64

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


def some_tokens(tokens: int, seq_len: int, step: int, *, alone: bool = False) -> tuple[slice, float]:
    """Which of a micro-batch's tokens moments are taken from: evenly spaced, others at every step.

    The distance has no factor in common with `seq_len`: else it would be the same positions of every sequence, and the
    first one, the attention sink, is like no other. Several processes take together what one would take of their
    micro-batches in a row (Trainer deals batches out that way), so the mean over them of (sum / count) is the same;
    not where tokens are padding, where processes hold unequal numbers of tokens, or where the one process splits its
    batch into more micro-batches, whose distances are their own.

    Args:
        tokens: in this process's micro-batch.
        step: optimiser steps before this one.
        alone: other processes' numbers of tokens are not known (an expert's).
    Returns:
        A slice of the flattened tokens, and the number of tokens that their sum is to be divided by.
    """
    of = 1 if alone else processes()
    number = rank() if of > 1 else 0
    everyone = tokens * of
    stride = max(min(MOMENT_SHARE, -(-everyone // FEW_TOKENS)), -(-everyone // MOMENT_TOKENS))
    while gcd(stride, seq_len) > 1:
        stride += 1
    first = step % stride
    if first >= everyone:
        first = 0
    return slice((first - number * tokens) % stride, None, stride), len(range(first, everyone, stride)) / of
