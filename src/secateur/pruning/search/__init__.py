"""Searching how much each layer loses (`--allocation search`)."""

from .allocator import Allocator, Watch
from .evolution import SearchRecord

__all__ = ["Allocator", "SearchRecord", "Watch"]
