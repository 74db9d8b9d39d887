"""Zeros in the weights, by a pattern: 2:4, 4:8 or anywhere. The shapes stay."""

from .layers import SparseLayer, sparse_layers
from .walk import sparsify_layers

__all__ = ["SparseLayer", "sparse_layers", "sparsify_layers"]
