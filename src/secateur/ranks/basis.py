"""Turning a LoRA layer into a singular basis: the same function, in components that are ordered by what they do.

With its usual start the rows of A are random directions, and training hardly turns them. So each of 64 components holds
about a 64th of what the adapter has learned, and no choice of eight keeps much more than an eighth. Turned, component j
is the j-th singular direction of B·A, or of B·A·C^½ with C = E[x xᵀ] of its inputs: what of its outputs it makes.
This is not in PrunedLoRA; docs/papers.md has the algebra.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.surgery import LoraFactors
from ..system.machine.devices import precise
from .layers import Averages

DEPENDENT = 1e-2
"""Singular values of A, relative to the largest, below which rows count as dependent. N would enlarge the rounding of
a curvature by their inverse square, until it is no curvature any more (seen where training diverges)."""


UNSEEN = 1e-8
"""Eigenvalues of a second moment, relative to the largest, that count as no lower: N divides by their roots."""


@dataclass(frozen=True, eq=False)
class Turn:
    """A' = N·A and B' = B·M with M = N⁻¹ on A's row space, so that B'·A' = B·A."""

    a: Tensor
    """(r, in) A': rows as long as those of A in the mean (root mean square), at right angles in their products with
    each other (`singular`) or with the inputs (`weighted`)"""
    b: Tensor
    """(out, r) B': columns at right angles, the longest first"""
    forth: Tensor
    """(r, r) N; gradients of B turn by its transpose"""
    back: Tensor
    """(r, r) M; gradients of A turn by its transpose"""


def singular(a: Tensor, b: Tensor) -> Turn:
    """The singular basis of B·A. B takes the singular values, and A keeps its length: training goes on as before.

    Args:
        a: (r, in), r at most in.
        b: (out, r), r at most out.
    """
    wide = torch.float64 if a.dtype == torch.float64 else torch.float32
    across_a, upper_a = torch.linalg.qr(a.T.to(wide))
    across_b, upper_b = torch.linalg.qr(b.to(wide))
    left, values, right = torch.linalg.svd(upper_b @ upper_a.T)
    length = a.to(wide).square().sum(1).mean().sqrt()
    return Turn(
        a=length * right @ across_a.T,
        b=across_b @ (left * (values / length)),
        forth=length * right @ torch.linalg.pinv(upper_a, rtol=DEPENDENT).T,
        back=upper_a.T @ right.T / length,
    )


def weighted(a: Tensor, b: Tensor, second_z: Tensor) -> Turn:
    """The singular basis of B·A·C^½, C = E[x xᵀ]: its first k components are the k that miss least of E‖B·A·x‖².

    C need not be known: the left singular vectors, which are kept, are those of B·F with F·Fᵀ = A·C·Aᵀ = E[z zᵀ].

    Args:
        a: (r, in).
        b: (out, r), r at most out.
        second_z: (r, r) E[z zᵀ] of z = A·x.
    """
    place = precise(a.device)
    values, vectors = torch.linalg.eigh(second_z.to(place))
    roots = values.clamp_min(values.max() * UNSEEN).clamp_min(torch.finfo(values.dtype).tiny).sqrt()
    across, upper = torch.linalg.qr(b.to(place))
    left, lengths, right = torch.linalg.svd(upper @ (vectors * roots))
    forth, back = right @ (vectors / roots).T, vectors * roots @ right.T
    turned = forth @ a.to(place)
    length = a.to(place).norm() / turned.norm().clamp_min(torch.finfo(turned.dtype).tiny)
    parts = length * turned, across @ (left * lengths) / length, length * forth, back / length
    return Turn(*(part.to(a.device) for part in parts))


def turn_(
    lora: LoraFactors, averages: Averages, optimizer: torch.optim.Optimizer | None, basis: str = "singular"
) -> None:
    """Turn a layer's factors, the averages of its gradients and activations, and its AdamW moments.

    First moments turn exactly. Second moments do not, as they hold no products of different components: they are turned
    as if there were none, and each component is then scaled to what `averages` know of its gradient's length.
    """
    a, b = lora.a.detach(), lora.b.detach()
    turn = singular(a, b) if basis == "singular" else weighted(a, b, averages.tensors["second_z"])
    for parameter, whole, name, dim in (
        (lora.a, turn.back.T, "curvature_a", 0),
        (lora.b, turn.forth, "curvature_b", 1),
    ):
        state = optimizer.state.get(parameter, {}) if optimizer is not None else {}
        for key in ("exp_avg", "exp_avg_sq"):
            if key in state:
                old = state[key]
                matrix = whole.to(old.dtype)
                if key == "exp_avg_sq":
                    matrix = matrix.square() * _mixed(whole, averages.tensors.get(name)).to(old.dtype)[:, None]
                state[key] = matrix @ old if dim == 0 else old @ matrix.T
    turned = {
        "curvature_a": turn.back.T, "curvature_b": turn.forth, "second_z": turn.forth,
        "gradient_a": turn.back.T, "gradient_b": turn.forth,
    }  # fmt: skip
    for name, value in averages.tensors.items():
        matrix = turned[name].to(value.dtype)
        value = value @ matrix.T
        averages.tensors[name] = matrix @ value if name.startswith(("curvature", "second")) else value
    lora.a.data.copy_(turn.a)
    lora.b.data.copy_(turn.b)


def _mixed(matrix: Tensor, curvature: Tensor | None) -> Tensor:
    """(r,) how much longer each turned component's gradient is than it would be were the old ones' uncorrelated."""
    if curvature is None:
        return torch.ones(len(matrix), device=matrix.device)
    curvature = curvature.to(matrix)
    alone = (matrix.square() @ curvature.diagonal()).clamp_min(torch.finfo(matrix.dtype).tiny)
    return ((matrix @ curvature * matrix).sum(1) / alone).clamp_min(0)
