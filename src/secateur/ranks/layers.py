"""One LoRA layer's rank components: what is averaged of their gradients, and taking some away."""

from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn

from ..models.devices import compute_dtype
from ..models.surgery import LoraFactors, Sliced, swap_parameters_
from ..system.errors import InputError, NumericsError

NARROW_FROM = 64
"""Columns from which a gradient's second moment is taken in bfloat16."""


@dataclass(eq=False)
class Averages:
    """Moving averages of one layer's steps, debiased; sliced at each cut."""

    steps: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """`curvature_a`, `curvature_b` (r, r), and where they are needed `gradient_b` (out, r), `gradient_a` (in, r),
    `taylor` (r,), `second_z` (r, r)."""

    def mix(self, fresh: dict[str, Tensor], decay: float) -> None:
        """Take a step in. An average whose layer was sliced meanwhile (`prune --init-rank`) starts anew."""
        self.steps += 1
        weight = max(1 - decay, 1 / self.steps)
        for name, value in fresh.items():
            old = self.tensors.get(name)
            if old is not None and old.device != value.device:  # a checkpoint's, read before the model moved
                old = self.tensors[name] = old.to(value.device)
            if old is None or old.shape != value.shape:
                self.tensors[name] = value.clone()
            else:
                old.lerp_(value, weight)

    def to_(self, device: torch.device) -> None:
        """Move to where the layer is."""
        self.tensors = {name: value.to(device) for name, value in self.tensors.items()}

    def slice_(self, stay: Tensor) -> None:
        for name, value in self.tensors.items():
            # Components are the last dimension of each, and both of the square ones.
            sliced = value.index_select(-1, stay)
            square = name.startswith(("curvature", "second"))
            self.tensors[name] = sliced.index_select(0, stay) if square else sliced


def check_gradients(factors: dict[str, LoraFactors], step: int) -> None:
    """All there and finite; the device is asked once.

    Raises:
        InputError: one has none.
        NumericsError: one is not finite; names layer and step.
    """
    norms = {}
    for path, lora in factors.items():
        if lora.a.grad is None or lora.b.grad is None:
            raise InputError(f"{path}: LoRA has no gradient: call observe() after backward(), before zero_grad().")
        norms[path] = lora.a.grad.norm() + lora.b.grad.norm().to(lora.a.grad.device)
    finite = torch.stack([norm.to(next(iter(norms.values())).device) for norm in norms.values()]).isfinite()
    for path, good in zip(norms, finite.tolist(), strict=True):
        if not good:
            raise NumericsError(f"step {step}: gradients of {path} are not finite: lower --lr, or use float32.")


def step_facts(
    a: Tensor,
    b: Tensor,
    grad_a: Tensor | None,
    grad_b: Tensor | None,
    *,
    curvature: bool,
    gradients: bool,
    first_order: bool,
) -> dict[str, Tensor]:
    """What one step shows of a layer's components, in float32 (float64 for float64 models).

    Args:
        curvature: whether the gradients' second moments are wanted.
        gradients: whether the gradients themselves are wanted, too (the Newton step).
        first_order: whether Σ|∂L/∂w · w| is.
    """
    assert grad_a is not None and grad_b is not None  # noqa: PT018
    wide = torch.float64 if a.dtype == torch.float64 else torch.float32
    a, b, grad_a, grad_b = (t.to(wide) for t in (a, b, grad_a, grad_b))
    facts = {"curvature_a": second_moment(grad_a.T), "curvature_b": second_moment(grad_b)} if curvature else {}
    if gradients:
        facts |= {"gradient_a": grad_a.T, "gradient_b": grad_b}
    if first_order:
        facts["taylor"] = (grad_a * a).abs().sum(1) + (grad_b * b).abs().sum(0)
    return facts


def second_moment(gradient: Tensor) -> Tensor:
    """(r, r) GᵀG of G (d, r).

    From `NARROW_FROM` columns on the product is taken in bfloat16 where the hardware has it (sums in float32): it grows
    as r² and would cost a tenth of a step at r = 256. Its error, a few thousandths of an entry, is far below the noise
    between steps and below the damping.
    """
    if gradient.dtype == torch.float32 and gradient.shape[1] >= NARROW_FROM and _narrows(gradient.device):
        narrow = gradient.to(torch.bfloat16)
        return (narrow.T @ narrow).float()
    return gradient.T @ gradient


