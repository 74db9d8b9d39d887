"""Changing a model: merging LoRA, slicing weights with what the optimiser keeps of them, gains at units."""

from .lora import (
    LoraFactors,
    check_mergeable,
    is_embedding,
    lora_factors,
    lora_layers,
    merged,
    merged_weight,
    plain,
)
from .slicing import (
    Sliced,
    check_shapes,
    merged_and_sliced,
    removals,
    shrink_,
    swap_parameters_,
)

__all__ = [
    "LoraFactors",
    "Sliced",
    "check_mergeable",
    "check_shapes",
    "is_embedding",
    "lora_factors",
    "lora_layers",
    "merged",
    "merged_and_sliced",
    "merged_weight",
    "plain",
    "removals",
    "shrink_",
    "swap_parameters_",
]
