"""Wanda and FLAP: weights times what flows through them, at the inputs of `o` and `down`; no gradients.

Sources: Wanda (arXiv:2306.11695), in the structured form that FLAP's authors call Wanda-sp; FLAP (arXiv:2312.11983).
"""

from torch import Tensor

from ..architecture.units import Member, Pool
from ..config.pruning import ScoringOptions
from ..models.surgery import merged_weight
from .base import CRITERIA, Criterion, Evidence, sum_gates, wide


def wanda(pool: Pool, evidence: Evidence, scoring: ScoringOptions) -> Tensor:
    """Σ |W_ij|·‖x_j‖₂ over a unit's columns of o or down, with W the adapted weight and ‖x_j‖₂ per token."""

    def columns(gate: Member) -> Tensor:
        size = wide(merged_weight(evidence.modules[gate.linear])).abs().sum(0)
        return size * evidence.moments[gate.linear].square.sqrt()

    return sum_gates(pool, columns)


def flap(pool: Pool, evidence: Evidence, scoring: ScoringOptions) -> Tensor:
    """Σ Var(x_j)·‖W_:j‖² over a unit's columns of o or down."""

    def columns(gate: Member) -> Tensor:
        size = wide(merged_weight(evidence.modules[gate.linear])).square().sum(0)
        return size * evidence.moments[gate.linear].variance

    return sum_gates(pool, columns)


CRITERIA.register(
    "wanda",
    Criterion(wanda, "Σ |W|·‖x‖ at the input of o and down", needs=frozenset({"input_moments"}), changes=False),
)
CRITERIA.register(
    "flap",
    Criterion(
        flap,
        "Σ Var(x)·‖W‖² at the input of o and down; meant with --compensate bias",
        needs=frozenset({"input_moments"}),
        changes=False,
    ),
)
