"""Commands as functions, and what they came to as objects with typed figures.

`commands` runs, `loading` reads what a run left behind; both give the same objects, made of the records alone.
"""

from .commands import adapt, compare, eval, prune
from .compared import ComparedRun, CompareResult
from .evaluated import EvalResult, ModelFigures, TaskScore
from .loading import load_result
from .trained import AdaptResult, PruneResult

__all__ = [
    "AdaptResult",
    "CompareResult",
    "ComparedRun",
    "EvalResult",
    "ModelFigures",
    "PruneResult",
    "TaskScore",
    "adapt",
    "compare",
    "eval",
    "load_result",
    "prune",
]
