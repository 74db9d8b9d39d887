"""The interface of a criterion, and what criteria share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from ..registry import Registry
from ..units import Member, Pool


@dataclass(frozen=True)
class Scoring:
    """Options that criteria share (LoRAPrune Eqs. 4, 10; METHODS in docs/papers.md)."""

    reduce: str = "squared"
    """`squared` (paper) or `abs` (released code) of an entry's first-order term."""
    normalize: str = "none"
    """Each linear's unit scores before they are added: `none`, `linear` (divided by their L2 norm) or
    `scale` (divided by the expected scale of the LoRA gradient)."""
    eta: float = 1.0
    """Weight of the −∂B·∂A term (Eq. 10)."""
    linears: str = "rows"
    """The linears whose `rows` a unit owns (q, k, v, gate, up), or `all`. At B = 0 the LoRA gradient of a
    column-side linear (o, down) is a random projection of its inputs and ranks its columns hardly better than
    chance."""
    seed: int = 0


class Criterion(Protocol):
    """Scores the units of a pool; must not change the model."""

    needs: ClassVar[frozenset[str]]
    """What the pruner has to provide: `lora_grad` (LoRA factors and their gradients)."""
    changes: ClassVar[bool]
    """Whether scores change from step to step (else they are taken once per cut)."""

    def __init__(self, scoring: Scoring) -> None: ...

    def score(self, pool: Pool, modules: Mapping[str, nn.Module]) -> Tensor:
        """(units,) float32 scores of `pool`.

        Args:
            modules: linear path -> PEFT LoRA layer or plain linear, for every linear of the pool.
        """


CRITERIA: Registry[type[Criterion]] = Registry("criterion")


def scored_members(pool: Pool, scoring: Scoring) -> list[Member]:
    """The linears of a unit that count: all, or those whose rows the unit owns."""
    return [member for member in pool.members if scoring.linears == "all" or member.dim == 0]


def sum_members(
    pool: Pool, modules: Mapping[str, nn.Module], scoring: Scoring, entries: Callable[[nn.Module, Member], Tensor]
) -> Tensor:
    """Unit scores Ĝ_g (Eq. 4): entry sums gathered per unit and added over the pool's linears.

    Args:
        entries: linear and member -> one sum per row (`dim` 0) or column (`dim` 1) of the linear.
    """
    total: Tensor | None = None
    for member in scored_members(pool, scoring):
        sums = entries(modules[member.linear], member)
        units = sums[member.index.to(sums.device)].sum(1)
        if scoring.normalize == "linear":
            units = units / units.norm().clamp_min(torch.finfo(units.dtype).tiny)
        total = units if total is None else total + units
    assert total is not None, "a pool has at least one linear"
    return total
