"""Cholesky factors of second moments, which are singular where inputs repeat each other."""

import torch
from torch import Tensor

from ..system.errors import NumericsError

AGAIN = 10
"""What the damping is multiplied by where a matrix is still not positive definite."""


def damped_cholesky(second: Tensor, damping: float, level: float | Tensor, what: str) -> Tensor:
    """Lower factor of C + λI in float64, with λ = damping × level, or `AGAIN` times that.

    Args:
        level: the diagonal that the damping is relative to.
        what: names the matrix in the error.
    Raises:
        NumericsError: not finite, or not positive definite even so.
    """
    wide = second.double()
    for times in (1, AGAIN):
        damped = wide + torch.diag_embed((times * damping * level) * wide.new_ones(len(wide)))
        factor, info = torch.linalg.cholesky_ex(damped)
        if not int(info) and bool(torch.isfinite(factor).all()):
            return factor
    cause = "they are too inexact" if bool(torch.isfinite(wide).all()) else "an activation overflowed"
    raise NumericsError(
        f"the second moments of {what} cannot be factorised, even with {AGAIN} times the damping of {damping}: "
        f"{cause}. Lower --lr, compute in float32 (--dtype float32), or choose --compensate none and a "
        "--criterion without second moments."
    )
