"""Ridge least squares from sums over tokens, with the ridge chosen by tokens that were not fitted to."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...criteria.base import wide
from ...parallel.distributed import sum_
from ...system.errors import NumericsError
from ...system.machine.devices import doubled

RIDGES = (0.1, 0.3, 1.0)
"""λ, relative to the mean diagonal of X Xᵀ, from which one is chosen for each linear. No larger one: tokens of
other sequences ask for more than helps the model in the end (docs/results/compensation.md)."""
DEFAULT = 1.0
"""Where there are no tokens to choose by."""
SKETCH = 64
"""So many random mixtures of a linear's outputs stand for all of them while a ridge is chosen."""


@dataclass(frozen=True)
class Fit:
    """How a linear was changed."""

    ridge: float | None
    """λ; None: nothing was lacking."""
    error: float
    """What is left of the squared difference at tokens that were not fitted to; 1 before, NaN without such tokens."""


class Sums:
    """Σ x xᵀ, Σ r xᵀ and Σ r² over tokens: those that are fitted to, and those that choose the ridge.

    Args:
        outputs, columns: sizes of r and x.
        like: a tensor on the device, in whose precision or float32 is added up.
    """

    def __init__(self, outputs: int, columns: int, like: Tensor) -> None:
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        self.parts = [
            [
                torch.zeros(size, dtype=dtype, device=like.device)
                for size in ((columns, columns), (outputs, columns), (outputs,))
            ]
            for _ in range(2)
        ]

    def add(self, x: Tensor, r: Tensor, held: Tensor) -> None:
        """Add tokens.

        Args:
            x, r: (tokens, columns) and (tokens, outputs).
            held: (tokens,) bool, which are there to choose the ridge.
        """
        for chosen, part in zip((~held, held), self.parts, strict=True):
            if chosen.any():
                rows, wanted = wide(x[chosen]), wide(r[chosen])
                part[0].addmm_(rows.T, rows)
                part[1].addmm_(wanted.T, rows)
                part[2].add_(wanted.square().sum(0))

    def share(self) -> None:
        """The sums of all processes."""
        for part in self.parts:
            for sums in part:
                sum_(sums)

    def fit(self, ridges: Sequence[float], what: str, gain: Tensor | None = None) -> tuple[Tensor, Fit]:
        """(outputs, columns) Δ that brings Δ x closest to r by least squares; the ridge suits other tokens best.

        Δ = (Σ r xᵀ)(Σ x xᵀ + λ·mean diagonal·I)⁻¹ of all tokens.

        Args:
            ridges: to choose from; of a single one there is no choice.
            what: names the linear in an error.
            gain: () or (outputs,) what an error of each output counts for while the ridge is chosen.
        Raises:
            NumericsError: the sums are not finite.
        """
        fitted, held = self.parts
        second, cross = fitted[0] + held[0], fitted[1] + held[1]
        if not bool(torch.isfinite(second).all() & torch.isfinite(cross).all()):
            raise NumericsError(
                f"compensate='sequential': an activation at {what} overflowed: lower --lr, or compute in float32 "
                "(--dtype float32)."
            )
        if not cross.any():
            return cross, Fit(None, 1.0)
        if len(ridges) == 1 or not held[2].any() or not fitted[2].any():
            ridge = ridges[0] if len(ridges) == 1 else DEFAULT
            return solved(second, cross, ridge), Fit(ridge, float("nan"))
        ones = cross.new_ones(len(cross))
        best, error = self._choice(ridges, ones if gain is None else gain.to(cross) * ones)
        return solved(second, cross, best), Fit(best, error)

    def _choice(self, ridges: Sequence[float], gain: Tensor) -> tuple[float, float]:
        (second, cross, _), (held, held_cross, squares) = self.parts
        outputs, generator = len(cross), torch.Generator().manual_seed(0)
        mix = torch.eye(outputs) if outputs <= SKETCH else torch.randn(SKETCH, outputs, generator=generator)
        mix = mix.to(cross) * gain
        cross, held_cross = mix @ cross, mix @ held_cross
        size = (squares * gain.square()).sum() * (1 if outputs <= SKETCH else SKETCH)
        errors = {}
        for ridge in ridges:
            change = solved(second, cross, ridge)
            errors[ridge] = float(((change @ held) * change).sum() - 2 * (change * held_cross).sum())
        best = min(errors, key=lambda ridge: errors[ridge])
        return best, 1 + errors[best] / float(size)


def solved(second: Tensor, cross: Tensor, ridge: float) -> Tensor:
    """cross · (second + λI)⁻¹, (outputs, columns), with λ = ridge × the mean diagonal of `second`."""
    damped = second.clone()
    damped.diagonal().add_(ridge * second.diagonal().mean())
    scale = damped.diagonal().rsqrt()  # columns of one size: rounding then counts for least
    factor, info = torch.linalg.cholesky_ex(damped * scale * scale.unsqueeze(1))
    if int(info):  # rounding made it singular
        return solved(doubled(second), doubled(cross), max(ridge, 1e-12) * 10).to(cross)
    return torch.cholesky_solve((cross * scale).T, factor).T * scale
