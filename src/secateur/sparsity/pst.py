"""PST: which weights stay is learnt beside LoRA, entry by entry, from few parameters (arXiv:2205.11005).

W_e = W + β·U·V is LoRA's weight, with U = B and V = A of one rank and β its scaling. Each weight has the score
S = |W_e| + α₁·P·Q + α₂·(R·1ᵀ + 1·Cᵀ), and the lowest share s of each matrix is zero: y = (M ⊙ W_e)·x. The gradient of
the mask M is handed to S as it is (straight through). W and biases are frozen. The share grows along a cubic, and M is
made anew in every forward pass.

As in the authors' public code U and P are drawn from N(0, 1) and all others are zero. Scores are as large as the
weight matrix: several tensors of its size are kept for the backward pass, layer by layer.
"""

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..architecture.units import base_linear, sides_of, weight_of
from ..config.sparsify import Pattern
from ..models.surgery import LoraFactors, lora_factors, lora_layers
from .choice import stays
from .layers import SparseLayer

WARM_UP, FINAL = 0.1, 0.3
"""Of the run: no weight is zero yet, and all are that will be."""
PREFIX = "lora_pst_"
"""Of the scores' parameters in a LoRA layer: by it PEFT writes them into an adapter's file, and reads them."""
PARTS = ("p", "q", "r", "c")


def share_at(step: int, steps: int, share: float) -> float:
    """The share of zeros at an optimiser step, from 1 to `steps`: 0 at first, then 1 − (1 − t)³ of the final one."""
    first, last = WARM_UP * steps, (1 - FINAL) * steps
    if step <= first:
        return 0.0
    return share if step > last else share * (1 - (1 - (step - first) / (last - first)) ** 3)


class Through(torch.autograd.Function):
    """1 where a score is among those that stay, else 0; the gradient goes to the scores as if that were nothing."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, share: float) -> Tensor:
        return stays(scores, Pattern(share), by_row=False).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class Pst:
    """The scores and masks of a model's LoRA layers.

    Args:
        model: with LoRA, whose rank is the scores' too, on the linears that get zeros. Its layers compute (M ⊙ W_e)·x
            from here on.
        share: of zeros in each matrix at the end.
    """

    def __init__(self, model: PeftModel, share: float) -> None:
        self.share, self.now = share, 0.0
        """At the end, and at the step under way."""
        self.layers: dict[str, nn.Module] = lora_layers(model)
        self._hooks: list[Any] = []
        for layer in self.layers.values():
            lora = lora_factors(layer)
            with torch.no_grad():
                lora.b.normal_()
                lora.a.zero_()
            self._add_scores(layer, lora)
            self._hooks.append(layer.register_forward_hook(self._masked))

    def _add_scores(self, layer: nn.Module, lora: LoraFactors) -> None:
        (adapter,) = layer.active_adapters  # type: ignore[misc]
        (rows, rank), (_, columns) = lora.b.shape, lora.a.shape
        sizes: dict[str, tuple[int, ...]] = {
            "p": (rows, rank), "q": (rank, columns), "r": (rows,), "c": (columns,)
        }  # fmt: skip
        for part, size in sizes.items():
            start = torch.randn(size) if part == "p" else torch.zeros(size)
            values = nn.ParameterDict({adapter: nn.Parameter(start.to(lora.b))})
            layer.register_module(PREFIX + part, values)

    def _masked(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = args[0]
        with torch.autocast(x.device.type, enabled=False):
            weight = masked_weight(layer, self.now)
        bias = base_linear(layer).bias
        return functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    def close(self) -> None:
        """Take scores and masks off the model; LoRA's factors stay as they are."""
        for hook in self._hooks:
            hook.remove()
        for layer in self.layers.values():
            for part in PARTS:
                delattr(layer, PREFIX + part)
        self._hooks = []

    def parameters(self) -> list[nn.Parameter]:
        """P, Q, R and C of all layers."""
        parts = (layer.get_submodule(PREFIX + part) for layer in self.layers.values() for part in PARTS)
        return [parameter for part in parts for parameter in part.parameters()]

    def keep(self) -> dict[str, Tensor]:
        """Path of a linear -> (out, in) bool, which of its weights stay at the end."""
        with torch.no_grad():
            return {
                path: stays(scores_of(layer, effective(layer)), Pattern(self.share), by_row=False)
                for path, layer in self.layers.items()
            }


def effective(layer: nn.Module) -> Tensor:
    """W_e = W + β·U·V of a LoRA layer, (out, in), in float32 (float64 of such a weight)."""
    lora, weight = lora_factors(layer), weight_of(base_linear(layer)).detach()
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return weight.to(wide) + lora.scaling * (lora.b.to(wide) @ lora.a.to(wide))


def scores_of(layer: nn.Module, weight: Tensor) -> Tensor:
    """S = |W_e| + P·Q + R·1ᵀ + 1·Cᵀ, (out, in): α₁ = α₂ = 1."""
    (adapter,) = layer.active_adapters  # type: ignore[misc]
    p, q, r, c = (layer.get_submodule(PREFIX + part)[adapter].to(weight) for part in PARTS)  # type: ignore[index]
    return weight.abs() + p @ q + r.unsqueeze(1) + c.unsqueeze(0)


def masked_weight(layer: nn.Module, share: float) -> Tensor:
    """M ⊙ W_e of a LoRA layer, (out, in); its gradient reaches U, V and the scores."""
    weight = effective(layer)
    mask: Tensor = Through.apply(scores_of(layer, weight), share)
    return mask * weight


class PstCallback(TrainerCallback):
    """Moves the share of zeros along; what a run watches of it.

    Args:
        pst: of the model that Trainer trains.
        done: optimiser steps that the run goes on from.
    """

    def __init__(self, pst: Pst, steps: int, done: int = 0) -> None:
        self.pst, self.steps, self.done = pst, steps, done
        pst.now = share_at(done, steps, pst.share)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.pst.now = share_at(min(state.global_step + 1, self.steps), self.steps, self.pst.share)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.done = state.global_step

    def steps_done(self) -> int:
        return self.done

    def facts(self) -> dict[str, Any]:
        return {"sparsity": self.pst.now}

    def words(self) -> str:
        return f"{self.pst.now:.1%} zero"

    def cuts_left(self) -> int:
        return 0

    def sizes(self) -> dict[str, float]:
        return {}


def pst_bytes(model: PreTrainedModel, layers: Sequence[SparseLayer]) -> int:
    """What scores and masks take in a training step: four tensors of each weight's size, in float32.

    Args:
        model: its weights may be on the meta device.
    """
    sides = (sides_of(base_linear(model.get_submodule(path))) for layer in layers for path in layer.linears)
    return sum(4 * 4 * rows * columns for rows, columns in sides)
