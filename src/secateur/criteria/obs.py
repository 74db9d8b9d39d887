"""Optimal brain surgeon: what a layer's output loses when a unit goes and the others make up for it.

Source: SparseGPT (arXiv:2301.00774) and ZipLM (arXiv:2302.04089), on whole units.
"""

import torch
from torch import Tensor

from ..architecture.units import Pool
from ..config.pruning import ScoringOptions
from ..models.surgery import merged_weight
from ..system.machine.devices import doubled
from .base import CRITERIA, Criterion, Evidence
from .cholesky import damped_cholesky

DAMPING = 0.01
"""Added to the second moment, relative to its mean diagonal."""


def obs(pool: Pool, evidence: Evidence, scoring: ScoringOptions) -> Tensor:
    """tr(W_S·([C⁻¹]_SS)⁻¹·W_Sᵀ) over a unit's columns S of o or down, with C the second moment of its input."""
    costs = []
    for gate in pool.gates:
        second = evidence.moments[gate.linear].second
        assert second is not None, "second moments were asked for"
        weight = merged_weight(evidence.modules[gate.linear])
        costs.append(removal_cost(weight, second, gate.index_on(second.device), what=f"the input of {gate.linear}"))
    return torch.stack(costs).sum(0)


def removal_cost(
    weight: Tensor, second: Tensor, index: Tensor, damping: float = DAMPING, what: str = "an input"
) -> Tensor:
    """(units,) least rise of E‖Δ(W x)‖² when a unit's columns go and the rest is refitted; in float64.

    Args:
        weight: (out, in).
        second: (in, in) E[x xᵀ].
        index: (units, columns of a unit).
    Raises:
        NumericsError: C is not finite.
    """
    diagonal = doubled(second.diagonal())
    if not diagonal.any():  # an expert that was never chosen
        return diagonal.new_zeros(len(index))
    level = diagonal[diagonal > 0].mean()  # columns that a mask has zeroed are not there
    inverse = torch.cholesky_inverse(damped_cholesky(second, damping, level, what))
    index = index.to(inverse.device)
    blocks = inverse[index.unsqueeze(2), index.unsqueeze(1)]  # (units, s, s)
    columns = doubled(weight)[:, index].movedim(1, 0)  # (units, out, s)
    solved = torch.linalg.solve(blocks, columns.transpose(1, 2))  # (units, s, out)
    return (columns.transpose(1, 2) * solved).sum((1, 2))


CRITERIA.register(
    "obs",
    Criterion(
        obs,
        "what the output of o or down loses when the units that stay make up for it",
        needs=frozenset({"second_moments"}),
        changes=False,
    ),
)
