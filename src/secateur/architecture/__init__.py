"""What a model family is: where its projections are, and which of their rows and columns go together."""

from .discovery import find_units
from .experts import expert_lists, unstack_experts, unused_experts
from .families import FAMILIES, Beside, Family, Stacking
from .units import Member, Pool, Units

__all__ = [
    "FAMILIES",
    "Beside",
    "Family",
    "Member",
    "Pool",
    "Stacking",
    "Units",
    "expert_lists",
    "find_units",
    "unstack_experts",
    "unused_experts",
]
