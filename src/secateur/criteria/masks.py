"""Learned masks: how a unit's mask is made of what is learned of it, and what drives the masks to the target.

A gate (o or down) reads x ⊙ m, with one m for all columns of a unit; or an FFN's masks are on what gate and up make.
What is learned is a latent z per unit. `MaskRule` is data: a criterion names one, and `mask_training` trains by it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..architecture.units import Member, Pool, Units
from ..system.errors import InputError

STEEPNESS = 2.4
"""C₀ of the retention score, with which s is 0 at z = 0 and 1 at z = 2μ."""
LOW, HIGH = -0.1, 1.1
"""The sigmoid is stretched to these before it is clipped to 0 ... 1."""
SOFT, SHARP = 0.5, 0.05
"""μ at the first and at the last step of a mask's training."""
TEMPERATURE = 1.5
"""τ of the probability that a unit stays."""
WARM = 0.1
"""Fraction of the training in which its learning rate rises."""
CONCRETE = 2 / 3
"""β, the temperature of a hard-concrete mask."""
NOISE = 1e-6
"""How near to 0 and 1 its noise comes."""

NO_SEARCHED_MASKS = (
    "{criterion} learns masks towards a size from the first step on, and --allocation search finds the layers' sizes "
    "at the first cut: use another allocation, such as global."
)
NO_SCALED_MASKS = (
    "{criterion} learns masks, whose gradients a float16 loss scaler would scale beside the target's: use bfloat16 or "
    "float32, or another --criterion."
)


@dataclass(frozen=True)
class MaskRule:
    """How masks are made of latents z (units,), and learned."""

    start: float
    """z before the first step."""
    value: Callable[[Tensor, Tensor], Tensor]
    """z and, (units,), the projection's zeros and ones or the step's noise -> m. Its derivative is the estimator's."""
    rate: Callable[[int], float]
    """Steps of the masks' training -> learning rate of Adam, where the user does not say (`--mask-lr`)."""
    betas: tuple[float, float]
    """Of Adam."""
    decay: Callable[[float], float]
    """Share of the training that is over -> what the rates are multiplied by."""
    retention: Callable[[Tensor, float], Tensor] | None = None
    """z and the share of the training that is over -> s, 0 ... 1, whose mean is driven to the target by an augmented
    Lagrangian. None: the masks are projected at each step onto what the budget allows."""
    prior: Callable[[Tensor], Tensor] | None = None
    """(units,) `evidence.gates` for each of a unit's parameters -> z when the first unit is to be hidden, for a
    criterion that needs `gate_grad` as well; None: what was learned from `start` on."""
    gain: Callable[[Tensor], Tensor] | None = None
    """z -> what a unit that stays is multiplied by for good, where its mask was; None: by nothing."""
    noisy: bool = False
    """Whether each step draws noise, uniform from 0 to 1; what is evaluated has `gain`."""
    at_rows: bool = False
    """Whether an FFN's masks are on what gate and up make, before the activation, and not on what down reads."""
    bound: float | None = None
    """How far from 0 a z may be after a step."""
    warm: float = 0.0
    """Share of the training over which the target goes from the whole size to its own, along a line."""
    undecided: bool = True
    """Whether masks between 0 and 1 are driven apart, by λ₃."""

    def kept(self, kept: Tensor, share: float) -> Tensor:
        """What is to stay at a share of the training, of what is to stay at its end."""
        return 1 - (1 - kept) * min(1.0, share / self.warm) if self.warm else kept

    def places(self, pool: Pool) -> tuple[Member, ...]:
        """Where a pool's masks are: at the inputs of o and down, or at the outputs of gate and up."""
        if not (self.at_rows and pool.kind == "ffn"):
            return pool.gates
        return tuple(member for member in pool.members if member.dim == 0 and member.scored)

    def check_places(self, name: str, units: Units) -> None:
        """Whether the model has what the masks are put on.

        Raises:
            InputError: it has not.
        """
        bare = next((p for p in units.of_kind("ffn") if self.at_rows and len(self.places(p)) < 2), None)
        if bare is not None:
            raise InputError(
                f"--criterion {name} masks what gate and up make, and the FFN of a {units.family.name} has no gate "
                f"({bare.members[0].linear} alone): use --criterion learned, or another."
            )

    @property
    def projects(self) -> bool:
        """Whether masks are zeros and ones that the budget allows."""
        return self.retention is None


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """`hard` in the forward pass, with the derivative of `soft`."""
    return soft + (hard - soft).detach()


