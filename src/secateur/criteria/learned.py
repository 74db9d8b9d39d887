"""Learned: masks that train beside LoRA, driven to the target by an augmented Lagrangian.

m = ReLU(z) scales the input of `o` and `down`; a score of retention s, ever sharper, says how much of it counts. Units
go by their z, and what m is of those that stay is folded into the weights. Source: DDP, arXiv:2603.08065 (ICML 2026),
and its released code; sizes count in parameters here (docs/papers.md).
"""

from torch import Tensor

from ..architecture.units import Pool
from ..config.pruning import ScoringOptions
from .base import CRITERIA, Criterion, Evidence
from .masks import MaskRule, kept_gain, relu_mask, retention_score, warm_cosine


def learned(pool: Pool, evidence: Evidence, scoring: ScoringOptions) -> Tensor:
    """z for each of the unit's parameters: the budget ranks by score per parameter, so units go by z."""
    return evidence.masks[pool.name] * pool.unit_params


CRITERIA.register(
    "learned",
    Criterion(
        learned,
        "masks ReLU(z) that train with LoRA towards the target size (DDP); what stays keeps its scale",
        needs=frozenset({"masks"}),
        changes=False,
        across_layers="raw",
        masks=MaskRule(
            start=1.0,
            value=relu_mask,
            rate=lambda steps: max(0.02, 6 / steps),
            betas=(0.9, 0.999),
            decay=warm_cosine,
            retention=retention_score,
            gain=kept_gain,
        ),
    ),
)
