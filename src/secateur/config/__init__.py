"""Every option and its default, written once: a flag, a YAML key and a key of `result.json`. Imports no torch."""

from .adapt import AdaptConfig
from .compare import CompareConfig
from .evaluation import EvalConfig, ReportConfig, SampleConfig
from .hub import PushConfig
from .lora import LoraOptions
from .prune import ExportConfig, PruneConfig, QuickstartConfig
from .pruning import BudgetOptions, PruningOptions, ScoringOptions
from .ranks import RankOptions
from .schedule import ScheduleOptions
from .sparsify import SparsifyConfig
from .speed import BenchConfig, PlanConfig

__all__ = [
    "AdaptConfig",
    "BenchConfig",
    "BudgetOptions",
    "CompareConfig",
    "EvalConfig",
    "ExportConfig",
    "LoraOptions",
    "PlanConfig",
    "PruneConfig",
    "PruningOptions",
    "PushConfig",
    "QuickstartConfig",
    "RankOptions",
    "ReportConfig",
    "SampleConfig",
    "ScheduleOptions",
    "ScoringOptions",
    "SparsifyConfig",
]
