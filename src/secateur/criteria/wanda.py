"""Wanda and FLAP: weights times what flows through them, at the inputs of `o` and `down`; no gradients.

Sources: Wanda (arXiv:2306.11695), in the structured form that FLAP's authors call Wanda-sp; FLAP (arXiv:2312.11983).
"""

from torch import Tensor

from ..surgery import merged_weight
from ..units import Pool
from .base import CRITERIA, Criterion, Evidence, Scoring, gate_columns, wide


def wanda(pool: Pool, evidence: Evidence, scoring: Scoring) -> Tensor:
    """Σ |W_ij|·‖x_j‖₂ over a unit's columns of o or down, with W the adapted weight and ‖x_j‖₂ per token."""
    path = pool.gate.linear
    size = wide(merged_weight(evidence.modules[path])).abs().sum(0)
    return gate_columns(pool, size * evidence.moments[path].square.sqrt())


def flap(pool: Pool, evidence: Evidence, scoring: Scoring) -> Tensor:
    """Σ Var(x_j)·‖W_:j‖² over a unit's columns of o or down."""
    path = pool.gate.linear
    size = wide(merged_weight(evidence.modules[path])).square().sum(0)
    return gate_columns(pool, size * evidence.moments[path].variance)


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
