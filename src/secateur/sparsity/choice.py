"""Which weights of one matrix stay, and what becomes of them: magnitude, Wanda, SparseGPT."""

import torch
from torch import Tensor

from ..config.sparsify import Pattern
from ..criteria.cholesky import inverse_factor

DAMPING = 0.01
"""Of the Hessian's mean diagonal, as in SparseGPT's public code."""
BLOCK = 128
"""Columns between two updates of all the later ones, and of one threshold."""


def lowest(scores: Tensor, count: int) -> Tensor:
    """Bool, of the shape of `scores`: its `count` lowest along the last dimension; of equal ones the first."""
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    last = scores.kthvalue(count, dim=-1, keepdim=True).values
    below, ties = scores < last, scores == last
    return below | (ties & (ties.cumsum(-1) <= count - below.sum(-1, keepdim=True)))


def stays(scores: Tensor, pattern: Pattern, *, by_row: bool) -> Tensor:
    """Bool (rows, columns): the highest scores, as many of each group (or row, or matrix) as the pattern leaves.

    Args:
        by_row: a share is that of each row; otherwise of the matrix.
    """
    rows, columns = scores.shape
    if pattern.group is not None and pattern.stay is not None:
        groups = scores.reshape(rows, columns // pattern.group, pattern.group)
        return ~lowest(groups, pattern.group - pattern.stay).view(rows, columns)
    if by_row:
        return ~lowest(scores, int(columns * pattern.share))
    return ~lowest(scores.flatten(), int(scores.numel() * pattern.share)).view(rows, columns)


def by_magnitude(weight: Tensor, pattern: Pattern) -> Tensor:
    """Bool (rows, columns), which weights stay: the largest."""
    return stays(weight.abs(), pattern, by_row=False)


def by_wanda(weight: Tensor, squares: Tensor, pattern: Pattern) -> Tensor:
    """Bool (rows, columns), which weights stay: those of the largest |W_ij|·‖X_j‖₂ (Wanda, arXiv:2306.11695, Eq. 1).

    Args:
        squares: (columns,) sum of each input's squares.
    """
    return stays(weight.abs() * squares.sqrt().to(weight), pattern, by_row=True)


def by_sparsegpt(weight: Tensor, hessian: Tensor, pattern: Pattern, what: str) -> tuple[Tensor, Tensor]:
    """SparseGPT (arXiv:2301.00774, Alg. 1): (weights after the update, bool which stay), both (rows, columns).

    U is the upper Cholesky factor of H⁻¹. Column after column, a weight w that goes leaves the error w / U_jj, and this
    times row j of U is taken from the columns after it: with what lies before them fixed, they are then at their least
    squares. A group's weights are chosen when its first column is reached, from weights that are updated by then, by
    the lowest w² / U_jj²; a share is chosen for each block of columns, all rows together.

    Args:
        weight: float32 or float64.
        hessian: (columns, columns) 2/n · X·Xᵀ of the inputs.
        what: names the linear in an error.
    Raises:
        NumericsError: the Hessian is not finite, or not positive definite.
    """
    work = weight.clone()
    upper, dead = inverse_factor(hessian, DAMPING, what)
    upper = upper.to(work)
    work[:, dead] = 0  # inputs that are always zero need no weight
    diagonal = upper.diagonal().square()
    keep = torch.ones_like(work, dtype=torch.bool)
    group = pattern.group
    width = BLOCK if group is None else max(1, BLOCK // group) * group
    columns = work.shape[1]
    for start in range(0, columns, width):
        stop = min(start + width, columns)
        block, errors = work[:, start:stop], torch.zeros_like(work[:, start:stop])
        if group is None:
            keep[:, start:stop] = stays(block.square() / diagonal[start:stop], pattern, by_row=False)
        for at in range(start, stop):
            here = at - start
            if group is not None and at % group == 0:
                scores = block[:, here : here + group].square() / diagonal[at : at + group]
                keep[:, at : at + group] = stays(scores, pattern, by_row=True)
            error = torch.where(keep[:, at], 0, block[:, here]) / upper[at, at]
            block[:, here:] -= error[:, None] * upper[at, at:stop]
            errors[:, here] = error
        block.masked_fill_(~keep[:, start:stop], 0)
        work[:, stop:] -= errors @ upper[start:stop, stop:]
    return work, keep
