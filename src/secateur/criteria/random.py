"""Random scores, fixed by the seed: the floor that any criterion has to beat."""

import zlib

import torch
from torch import Tensor

from ..architecture.units import Pool
from ..config.pruning import ScoringOptions
from .base import CRITERIA, Criterion, Evidence


def random(pool: Pool, evidence: Evidence, scoring: ScoringOptions) -> Tensor:
    """Uniform scores drawn from the seed and the pool's name."""
    generator = torch.Generator().manual_seed(scoring.seed * 1_000_003 + zlib.crc32(pool.name.encode()))
    return torch.rand(pool.size, generator=generator)


CRITERIA.register("random", Criterion(random, "uniform scores drawn from the seed", changes=False))
