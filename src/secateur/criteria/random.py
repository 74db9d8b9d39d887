"""Random scores, fixed by the seed: the floor that any criterion has to beat."""

import zlib
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..units import Pool
from .base import CRITERIA, Scoring


class Random:
    """`random`: uniform scores drawn from the seed and the pool's name, the same at every step."""

    needs: ClassVar[frozenset[str]] = frozenset()
    changes: ClassVar[bool] = False

    def __init__(self, scoring: Scoring) -> None:
        self.scoring = scoring

    def score(self, pool: Pool, modules: Mapping[str, nn.Module]) -> Tensor:
        generator = torch.Generator().manual_seed(self.scoring.seed * 1_000_003 + zlib.crc32(pool.name.encode()))
        return torch.rand(pool.size, generator=generator)


CRITERIA.register("random", Random)
