"""secateur: prune a large language model's structure while LoRA fine-tunes it.

Public names are imported on first use, so that `import secateur` (and `secateur --help`) loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .callback import PruningCallback
    from .criteria import CRITERIA, Scoring
    from .errors import SecateurError
    from .experts import unstack_experts, unused_experts
    from .families import FAMILIES, Family
    from .pruner import Pruner
    from .ranks import RankPruner

__version__ = "0.1.0"
__all__ = [
    "CRITERIA",
    "FAMILIES",
    "Family",
    "Pruner",
    "PruningCallback",
    "RankPruner",
    "Scoring",
    "SecateurError",
    "unstack_experts",
    "unused_experts",
]

_HOME = {
    "CRITERIA": "criteria",
    "FAMILIES": "families",
    "Family": "families",
    "Pruner": "pruner",
    "PruningCallback": "callback",
    "RankPruner": "ranks",
    "Scoring": "criteria",
    "SecateurError": "errors",
    "unstack_experts": "experts",
    "unused_experts": "experts",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'secateur' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
