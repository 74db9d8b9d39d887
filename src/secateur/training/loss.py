"""Cross entropy for large vocabularies that never holds float32 logits for more than a few positions."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

ROWS = 16
"""Positions widened to float32 at once (16 x 49,152 logits: 3.1 MB, which stays in cache)."""
GPU_ROWS = 256
"""The same on a GPU, where each block costs a dozen launches (50 MB)."""
IGNORED = -100


class _ChunkedLoss(torch.autograd.Function):
    """Summed cross entropy, mixed with the divergence from a teacher; the gradient is made on the way forward, in the
    logits' own precision. One backward() per forward."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, teacher: Tensor | None, alpha: float, temperature: float
    ) -> Tensor:
        gradient = torch.empty_like(logits)
        total = torch.zeros((), dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32)
        total = total.to(logits.device)
        step = ROWS if logits.device.type == "cpu" else GPU_ROWS
        for rows in range(0, len(logits), step):
            part = slice(rows, rows + step)
            wide, loss = _cross_entropy(logits[part].to(total.dtype, copy=True), labels[part])
            if teacher is not None:
                counted = (labels[part] != IGNORED).unsqueeze(1)
                pull, divergence = _divergence(logits[part].to(total.dtype), teacher[part], counted, temperature)
                wide = wide.mul_(1 - alpha).add_(pull, alpha=alpha)
                loss = (1 - alpha) * loss + alpha * divergence
            total += loss
            gradient[part] = wide
        ctx.gradient = gradient
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None, None]:
        if ctx.gradient is None:
            raise RuntimeError("this loss's gradient is used up: run the forward pass again before another backward().")
        # In place: another tensor of the logits' size would cost a tenth of a CPU's training step.
        gradient, ctx.gradient = ctx.gradient.mul_(grad_output), None
        return gradient, None, None, None, None


def _cross_entropy(wide: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient (rows, vocabulary), made in place, and sum of the cross entropy of a few rows."""
    counted = (labels != IGNORED).unsqueeze(1)
    chosen = labels.unsqueeze(1).where(counted, 0)
    wide -= wide.amax(dim=1, keepdim=True)
    at_target = wide.gather(1, chosen)
    sums = wide.exp_().sum(dim=1, keepdim=True)
    loss = ((sums.log() - at_target) * counted).sum()
    wide *= counted / sums
    wide.scatter_add_(1, chosen, -counted.to(wide.dtype))
    return wide, loss


def _divergence(wide: Tensor, teacher: Tensor, counted: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Gradient and sum of T²·KL(teacher ‖ student), both softened by T, over the rows that count."""
    student = (wide / temperature).log_softmax(1)
    wanted = (teacher.to(wide.dtype) / temperature).log_softmax(1)
    likely = wanted.exp()
    divergence = ((likely * (wanted - student)).sum(1, keepdim=True) * counted).sum() * temperature**2
    return (student.exp() - likely) * (counted * temperature), divergence


def positions_with_labels(labels: Tensor) -> Tensor | None:
    """(n,) ascending positions whose logits count in any row, and the last one; None where those are all.

    With `logits_to_keep=positions` a model makes those logits only, and `causal_lm_loss(outputs, labels_at(...))` is
    the same loss: the last position's is left out by it, as ever.

    Args:
        labels: (batch, tokens), -100 where there is no label.
    """
    tokens = labels.shape[1]
    counted = (labels[:, 1:] != IGNORED).any(0).nonzero().flatten()
    return functional.pad(counted, (0, 1), value=tokens - 1) if len(counted) < tokens - 1 else None


def labels_at(labels: Tensor, positions: Tensor) -> Tensor:
    """(batch, n) labels that go with the logits of `positions`, the last of which has none."""
    return functional.pad(labels[:, positions[:-1] + 1], (1, 0), value=IGNORED)


def causal_lm_loss(
    outputs: Any,
    labels: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    *,
    teacher: Tensor | None = None,
    alpha: float = 0.0,
    temperature: float = 1.0,
) -> Tensor:
    """Next-token loss of a causal LM; Trainer's `compute_loss_func`. Equals transformers' own loss.

    With a teacher: (1 − α)·cross entropy + α·T²·KL(teacher ‖ student), both softened by T (Hinton et al. 2015,
    arXiv:1503.02531), on the positions that have a label.

    Args:
        outputs: has `logits` (batch, tokens, vocabulary), soft-caps and scales applied by the model.
        labels: (batch, tokens), -100 where there is no label.
        num_items_in_batch: labels over all micro-batches of the step, to divide by; default: those given.
        teacher: (batch, tokens, vocabulary) logits of the teacher.
        alpha, temperature: α and T.
    """
    logits = outputs.logits.flatten(0, 1)
    # Labels move instead of logits: slicing the last position off would copy them all.
    targets = functional.pad(labels, (0, 1), value=IGNORED)[:, 1:].flatten().to(logits.device)
    wanted = None if teacher is None else teacher.flatten(0, 1)
    total = _ChunkedLoss.apply(logits, targets, wanted, alpha, temperature)
    return total / (num_items_in_batch if num_items_in_batch is not None else (targets != IGNORED).sum())
