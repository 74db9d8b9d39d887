"""What removing rank components of a LoRA factor costs, and how the components that stay make up for it.

Source: PrunedLoRA, arXiv:2510.00192; the formulas are worked out in docs/papers.md, as the released code's do not fit
together. One factor is written as F (d, r), components in columns: F = B, or F = Aᵀ. H (r, r) is the curvature shared
by all rows of F, E[GᵀG] of its gradient G plus damping: L(F + δ) ≈ L + ⟨G, δ⟩ + ½ tr(δ H δᵀ).

G is the gradient of a step's mean loss over N samples, so near an optimum E[GᵀG] is Fisher / N, N what the mean is
over (sequences times accumulation times processes, or the label tokens). N is left out: it scales all scores alike,
damping is relative to H, and `compensation` does not change with the scale of H. Only the Newton step is N times too
long for it, which its cap covers.
"""

import torch
from torch import Tensor

from ..system.errors import NumericsError
from ..system.machine.devices import doubled


def inverse_of(curvature: Tensor, damping: float, whose: str) -> Tensor:
    """H⁻¹ of a damped curvature, (r, r) float64.

    Raises:
        NumericsError: it is not positive definite in spite of the damping; says whose.
    """
    try:
        return torch.cholesky_inverse(torch.linalg.cholesky(damped(curvature, damping)))
    except torch.linalg.LinAlgError:
        raise NumericsError(
            f"{whose}: the curvature cannot be inverted with damping {damping:g}: raise --damping (tenfold, say), or "
            "lower --lr if the gradients blow up."
        ) from None


def damped(curvature: Tensor, damping: float) -> Tensor:
    """H + damping·mean(diag H)·I, in float64: one step's GᵀG has lower rank than r."""
    wide = doubled(curvature)
    mean = wide.diagonal().mean()
    # Without any gradient yet, every direction is alike.
    scale = torch.where(mean > 0, mean, torch.ones_like(mean))
    return wide + damping * scale * torch.eye(len(wide), dtype=wide.dtype, device=wide.device)


def rise_of_each(factor: Tensor, inverse: Tensor) -> Tensor:
    """(r,) rise of the loss when one component goes and the others make up for it: ½‖F_j‖² / [H⁻¹]_jj.

    Args:
        factor: (d, r).
        inverse: (r, r) H⁻¹.
    """
    return 0.5 * factor.to(inverse.dtype).square().sum(0) / inverse.diagonal()


def rise_of_set(factor: Tensor, inverse: Tensor, gone: Tensor) -> float:
    """The same for components that go together: ½ tr(F_S ([H⁻¹]_SS)⁻¹ F_Sᵀ)."""
    columns = factor.to(inverse.dtype)[:, gone]
    return 0.5 * float((columns.T * torch.linalg.solve(inverse[gone][:, gone], columns.T)).sum())


def compensation(factor: Tensor, inverse: Tensor, gone: Tensor) -> Tensor:
    """(d, r) δ = −F_S ([H⁻¹]_SS)⁻¹ [H⁻¹]_{S,:}: F + δ is zero in the columns S, at the least rise of ½ tr(δ H δᵀ)."""
    columns = factor.to(inverse.dtype)[:, gone]
    return -torch.linalg.solve(inverse[gone][:, gone], columns.T).T @ inverse[gone]


def newton_step(gradient: Tensor, curvature: Tensor, stay: Tensor, longest: float) -> Tensor:
    """(d, stay) −G_K H_KK⁻¹ on the columns that stay, no longer than `longest`.

    `compensation` and this together are the full minimiser
    −G H⁻¹ − (F − G H⁻¹)_S ([H⁻¹]_SS)⁻¹ [H⁻¹]_{S,:}. With H = GᵀG the step grows as 1/|G|, hence the cap.
    """
    kept = curvature[stay][:, stay]
    step = -torch.linalg.solve(kept, gradient.to(kept.dtype)[:, stay].T).T
    length = float(step.norm())
    return step * min(1.0, longest / length) if length > 0 else step
