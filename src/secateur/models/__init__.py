"""Loading a model, changing it (LoRA merged, units sliced or masked), and looking after it."""

from .loading import load_model
from .sharded_loading import load_sharded
from .surgery import lora_factors, merged_weight

__all__ = ["load_model", "load_sharded", "lora_factors", "merged_weight"]
