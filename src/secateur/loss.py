"""Cross entropy for large vocabularies that never holds float32 logits for more than a few positions."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

ROWS = 16
"""Positions widened to float32 at once (16 x 49,152 logits: 3.1 MB, which stays in cache)."""
IGNORED = -100


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Summed cross entropy; the gradient is made on the way forward, in the logits' own precision."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        gradient = torch.empty_like(logits)
        total = torch.zeros((), dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32)
        total = total.to(logits.device)
        pairs = zip(logits.split(ROWS), labels.split(ROWS), gradient.split(ROWS), strict=True)
        for part, target, out in pairs:
            wide = part.to(total.dtype, copy=True)
            counted = (target != IGNORED).unsqueeze(1)
            chosen = target.unsqueeze(1).where(counted, 0)
            wide -= wide.amax(dim=1, keepdim=True)
            at_target = wide.gather(1, chosen)
            sums = wide.exp_().sum(dim=1, keepdim=True)
            total += ((sums.log() - at_target) * counted).sum()
            wide *= counted / sums
            wide.scatter_add_(1, chosen, -counted.to(wide.dtype))
            out.copy_(wide)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output, None


def causal_lm_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Next-token loss of a causal LM; Trainer's `compute_loss_func`. Equals transformers' own loss.

    Args:
        outputs: has `logits` (batch, tokens, vocabulary), soft-caps and scales applied by the model.
        labels: (batch, tokens), -100 where there is no label.
        num_items_in_batch: labels over all micro-batches of the step, to divide by; default: those given.
    """
    logits = outputs.logits.flatten(0, 1)
    # Labels move instead of logits: slicing the last position off would copy them all.
    targets = functional.pad(labels, (0, 1), value=IGNORED)[:, 1:].flatten().to(logits.device)
    total = _ChunkedCrossEntropy.apply(logits, targets)
    return total / (num_items_in_batch if num_items_in_batch is not None else (targets != IGNORED).sum())
