"""What makes a unit worth keeping: one file per criterion, all behind one interface.

A criterion turns what it needs into one score per unit of a pool; the pruner averages scores over steps
and never asks how they were made. Higher means keep.
"""

from . import compresso, depth, gate, learned, lora, magnitude, obs, projected, random, taylor, wanda
from .base import CRITERIA, Criterion, Evidence, InputMoments, Look, Scoring, sum_gates, sum_members, switch
from .masks import MaskRule

__all__ = [
    "CRITERIA",
    "Criterion",
    "Evidence",
    "InputMoments",
    "Look",
    "MaskRule",
    "Scoring",
    "compresso",
    "depth",
    "gate",
    "learned",
    "lora",
    "magnitude",
    "obs",
    "projected",
    "random",
    "sum_gates",
    "sum_members",
    "switch",
    "taylor",
    "wanda",
]  # fmt: skip