def _narrows(device: torch.device) -> bool:
    return compute_dtype("auto", device) == torch.bfloat16


def slice_components_(layer: Any, stay: Tensor, optimizer: torch.optim.Optimizer | None) -> None:
    """Keep the components `stay` of A and B, of their moments and of what PEFT's linears say of themselves."""
    (adapter,) = layer.active_adapters
    swapped: dict[Tensor, Sliced] = {}
    for holder, dim in ((layer.lora_A[adapter], 0), (layer.lora_B[adapter], 1)):
        old = holder.weight
        new = nn.Parameter(old.data.index_select(dim, stay.to(old.device)), requires_grad=old.requires_grad)
        holder.weight = new
        swapped[old] = Sliced(new, dim, stay)
        setattr(holder, "out_features" if dim == 0 else "in_features", len(stay))
    if optimizer is not None:
        swap_parameters_(optimizer, swapped)


def rescale_(layer: Any, scaling: float, averages: Averages | None, optimizer: torch.optim.Optimizer | None) -> None:
    """Another `scaling`, and B with its AdamW moments and averages what they then must be: the function stays.

    Args:
        averages: none, where B's values and moments are still to be read from a checkpoint of that scaling.
    """
    (adapter,) = layer.active_adapters
    factor = scaling / layer.scaling[adapter]
    layer.scaling[adapter] = scaling
    if averages is None:
        return
    b = layer.lora_B[adapter].weight
    b.data /= factor
    state = optimizer.state.get(b, {}) if optimizer is not None else {}
    for known, name, power in (
        (state, "exp_avg", 1),
        (state, "exp_avg_sq", 2),
        (averages.tensors, "gradient_b", 1),
        (averages.tensors, "curvature_b", 2),
    ):
        if name in known:
            known[name] *= factor**power


def last_update_norm(parameter: Tensor, optimizer: torch.optim.Optimizer | None) -> float:
    """Length of AdamW's last update of a parameter (without weight decay), from its moments.

    Raises:
        InputError: there is no such state.
    """
    state = optimizer.state.get(parameter) if optimizer is not None else None
    if not state or "exp_avg" not in state or "exp_avg_sq" not in state:
        given = type(optimizer).__name__ if optimizer is not None else "no optimizer"
        raise InputError(
            f"newton+compensate steps no further than AdamW's last update, and {given} has no moments of a LoRA "
            "parameter: pass the torch.optim.AdamW that trains it to step(), or use recovery='compensate'."
        )
    assert optimizer is not None
    group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
    beta1, beta2 = group["betas"]
    count = float(state["step"])
    mean = state["exp_avg"] / (1 - beta1**count)
    spread = (state["exp_avg_sq"] / (1 - beta2**count)).sqrt() + group["eps"]
    return float(group["lr"] * (mean / spread).norm())


def whole(alpha: float) -> float | int:
    """16.0 -> 16: how PEFT writes it."""
    return int(alpha) if float(alpha).is_integer() else alpha


def tell_peft(model: PeftModel, layers: dict[str, Any]) -> None:
    """The adapter's configuration says the ranks and alphas that give these shapes the scaling they have."""
    (adapter,) = model.active_adapters
    config = model.peft_config[adapter]
    assert isinstance(config, LoraConfig)
    ranks = {path: layer.lora_A[adapter].weight.shape[0] for path, layer in layers.items()}
    alphas = {path: layer.scaling[adapter] * ranks[path] for path, layer in layers.items()}
    for path, layer in layers.items():
        layer.r[adapter], layer.lora_alpha[adapter] = ranks[path], alphas[path]
        layer.use_rslora[adapter] = False
    config.use_rslora = False  # alpha / r gives the same scaling
    common = max(set(ranks.values()), key=list(ranks.values()).count)
    typical = next(alpha for path, alpha in alphas.items() if ranks[path] == common)
    config.r, config.lora_alpha = common, whole(typical)  # type: ignore[assignment]  # PEFT takes fractions
    config.rank_pattern = {path: rank for path, rank in ranks.items() if rank != common}
    config.alpha_pattern = {path: whole(alpha) for path, alpha in alphas.items() if alpha != typical}
