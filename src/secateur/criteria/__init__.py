"""What makes a unit worth keeping: one file per criterion, all behind one interface.

A criterion turns what it needs into one score per unit of a pool; the pruner averages scores over steps
and never asks how they were made. Higher means keep.
"""

from . import lora, magnitude, random
from .base import CRITERIA, Criterion, Scoring

__all__ = ["CRITERIA", "Criterion", "Scoring", "lora", "magnitude", "random"]
