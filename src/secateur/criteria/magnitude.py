"""Magnitude: the size of the adapted weight, without any data."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from ..errors import InputError
from ..surgery import merged_weight
from ..units import Member, Pool
from .base import CRITERIA, Scoring, sum_members


class Magnitude:
    """`magnitude`: the sum of |W + s·B·A| (or its square) over a unit's entries."""

    needs: ClassVar[frozenset[str]] = frozenset()
    changes: ClassVar[bool] = False

    def __init__(self, scoring: Scoring) -> None:
        if scoring.normalize == "scale":
            raise InputError("--normalize scale undoes the scale of LoRA gradients: magnitude takes none or linear.")
        self.scoring = scoring

    def score(self, pool: Pool, modules: Mapping[str, nn.Module]) -> Tensor:
        return sum_members(pool, modules, self.scoring, self._entries)

    def _entries(self, module: nn.Module, member: Member) -> Tensor:
        weight = merged_weight(module).float()
        terms = weight.square() if self.scoring.reduce == "squared" else weight.abs()
        return terms.sum(1 - member.dim)


CRITERIA.register("magnitude", Magnitude)
