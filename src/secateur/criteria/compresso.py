"""Compresso: hard-concrete masks that train with LoRA, whose expected size is driven to the target.

Each step draws its masks from log α and noise: on what gate and up make, and on what o reads. Units go by log α, and
σ(0.8·log α/β) of those that stay is folded into the weights. Source: Compresso, arXiv:2310.05015, and its released
code; what is otherwise here is in docs/papers.md.
"""

import math

from torch import Tensor

from ..architecture.units import Pool
from ..config.pruning import ScoringOptions
from .base import CRITERIA, Criterion, Evidence
from .masks import MaskRule, concrete_gain, hard_concrete, open_probability, steady


def compresso(pool: Pool, evidence: Evidence, scoring: ScoringOptions) -> Tensor:
    """log α for each of the unit's parameters: the budget ranks by score per parameter, so units go by log α."""
    return evidence.masks[pool.name] * pool.unit_params


CRITERIA.register(
    "compresso",
    Criterion(
        compresso,
        "hard-concrete masks that train with LoRA towards the target size; what stays keeps its scale (Compresso)",
        needs=frozenset({"masks"}),
        changes=False,
        across_layers="raw",
        masks=MaskRule(
            start=math.log(0.99 / 0.01),
            value=hard_concrete,
            rate=lambda steps: max(0.1, 20 / steps),
            betas=(0.9, 0.999),
            decay=steady,
            retention=open_probability,
            gain=concrete_gain,
            noisy=True,
            at_rows=True,
            bound=math.log(100),
            warm=0.5,
            undecided=False,
        ),
    ),
)
