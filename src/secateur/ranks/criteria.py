"""What scores the rank components of an adapter: component j is column j of B with row j of A."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config.ranks import RankOptions
from ..system.errors import InputError
from ..system.machine.devices import doubled
from ..system.registry import Registry
from .recovery import rise_of_each


@dataclass(eq=False)
class RankEvidence:
    """One LoRA layer and the moving averages of what its training steps showed."""

    path: str
    a: Tensor
    """(r, in)"""
    b: Tensor
    """(out, r)"""
    inverse_a: Tensor | None
    """(r, r) inverse of the damped E[G_A G_Aᵀ], where it is needed"""
    inverse_b: Tensor | None
    """(r, r) inverse of the damped E[G_Bᵀ G_B], where it is needed"""
    taylor: Tensor | None
    """(r,) E[Σ|∂L/∂w · w|] over the component's entries, where it is needed"""
    second_z: Tensor | None
    """(r, r) E[z zᵀ] of z = A x, where it is needed"""
    inverse_z: Tensor | None
    seed: int
    newton_a: Tensor | None = None
    """(in, r) the capped Newton step of Aᵀ that the recovery takes, where it takes one"""
    newton_b: Tensor | None = None
    """(out, r) that of B"""


@dataclass(frozen=True)
class RankCriterion:
    """How components are scored, and what the pruner has to watch for it."""

    score: Callable[[RankEvidence], Tensor]
    """-> (r,), higher stays."""
    summary: str
    activations: bool = False
    """Whether z = A x is needed."""
    second_order: bool = False
    """Whether the inverses of the gradients' second moments are needed for the score."""
    first_order: bool = False
    """Whether Σ|∂L/∂w · w| is needed."""
    curvature: str = "gradient"
    """What recovery takes for H: the gradients' second moment, or `activations` (z's, for B only)."""

    def __post_init__(self) -> None:
        """Refuse what no pruner could provide.

        Raises:
            InputError: names the field, its value and what it must be.
        """
        if not callable(self.score):
            raise InputError(f"RankCriterion: score is {self.score!r}: give a function of the evidence.")
        if self.curvature not in ("gradient", "activations"):
            raise InputError(f"RankCriterion: curvature is {self.curvature!r}: choose from gradient, activations.")

    def wants_curvature(self, options: RankOptions) -> bool:
        """Whether the score, the recovery or a turn of the basis uses the gradients' second moments."""
        recovers = options.recovery != "none" and self.curvature == "gradient"
        return self.second_order or recovers or options.basis != "given"

    def wants_activations(self, options: RankOptions) -> bool:
        """Whether the score or the basis goes by z = A x."""
        return self.activations or options.basis == "weighted"


RANK_CRITERIA: Registry[RankCriterion] = Registry("rank criterion")


def gradient(evidence: RankEvidence) -> Tensor:
    """PrunedLoRA: the second-order rise of the loss in both factors.

    With a Newton step it is ½‖(F − GH⁻¹)_j‖² / [H⁻¹]_jj: what removal costs once the step is taken, so F moves by as
    much of −GH⁻¹ as the recovery's cap lets it.
    """
    assert evidence.inverse_a is not None and evidence.inverse_b is not None  # noqa: PT018
    a = evidence.a.T if evidence.newton_a is None else evidence.a.T + evidence.newton_a
    b = evidence.b if evidence.newton_b is None else evidence.b + evidence.newton_b
    return rise_of_each(b, evidence.inverse_b) + rise_of_each(a, evidence.inverse_a)


def sparsegpt(evidence: RankEvidence) -> Tensor:
    """½‖b_j‖² / [C⁻¹]_jj with C = E[z zᵀ]: what the layer's output loses."""
    assert evidence.inverse_z is not None
    return rise_of_each(evidence.b, evidence.inverse_z)


def wanda(evidence: RankEvidence) -> Tensor:
    """‖b_j‖·‖z_j‖."""
    assert evidence.second_z is not None
    return doubled(evidence.b).norm(dim=0) * doubled(evidence.second_z).diagonal().sqrt()


def taylor(evidence: RankEvidence) -> Tensor:
    """LLM-Pruner's first-order score: Σ|∂L/∂w · w| over a_j and b_j."""
    assert evidence.taylor is not None
    return doubled(evidence.taylor)


def magnitude(evidence: RankEvidence) -> Tensor:
    """‖b_j‖·‖a_j‖."""
    return doubled(evidence.b).norm(dim=0) * doubled(evidence.a).norm(dim=1)


def random(evidence: RankEvidence) -> Tensor:
    """Uniform scores drawn from the seed and the layer's path."""
    import zlib

    generator = torch.Generator().manual_seed(evidence.seed * 1_000_003 + zlib.crc32(evidence.path.encode()))
    return torch.rand(len(evidence.a), generator=generator, dtype=torch.float64).to(evidence.a.device)


RANK_CRITERIA.register(
    "gradient", RankCriterion(gradient, "second-order rise of the loss (PrunedLoRA)", second_order=True)
)
RANK_CRITERIA.register(
    "sparsegpt",
    RankCriterion(sparsegpt, "second-order rise of the output's error", activations=True, curvature="activations"),
)
RANK_CRITERIA.register("wanda", RankCriterion(wanda, "‖b‖·‖A x‖", activations=True))
RANK_CRITERIA.register("taylor", RankCriterion(taylor, "Σ|∂L/∂w · w| (LLM-Pruner)", first_order=True))
RANK_CRITERIA.register("magnitude", RankCriterion(magnitude, "‖b‖·‖a‖"))
RANK_CRITERIA.register("random", RankCriterion(random, "uniform scores drawn from the seed"))
