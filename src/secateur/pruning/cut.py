"""What one cut did."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from torch import Tensor


@dataclass(frozen=True)
class Cut:
    """The units that went at a step, and the scores that they went with."""

    step: int
    removed: dict[str, list[int]]
    """Pool name -> units that went, ascending."""
    scores: dict[str, list[float]]
    """Pool name -> their averaged scores, in the same order."""
    sparsity: float
    """Fraction of the prunable parameters gone after it."""

    @classmethod
    def between(
        cls,
        step: int,
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        scores: Mapping[str, Tensor],
        sparsity: float,
    ) -> Self:
        """The difference of two states: pool name -> (units,) bool, which are left."""
        gone = {name: (before[name] & ~keep).nonzero().flatten() for name, keep in after.items()}
        lost = {name: units for name, units in gone.items() if len(units)}
        removed = {name: units.tolist() for name, units in lost.items()}
        return cls(step, removed, {name: scores[name][units].tolist() for name, units in lost.items()}, sparsity)
