"""LoRA's layers in a model, their factors, and the weights that they come to."""

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ...architecture.units import base_linear, weight_of
from ...parallel.sharding import gathered
from ...system.errors import InputError


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """PEFT's LoRA layers by their path in the base model."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return {plain(path): module for path, module in base.named_modules() if isinstance(module, LoraLayer)}


def plain(name: str) -> str:
    """The name of a module or weight as it is without `torch.compile`'s wrappers of parts of the model."""
    return name.replace("_orig_mod.", "")


def is_embedding(layer: LoraLayer) -> bool:
    """Whether LoRA is on an embedding, whose weight is stored (in, out)."""
    return isinstance(layer.get_base_layer(), nn.Embedding)


def check_mergeable(model: nn.Module) -> None:
    """Refuse adapters that are not plain LoRA on linears: they would not merge into sliced weights.

    Raises:
        InputError: names the module and what is not supported.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    shared = base.get_input_embeddings().weight if isinstance(base, PreTrainedModel) else None
    head = base.get_output_embeddings() if isinstance(base, PreTrainedModel) else None
    head = head.get_base_layer() if isinstance(head, LoraLayer) else head
    if head is None or head.weight is not shared:
        shared = None
    for path, module in base.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            raise InputError(
                f"{path} is trained in full beside LoRA (modules_to_save or trainable_token_indices), which does not "
                "merge into the pruned checkpoint: leave it out of the LoRA configuration."
            )
    for path, layer in lora_layers(model).items():
        active = layer.active_adapters
        if len(active) != 1:
            raise InputError(
                f"{path} has {len(active)} active adapters ({', '.join(active)}): secateur prunes with one. "
                "Merge or disable the others first."
            )
        linear = layer.get_base_layer()
        if shared is not None and getattr(linear, "weight", None) is shared:
            raise InputError(
                f"{path}: its weight is the input embedding's too (tie_word_embeddings), so LoRA cannot be merged into "
                "it alone: leave it out of --targets."
            )
        if not isinstance(linear, nn.Linear | Conv1D | nn.Embedding):
            raise InputError(
                f"{path}: LoRA on a {type(linear).__name__} is not supported: use --targets to name linear layers only."
            )
        if layer.lora_variant.get(active[0]) is not None:
            raise InputError(f"{path}: only plain LoRA can be pruned, not variants such as DoRA: set use_dora=False.")
        if layer.lora_bias.get(active[0], False):
            raise InputError(f"{path}: lora_bias=True does not merge into a linear without bias: set it to False.")
        if layer.merged:
            raise InputError(f"{path}: the adapter is merged already: unmerge it before pruning.")


@dataclass(frozen=True)
class LoraFactors:
    """The active adapter of a LoRA layer: effective weight W + scaling·B·A."""

    a: Tensor
    """(r, in)"""
    b: Tensor
    """(out, r)"""
    scaling: float


def lora_factors(layer: nn.Module) -> LoraFactors:
    """The factors of the one active adapter of a PEFT LoRA layer."""
    assert isinstance(layer, LoraLayer)
    (adapter,) = layer.active_adapters
    if adapter in layer.lora_embedding_A:  # an embedding is a linear of one-hot inputs
        return LoraFactors(layer.lora_embedding_A[adapter], layer.lora_embedding_B[adapter], layer.scaling[adapter])
    a, b = layer.lora_A[adapter], layer.lora_B[adapter]
    assert isinstance(a, nn.Linear)
    assert isinstance(b, nn.Linear)
    return LoraFactors(a.weight, b.weight, layer.scaling[adapter])


def merged_weight(layer: nn.Module) -> Tensor:
    """W + s·B·A of a LoRA layer, (out, in), in float32 (float64 for float64) and not rounded; W of a plain linear."""
    if not isinstance(layer, LoraLayer):
        return gathered(weight_of(base_linear(layer)).detach())
    linear: Any = layer.get_base_layer()
    return merged(gathered(weight_of(linear).detach()), lora_factors(layer))


def merged(weight: Tensor, lora: LoraFactors) -> Tensor:
    """W + s·B·A, (out, in), on W's device; wide as `merged_weight`."""
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    delta = lora.b.detach().to(wide) @ lora.a.detach().to(wide)
    return torch.add(weight.to(wide), delta.to(weight.device), alpha=lora.scaling)
