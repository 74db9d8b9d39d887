"""Cholesky factors of second moments, which are singular where inputs repeat each other."""

import torch
from torch import Tensor

from ..system.errors import NumericsError
from ..system.machine.devices import doubled

AGAIN = 10
"""What the damping is multiplied by where a matrix is still not positive definite."""


REMEDY = (
    "Lower --lr, compute in float32 (--dtype float32), or choose --compensate none and a --criterion without second "
    "moments."
)


def damped_cholesky(second: Tensor, damping: float, level: float | Tensor, what: str, remedy: str = REMEDY) -> Tensor:
    """Lower factor of C + λI in float64, with λ = damping × level, or `AGAIN` times that.

    Args:
        level: the diagonal that the damping is relative to.
        what, remedy: name the matrix in the error, and what to do.
    Raises:
        NumericsError: not finite, or not positive definite even so.
    """
    wide = doubled(second)
    for times in (1, AGAIN):
        damped = wide + torch.diag_embed((times * damping * level) * wide.new_ones(len(wide)))
        factor, info = torch.linalg.cholesky_ex(damped)
        if not int(info) and bool(torch.isfinite(factor).all()):
            return factor
    cause = "they are too inexact" if bool(torch.isfinite(wide).all()) else "an activation overflowed"
    raise NumericsError(
        f"the second moments of {what} cannot be factorised, even with {AGAIN} times the damping of {damping}: "
        f"{cause}. {remedy}"
    )


def inverse_factor(second: Tensor, damping: float, what: str) -> tuple[Tensor, Tensor]:
    """The upper factor U of (H + λI)⁻¹ = Uᵀ·U in float64, λ = damping × the mean diagonal; and which inputs are zero.

    U_jj² is the first diagonal entry of the inverse of H's part from j on, and row j of U over U_jj says how the inputs
    after j take over from it: what GPTQ (arXiv:2210.17323) and SparseGPT (arXiv:2301.00774) go by.

    Args:
        second: (columns, columns) second moments of a linear's inputs, at any scale.
        what: names the linear in the error.
    Returns:
        U (columns, columns), and (columns,) bool: inputs that are always zero. Their diagonal counts as 1.
    Raises:
        NumericsError: not finite, or not positive definite.
    """
    second = doubled(second).clone()
    dead = second.diagonal() == 0
    second.diagonal()[dead] = 1
    level = second.diagonal().mean()
    lower = damped_cholesky(second, damping, level, f"the inputs of {what}", "Compute in float32 (--dtype float32).")
    return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True), dead
