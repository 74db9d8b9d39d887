"""Compensation at a cut: what stays takes over what it can of what goes (docs/papers.md).

When the columns P of `down` or `o` go and K stay, the least-squares refit of the layer's output is
W[:, K] += W[:, P]·Xᵀ with X = (C_KK + λI)⁻¹ C_KP and C = E[x xᵀ] of the linear's input. The same X on LoRA's A carries
the adapter along: together exactly the effective weight W + s·B·A. FLAP's alternative replaces what goes by its mean,
a constant that the output's bias takes up (arXiv:2312.11983).
"""

from typing import TypeVar

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ...architecture.units import Units, base_linear, weight_of
from ...config.files.recipes import displaced_refit, less_usual
from ...config.pruning import PruningOptions
from ...criteria import InputMoments
from ...criteria.cholesky import damped_cholesky
from ...models.surgery import lora_factors, merged_weight
from ...parallel.sharding import assign_, gathered
from ...system.errors import InputError
from ...system.machine.devices import doubled

C = TypeVar("C", bound=PruningOptions)
NEEDS = {
    "none": frozenset[str](),
    "lstsq": frozenset({"second_moments"}),
    "bias": frozenset({"input_moments"}),
    "sequential": frozenset[str](),
}
"""Way of compensation -> what it needs to know of the linears' inputs in training."""
REWRITES = {"none": None, "lstsq": "weight", "bias": "bias", "sequential": "weight"}
"""Way of compensation -> the parameter of an o or down that it changes."""
RIDGE = 1.0
"""λ, relative to the mean diagonal of C_KK. Before a cut a run sees inputs of 1,000 to 8,000 tokens, not many more than
there are channels: with 0.01 the refit can double the error on other tokens (docs/results/compensation.md)."""


def check_compensation(how: str, units: Units, modules: dict[str, nn.Module]) -> None:
    """Refuse what the architecture cannot hold.

    Raises:
        InputError: `bias` where o or down has none; `lstsq` or `sequential` where a weight cannot be rewritten;
            `sequential` where layers do not follow one another, or down is an expert's.
    """
    if how not in NEEDS:
        raise InputError(f"--compensate is {how!r}: choose from {', '.join(NEEDS)}.")
    if how == "sequential" and (why := out_of_row(units)):
        raise InputError(f"--compensate sequential: {why}: use --compensate lstsq.")
    for path in (end.linear for pool in units.pools for end in pool.ends):
        linear = base_linear(modules[path])
        if how == "bias" and linear.bias is None:
            raise InputError(
                f"--compensate bias: {path} has no bias to hold the constant, and adding one would change "
                "the architecture: use --compensate lstsq."
            )
        if REWRITES[how] == "weight" and not linear.weight.is_floating_point():
            raise InputError(
                f"--compensate {how} rewrites {path}, whose weight is {linear.weight.dtype}: "
                "load the model without quantisation, or use --compensate none."
            )


def out_of_row(units: Units) -> str | None:
    """Why a model's layers cannot be refitted one after the other, where that is known of its family."""
    family = units.family
    kinds = {
        "a mixture, whose experts share out what the layer makes": family.experts,
        "an encoder-decoder": family.encoder_decoder,
        "a model whose layers use the keys and values of others": family.layers_vary,
    }
    return next((f"{family.name} is {kind}" for kind, holds in kinds.items() if holds), None)


def refit_that_fits(
    config: C, units: Units, modules: dict[str, nn.Module], *, tested: bool = True
) -> tuple[C, str | None]:
    """The options of a run, and what to say of them: a refit that nobody has asked for goes where it cannot be had.

    Args:
        tested: whether such a model was refitted here; whether another's layers follow one another a cut only tells.
    Raises:
        InputError: `check_compensation`, of one that was asked for.
    """
    without, why = less_usual(config, compensate="none"), displaced_refit(config)
    if without is not None:
        untried = f"it was not tried with the layout of {units.family.name} (--recipe stock asks for it)"
        why = out_of_row(units) or (None if tested else untried)
    if why is not None:
        return without or config, f"no refit at the cuts, which is usual: {why}"
    check_compensation(config.compensate, units, modules)
    return config, None


def rewritten_by(how: str, units: Units, modules: dict[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Name -> parameter of an o or down that compensation changes."""
    leaf = REWRITES[how]
    if leaf is None:
        return {}
    return {
        f"{end.linear}.{leaf}": getattr(base_linear(modules[end.linear]), leaf)
        for pool in units.pools
        for end in pool.ends
    }


def compensate_(how: str, module: nn.Module, moments: InputMoments, stay: Tensor, go: Tensor) -> None:
    """Let the columns `stay` of o or down take over for `go`; slicing or masking `go` comes next.

    Args:
        module: the o or down, a PEFT LoRA layer or a plain linear.
        stay, go: (n,) positions along the linear's input.
    """
    with torch.no_grad():
        if how == "bias":
            _absorb_mean_(module, moments.first, go)
        elif how == "lstsq":
            assert moments.second is not None, "second moments were asked for"
            refit = refit_coefficients(moments.second, stay, go, RIDGE)
            _carry_(weight_of(base_linear(module)), refit, stay, go)
            if isinstance(module, LoraLayer):
                _carry_(lora_factors(module).a, refit, stay, go)


def refit_coefficients(second: Tensor, stay: Tensor, go: Tensor, ridge: float) -> Tensor:
    """X = (C_KK + λI)⁻¹ C_KP, (stay, go), in float64: x_P ≈ Xᵀ x_K in the least-squares sense.

    Args:
        second: (columns, columns) C.
        ridge: λ relative to the mean diagonal of C_KK.
    Raises:
        NumericsError: C is not finite.
    """
    wide = doubled(second)
    kept, both = wide[stay][:, stay], wide[stay][:, go]
    level = kept.diagonal().mean()
    if not level:  # an expert that was never chosen: nothing is known that could take over
        return torch.zeros_like(both)
    return torch.cholesky_solve(both, damped_cholesky(kept, ridge, level, "an input of o or down"))


def _carry_(weight: Tensor, refit: Tensor, stay: Tensor, go: Tensor) -> None:
    """weight[:, stay] += weight[:, go]·Xᵀ."""
    stay, go = stay.to(weight.device), go.to(weight.device)
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    whole = gathered(weight.detach())
    gone = whole[:, go].to(wide)
    carried = (whole[:, stay].to(wide) + gone @ refit.T.to(gone)).to(weight.dtype)
    if whole is weight or whole.data_ptr() == weight.data_ptr():
        weight.data[:, stay] = carried
    else:
        assign_(weight, whole.index_copy(1, stay, carried))


def _absorb_mean_(module: nn.Module, mean: Tensor, go: Tensor) -> None:
    """bias += (W + s·B·A)[:, go]·E[x_go]."""
    bias = base_linear(module).bias
    constant = merged_weight(module)[:, go].to(mean.dtype) @ mean[go]
    whole = gathered(bias.detach())
    assign_(bias, whole + constant.to(whole))
