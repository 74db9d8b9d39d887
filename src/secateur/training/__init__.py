"""A checked job, its training, its checkpoints and records."""

from .callback import PruningCallback
from .checkpoints import find_latest

__all__ = ["PruningCallback", "find_latest"]
