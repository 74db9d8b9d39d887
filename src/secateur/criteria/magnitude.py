"""Magnitude: the size of the adapted weight, without any data."""

from torch import Tensor

from ..architecture.units import Member, Pool
from ..config.pruning import ScoringOptions
from ..models.surgery import merged_weight
from .base import CRITERIA, Criterion, Evidence, sum_members, wide


def magnitude(pool: Pool, evidence: Evidence, scoring: ScoringOptions) -> Tensor:
    """Σ (W + s·B·A)² over a unit's entries (`abs`: |·|)."""

    def entries(member: Member) -> Tensor:
        weight = wide(merged_weight(evidence.modules[member.linear]))
        return (weight.square() if scoring.reduce == "squared" else weight.abs()).sum(1 - member.dim)

    return sum_members(pool, scoring, entries)


CRITERIA.register("magnitude", Criterion(magnitude, "the size of the adapted weight; needs no data", changes=False))
