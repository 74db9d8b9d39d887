"""Taylor: the first-order effect of removing a unit, from the gradients of the weights themselves.

Source: LLM-Pruner (arXiv:2305.11627); LoRAPrune's Eq. 3, its "vanilla" criterion.
"""

from torch import Tensor

from ..architecture.units import Member, Pool
from ..config.pruning import ScoringOptions
from ..models.surgery import merged_weight
from .base import CRITERIA, Criterion, Evidence, sum_members, wide


def taylor(pool: Pool, evidence: Evidence, scoring: ScoringOptions) -> Tensor:
    """Mean over sequences of Σ (∂L/∂W ⊙ W)² (`abs`: |·|), with W the adapted weight."""
    return sum_members(pool, scoring, lambda member: evidence.terms[member.linear, member.dim])


def accumulated_taylor(pool: Pool, evidence: Evidence, scoring: ScoringOptions) -> Tensor:
    """The same sum with ∂L/∂W of the whole batch."""

    def entries(member: Member) -> Tensor:
        weight = wide(merged_weight(evidence.modules[member.linear]))
        term = evidence.weight_grads[member.linear].to(weight) * weight
        return (term.square() if scoring.reduce == "squared" else term.abs()).sum(1 - member.dim)

    return sum_members(pool, scoring, entries)


CRITERIA.register(
    "taylor",
    Criterion(
        taylor,
        "mean over sequences of Σ (∂L/∂W ⊙ W)²",
        needs=frozenset({"weight_grad"}),
        across_layers="raw",
    ),
)
CRITERIA.register(
    "taylor-accumulated",
    Criterion(
        accumulated_taylor,
        "Σ (∂L/∂W ⊙ W)² of the whole batch, its gradients kept in memory as LLM-Pruner does",
        needs=frozenset({"batch_weight_grad"}),
        across_layers="raw",
    ),
)
