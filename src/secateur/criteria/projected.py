"""Projected: masks of zeros and ones that the budget allows at each step, learned straight through.

The forward pass sees what a cut to the target that is due now would leave; scores of what is out go on learning, and it
can come back until it is cut. Source: GRASPrune, arXiv:2604.19398 (ACL 2026), and its released code.
"""

from torch import Tensor

from ..architecture.units import Pool
from ..config.pruning import ScoringOptions
from .base import CRITERIA, Criterion, Evidence
from .masks import MaskRule, probability, projected_mask, standard_logarithm, steady


def projected(pool: Pool, evidence: Evidence, scoring: ScoringOptions) -> Tensor:
    """σ(z/τ) for each of the unit's parameters: units go by their probability, whatever they cost."""
    return probability(evidence.masks[pool.name]) * pool.unit_params


CRITERIA.register(
    "projected",
    Criterion(
        projected,
        "scores that learn through hard masks, which the budget allows at each step (GRASPrune)",
        needs=frozenset({"masks", "gate_grad"}),
        changes=False,
        across_layers="raw",
        masks=MaskRule(
            start=0.0,
            value=projected_mask,
            rate=lambda steps: max(0.01, 3 / steps),
            betas=(0.9, 0.99),
            decay=steady,
            prior=standard_logarithm,
        ),
    ),
)