def relu_mask(z: Tensor, projection: Tensor) -> Tensor:
    """m = ReLU(z), with derivative 1 everywhere, so that a unit at zero can come back (DDP Eq. 11, its code)."""
    return straight_through(z.relu(), z)


def sharpness(share: float) -> float:
    """μ from `SOFT` to `SHARP` as √(t/T) (DDP Eq. 14)."""
    return SOFT - (SOFT - SHARP) * math.sqrt(min(share, 1.0))


def retention_score(z: Tensor, share: float) -> Tensor:
    """s = clip(1.2·σ(C₀(m − μ)/μ) − 0.1, 0, 1) of m = ReLU(z) (DDP Eqs. 12, 13); both clips are straight-through."""
    mu = sharpness(share)
    wide = torch.sigmoid(STEEPNESS * (relu_mask(z, z) - mu) / mu) * (HIGH - LOW) + LOW
    return straight_through(wide.clamp(0, 1), wide)


def kept_gain(z: Tensor) -> Tensor:
    """ReLU(z) of a unit that stays, at least 2μ of the last step: one at zero could learn nothing any more."""
    return z.clamp_min(2 * SHARP)


def probability(z: Tensor) -> Tensor:
    """σ(z/τ), by which units are ranked (GRASPrune)."""
    return torch.sigmoid(z / TEMPERATURE)


def standard_logarithm(gates: Tensor) -> Tensor:
    """z of mean 0 and deviation 1, in the order of what is given."""
    logarithms = gates.clamp_min(torch.finfo(gates.dtype).tiny).log()
    spread = logarithms.std() if len(logarithms) > 1 else logarithms.new_ones(())
    return (logarithms - logarithms.mean()) / spread.clamp_min(torch.finfo(gates.dtype).eps)


def projected_mask(z: Tensor, projection: Tensor) -> Tensor:
    """The projection, with the derivative of σ(z/τ) (GRASPrune's projected straight-through estimator)."""
    return straight_through(projection, probability(z))


def hard_concrete(z: Tensor, noise: Tensor) -> Tensor:
    """m = clip(1.2·σ((logit u + z)/β) − 0.1, 0, 1), u the noise: z is log α (Louizos et al., arXiv:1712.01312)."""
    stretched = torch.sigmoid((noise.logit() + z) / CONCRETE) * (HIGH - LOW) + LOW
    return stretched.clamp(0, 1)


def open_probability(z: Tensor, share: float) -> Tensor:
    """P(m > 0) = σ(z − β·log(0.1/1.1)) of a hard-concrete mask: its mean over units is the expected size."""
    return torch.sigmoid(z - CONCRETE * math.log(-LOW / HIGH))


def concrete_gain(z: Tensor) -> Tensor:
    """σ(0.8·z/β): what a hard-concrete mask is without noise, in Compresso's code."""
    return torch.sigmoid(0.8 * z / CONCRETE)


def warm_cosine(share: float) -> float:
    """What a learning rate is multiplied by: up over the first tenth of the training, then down as a cosine."""
    return share / WARM if share < WARM else 0.5 + 0.5 * math.cos(math.pi * (share - WARM) / (1 - WARM))


def steady(share: float) -> float:
    """A learning rate that stays."""
    return 1.0


@dataclass(frozen=True)
class Constraint:
    """What of some pools is to stay."""

    pools: tuple[str, ...]
    kept: float
    """Fraction of their parameters."""


def lagrangian(
    scores: Sequence[Tensor], params: Sequence[Tensor], kept: Tensor, multipliers: Tensor, penalties: Tensor
) -> Tensor:
    """Σ_g w_g·[λ₁(s̄ − ρ) + λ₂(s̄ − ρ)² + λ₃·mean s(1 − s)], with w the constraint's share of all parameters (DDP).

    Every mean is weighted by what a unit has of parameters, so s̄ is the expected size.

    Args:
        scores: of each constraint (units,) s, 0 for a unit that is gone.
        params: of each (units,) parameters.
        kept: (constraints,) ρ.
        multipliers: (constraints, 2) λ₁ and λ₃.
        penalties: (constraints,) λ₂.
    """
    totals = torch.stack([each.sum() for each in params])
    over = torch.stack([s @ p for s, p in zip(scores, params, strict=True)]) / totals - kept
    undecided = torch.stack([(s * (1 - s)) @ p for s, p in zip(scores, params, strict=True)]) / totals
    each = multipliers[:, 0] * over + penalties * over.square() + multipliers[:, 1] * undecided
    return each @ (totals / totals.sum())
