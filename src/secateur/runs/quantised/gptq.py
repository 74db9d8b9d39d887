"""GPTQ: weights on a grid of whole numbers, each column's rounding error made up for by the columns after it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...criteria.cholesky import inverse_factor

DAMPING = 0.01
"""Of the mean diagonal of the second moments, as in the paper's code."""
BLOCK = 128
"""Columns between two updates of all the later ones (the paper's lazy batches)."""
SHRINKS = tuple(1 - step / 40 for step in range(13))
"""Largest entry on the grid over the largest of the weights, from 1 to 0.7: the best one is taken for each scale."""


@dataclass(frozen=True)
class Grid:
    """Whole numbers of some bits, symmetric about zero."""

    bits: int
    group: int | None
    """Neighbouring inputs that share a scale; None: all of a row."""

    @property
    def lowest(self) -> int:
        return -(2 ** (self.bits - 1))

    @property
    def highest(self) -> int:
        return 2 ** (self.bits - 1) - 1


def scales_of(weight: Tensor, grid: Grid, dtype: torch.dtype) -> Tensor:
    """(rows, 1) steps of the grid for a (rows, columns) weight: for each row the one of least squared error.

    Args:
        dtype: of the scales as the file has them; they are rounded to it before they are used.
    """
    largest = weight.abs().amax(1, keepdim=True).clamp(min=1e-8) / (grid.highest + 0.5)
    best = torch.full_like(largest, torch.inf)
    found = largest.to(dtype).to(weight.dtype)
    for shrink in SHRINKS:
        scale = (largest * shrink).to(dtype).to(weight.dtype)
        error = (on_grid(weight, scale, grid) * scale - weight).square().sum(1, keepdim=True)
        found = torch.where(error < best, scale, found)
        best = torch.minimum(error, best)
    return found


def on_grid(weight: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """The nearest whole numbers."""
    return (weight / scale).round().clamp(grid.lowest, grid.highest)


def quantise(weight: Tensor, second: Tensor | None, grid: Grid, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Whole numbers (rows, columns) int8 and their steps (rows, groups) for a (rows, columns) weight.

    GPTQ (Frantar et al. 2022, arXiv:2210.17323, algorithm 1): for columns j in order, q_j is rounded, and the error
    (w_j - q_j) / U_jj times row j of U is taken from the later columns; U is the upper Cholesky factor of H⁻¹.

    Args:
        second: (columns, columns) second moments X·Xᵀ of the inputs; None: each entry to the nearest number.
        dtype: of the steps.
    """
    work = weight.detach().float().clone()
    rows, columns = work.shape
    width = grid.group or columns
    codes = torch.zeros(rows, columns, dtype=torch.int8)
    scales = torch.zeros(rows, columns // width)
    upper = None
    if second is not None:
        factor, dead = inverse_factor(second, DAMPING, "a linear")
        upper = factor.float()
        work[:, dead] = 0  # inputs that are always zero need no weight
    if grid.group is None:
        scales[:] = scales_of(work, grid, dtype)
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        block, errors = work[:, start:stop].clone(), torch.zeros(rows, stop - start)
        for at in range(start, stop):
            if grid.group is not None and at % width == 0:
                group = block[:, at - start : at - start + width]  # a block is whole groups
                scales[:, at // width] = scales_of(group, grid, dtype)[:, 0]
            scale = scales[:, at // width]
            column = block[:, at - start]
            chosen = on_grid(column, scale, grid)
            codes[:, at] = chosen.to(torch.int8)
            if upper is not None:
                error = (column - chosen * scale) / upper[at, at]
                block[:, at - start :] -= error[:, None] * upper[at, at:stop]
                errors[:, at - start] = error
        if upper is not None:
            work[:, stop:] -= errors @ upper[start:stop, stop:]
    return codes, scales.to(dtype)
