"""Every option and its default, written once: a flag, a YAML key and a key of `result.json`. Imports no torch."""

from .adapt import AdaptConfig
from .compare import CompareConfig
from .evaluation import EvalConfig, ReportConfig, SampleConfig
from .prune import ExportConfig, PruneConfig, QuickstartConfig
from .speed import BenchConfig, PlanConfig

__all__ = [
    "AdaptConfig",
    "BenchConfig",
    "CompareConfig",
    "EvalConfig",
    "ExportConfig",
    "PlanConfig",
    "PruneConfig",
    "QuickstartConfig",
    "ReportConfig",
    "SampleConfig",
]
