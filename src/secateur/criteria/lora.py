"""LoRA-guided importance: the Taylor score with LoRA's own gradients in place of ∂L/∂W.

Source: LoRAPrune, arXiv:2305.18403, Eqs. 4 and 10.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..architecture.quantised import DequantisedRows, bits_of
from ..architecture.units import Member, Pool, base_linear, weight_of
from ..config.pruning import ScoringOptions
from ..models.surgery import LoraFactors, lora_factors
from ..parallel.distributed import average_, processes
from ..parallel.sharding import gathered, local_rows
from ..system.errors import InputError
from ..system.machine.devices import doubled
from .base import CRITERIA, Criterion, Evidence, sum_members

BLOCK_ENTRIES = 1 << 18
"""Entries of W handled at once (1 MiB in float32, so that a block's temporaries stay in cache)."""
GPU_BLOCK_ENTRIES = 1 << 25
"""The same on a GPU (128 MiB): each block costs launches, and with a CPU's a 7B's step would take 120,000."""


def entry_sums(
    weight: Tensor | DequantisedRows,
    a: Tensor,
    b: Tensor,
    grad_a: Tensor,
    grad_b: Tensor,
    *,
    scaling: float,
    eta: float = 1.0,
    reduce: str = "squared",
    dim: int = 0,
    stand_in: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Sums over one axis of Î = [(∂B·A + B·∂A − η·∂B·∂A) ⊙ (W + s·B·A)]², or of its absolute value (Eq. 10).

    ∂L/∂W is never formed: a block of rows of its stand-in is one product of inner size 2r,
    [∂B | B]·[A − η·∂A ; ∂A], in float32 (float64 for float64 weights).

    Shapes (o out, i in, r rank): weight (o, i); a, grad_a (r, i); b, grad_b (o, r).

    Args:
        dim: 0 for one sum per row, 1 for one per column.
        stand_in: left (o, n) and right (n, i) factor of another stand-in for ∂L/∂W.
    Returns:
        (o,) or (i,) sums, >= 0.
    """
    rows, columns = weight.shape
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    a, b, grad_a, grad_b = (t.detach().to(dtype) for t in (a, b, grad_a, grad_b))
    left = torch.cat([grad_b, b], dim=1)
    right = torch.cat([a - eta * grad_a, grad_a])
    if stand_in is not None:
        left, right = (t.to(b) for t in stand_in)
    sums = b.new_zeros(rows if dim == 0 else columns)
    step = max(1, (BLOCK_ENTRIES if b.device.type == "cpu" else GPU_BLOCK_ENTRIES) // columns)
    for start in range(0, rows, step):
        block = slice(start, start + step)
        effective = torch.addmm(weight[block].detach().to(dtype), b[block], a, alpha=scaling)
        term = (left[block] @ right).mul_(effective)
        term = term.square_() if reduce == "squared" else term.abs_()
        if dim == 0:
            sums[block] = term.sum(1)
        else:
            sums += term.sum(0)
    return sums


def projected(a: Tensor, b: Tensor, grad_a: Tensor, grad_b: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Factors of G·P_A + P_B·G − P_B·G·P_A, with P_A on the row space of A and P_B on the column space of B.

    All of G = ∂L/∂W that LoRA's gradients ∂B = s·G·Aᵀ and ∂A = s·Bᵀ·G say, whatever the factors' scale:
    ∂B·A′ + B′·(∂A − s·Bᵀ·∂B·A′) with A′ = (A·Aᵀ)⁺·A / s and B′ = B·(Bᵀ·B)⁺ / s. At B = 0 it is G·P_A.
    Rows of B and columns of A without gradient belong to units that are masked: they span nothing.
    """
    a, b, grad_a, grad_b = (doubled(t.detach()) for t in (a, b, grad_a, grad_b))
    if grad_a.any():  # at B = 0 it says nothing of columns
        a = a * grad_a.any(0)
    b = b * grad_b.any(1, keepdim=True)
    rows = torch.linalg.pinv(a @ a.T, hermitian=True) @ a / scaling
    columns = b @ torch.linalg.pinv(b.T @ b, hermitian=True) / scaling
    return torch.cat([grad_b, columns], dim=1), torch.cat([rows, grad_a - scaling * (b.T @ grad_b) @ rows])


def lora_guided(pool: Pool, evidence: Evidence, scoring: ScoringOptions) -> Tensor:
    """Importance from LoRA weights and gradients alone: Σ Î over the unit's entries (Eqs. 4, 10)."""
    return sum_members(pool, scoring, lambda member: _entries(evidence.modules[member.linear], member, scoring))


def _entries(module: nn.Module, member: Member, scoring: ScoringOptions) -> Tensor:
    lora = lora_factors(module)
    if lora.a.grad is None or lora.b.grad is None:
        raise InputError(
            f"{member.linear}: its LoRA factors have no gradient: call observe() after backward() and "
            "before zero_grad(), with both factors trainable."
        )
    linear = base_linear(module)
    options: dict[str, Any] = {"scaling": lora.scaling, "eta": scoring.eta, "reduce": scoring.reduce, "dim": member.dim}
    if scoring.normalize == "projected":
        options["stand_in"] = projected(lora.a, lora.b, lora.a.grad, lora.b.grad, lora.scaling)
    if bits_of(linear):
        sums = entry_sums(DequantisedRows(linear), lora.a, lora.b, lora.a.grad, lora.b.grad, **options)
    elif (place := local_rows(weight := weight_of(linear).detach())) is None:
        sums = entry_sums(gathered(weight), lora.a, lora.b, lora.a.grad, lora.b.grad, **options)
    else:
        sums = _own_sums(*place, weight.shape[member.dim], lora, options)
        if scoring.normalize == "linear":  # not linear in the sums
            average_([sums])
    if scoring.normalize == "scale":
        # At B = 0 the stand-in is s·G·AᵀA, whose entries scale as s·r/in.
        scale = lora.scaling * lora.a.shape[0] / lora.a.shape[1]
        sums /= scale**2 if scoring.reduce == "squared" else scale
    return sums


def _own_sums(local: Tensor, rows: slice, size: int, lora: LoraFactors, options: dict[str, Any]) -> Tensor:
    """This process's part of the sums, from its rows of W, times the number of processes: the mean is the whole.

    So nothing goes over the wire at a step: the pruner takes the mean of the units' averages at a cut.
    """
    assert lora.a.grad is not None
    assert lora.b.grad is not None
    if "stand_in" in options:
        left, right = options["stand_in"]
        options = options | {"stand_in": (left[rows], right)}
    own = entry_sums(local, lora.a, lora.b[rows], lora.a.grad, lora.b.grad[rows], **options) * processes()
    if options["dim"] == 1:
        return own
    sums = own.new_zeros(size)
    sums[rows] = own
    return sums


# Rows by default: at B = 0 the LoRA gradient of a column-side linear (o, down) is a random projection of its inputs,
# and ranks its columns hardly better than chance.
CRITERIA.register(
    "lora",
    Criterion(
        lora_guided,
        "Taylor with LoRA's own gradients in place of ∂L/∂W (LoRAPrune)",
        needs=frozenset({"lora_grad"}),
        linears="rows",
        across_layers="raw",
    ),
)
