"""Loading a model, changing it (LoRA merged, units sliced or masked), and looking after it."""

from .loading import load_model
from .sharded_loading import load_sharded

__all__ = ["load_model", "load_sharded"]
