"""Commands as functions, and what they came to as objects with typed figures.

`commands` runs, `loading` reads what a run left behind; both give the same objects, made of the records alone.
"""

from .commands import adapt, compare, eval, prune, sparsify
from .compared import ComparedRun, CompareResult
from .evaluated import EvalResult, ModelFigures, TaskScore
from .loading import load_result
from .sparsified import SparsifyResult
from .trained import AdaptResult, PruneResult

__all__ = [
    "AdaptResult",
    "CompareResult",
    "ComparedRun",
    "EvalResult",
    "ModelFigures",
    "PruneResult",
    "SparsifyResult",
    "TaskScore",
    "adapt",
    "compare",
    "eval",
    "load_result",
    "prune",
    "sparsify",
]
