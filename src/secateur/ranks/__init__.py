"""Pruning an adapter's rank while it trains (PrunedLoRA, arXiv:2510.00192)."""

from .criteria import RANK_CRITERIA, RankCriterion, RankEvidence
from .cut import RankCut
from .pruner import RankPruner

__all__ = ["RANK_CRITERIA", "RankCriterion", "RankCut", "RankEvidence", "RankPruner"]
