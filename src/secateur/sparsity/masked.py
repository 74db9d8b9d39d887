"""LoRA that keeps a pattern of zeros while it trains: y = ((W + s·B·A) ⊙ M)·x, which is what is merged in the end.

B·A is dense, so it is made as a matrix of the weight's size in every forward pass; that is its price (LoRAPrune §1, of
PST). Trained without it, LoRA also learns where the zeros are, and loses that when it is merged.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from ..architecture.units import base_linear, sides_of
from ..models.surgery import lora_layers
from .layers import SparseLayer
from .pst import effective


def keep_pattern_(model: PeftModel, keep: Mapping[str, Tensor]) -> None:
    """Let a model's LoRA layers compute with LoRA masked as their weights are, from here on.

    Args:
        keep: path of a linear -> (out, in) bool, which of its weights stay.
    """
    for path, layer in lora_layers(model).items():
        if path in keep:
            layer.register_forward_hook(_hook(keep[path]))


def _hook(keep: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def masked(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x, bias = args[0], base_linear(layer).bias
        with torch.autocast(x.device.type, enabled=False):
            weight = effective(layer) * keep.to(x.device)
        return functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    return masked


def masked_bytes(model: PreTrainedModel, layers: Sequence[SparseLayer]) -> int:
    """What masked LoRA takes in a training step: of each weight its product, in float32, and its mask.

    Args:
        model: its weights may be on the meta device.
    """
    sides = (sides_of(base_linear(model.get_submodule(path))) for layer in layers for path in layer.linears)
    return sum(5 * rows * columns for rows, columns in sides)
