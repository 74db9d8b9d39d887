"""Zeros in the weights, by a pattern: 2:4, 4:8 or anywhere. The shapes stay."""

from .model import sparsify_

__all__ = ["sparsify_"]
