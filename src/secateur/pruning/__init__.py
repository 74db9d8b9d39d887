"""The method: when to cut, how much, and which units; LoRAPrune (arXiv:2305.18403) and what goes beyond it."""

from .cut import Cut
from .pruner import Pruner
from .schedule import Schedule

__all__ = ["Cut", "Pruner", "Schedule"]
