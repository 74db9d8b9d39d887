"""secateur: prune a large language model's structure while LoRA fine-tunes it.

Public names are imported on first use, so that `import secateur` (and `secateur --help`) loads no torch.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .system.version import VERSION as __version__

if TYPE_CHECKING:
    from .architecture.experts import unstack_experts, unused_experts
    from .architecture.families import FAMILIES, Family
    from .config.pruning import PruningOptions
    from .config.ranks import RankOptions
    from .criteria import CRITERIA, Scoring
    from .pruning.pruner import Pruner
    from .ranks import RankPruner
    from .results import (
        AdaptResult,
        CompareResult,
        EvalResult,
        PruneResult,
        SparsifyResult,
        adapt,
        compare,
        eval,
        load_result,
        prune,
        sparsify,
    )
    from .system.errors import SecateurError
    from .training.callback import PruningCallback

__all__ = [
    "CRITERIA",
    "FAMILIES",
    "AdaptResult",
    "CompareResult",
    "EvalResult",
    "Family",
    "PruneResult",
    "Pruner",
    "PruningCallback",
    "PruningOptions",
    "RankOptions",
    "RankPruner",
    "Scoring",
    "SecateurError",
    "SparsifyResult",
    "__version__",
    "adapt",
    "compare",
    "eval",
    "load_result",
    "prune",
    "sparsify",
    "unstack_experts",
    "unused_experts",
]

_HOME = {
    "CRITERIA": "criteria",
    "FAMILIES": "architecture",
    "AdaptResult": "results",
    "CompareResult": "results",
    "EvalResult": "results",
    "Family": "architecture",
    "PruneResult": "results",
    "Pruner": "pruning",
    "PruningCallback": "training",
    "PruningOptions": "config",
    "RankOptions": "config",
    "RankPruner": "ranks",
    "Scoring": "criteria",
    "SecateurError": "system",
    "SparsifyResult": "results",
    "adapt": "results",
    "compare": "results",
    "eval": "results",
    "load_result": "results",
    "prune": "results",
    "sparsify": "results",
    "unstack_experts": "architecture",
    "unused_experts": "architecture",
}


# bitsandbytes, which PEFT imports where it is installed, tells of a kernel that only its 4-bit products would use. Set
# here, as processes that a command starts import it too.
logging.getLogger("bitsandbytes.backends").setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'secateur' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
