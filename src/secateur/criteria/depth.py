"""What whole layers are worth: by how far they turn the hidden states, and by the loss without them.

Sources: ShortGPT (arXiv:2403.03853, its Eq. 1); Shortened LLaMA (arXiv:2402.02834), whose perplexity without a layer
has the same order as this loss.
"""

from torch import Tensor

from ..architecture.units import Pool
from ..config.pruning import ScoringOptions
from .base import CRITERIA, Criterion, Evidence


def influence(pool: Pool, evidence: Evidence, scoring: ScoringOptions) -> Tensor:
    """Block influence: the mean over tokens of 1 - cos(x, y), x the hidden states before the layer, y after it."""
    return evidence.influence[pool.name]


def loss(pool: Pool, evidence: Evidence, scoring: ScoringOptions) -> Tensor:
    """By how much the loss is higher without the layer, in nats a token."""
    return evidence.loss_without[pool.name]


CRITERIA.register(
    "influence",
    Criterion(
        influence,
        "layers: the mean of 1 - cos(hidden states before, after), ShortGPT's block influence",
        needs=frozenset({"influence"}),
        across_layers="raw",
    ),
)
CRITERIA.register(
    "loss",
    Criterion(
        loss,
        "layers: by how much the loss is higher without one, as Shortened LLaMA's perplexity",
        needs=frozenset({"loss_without"}),
        changes=False,
        across_layers="raw",
    ),
)
