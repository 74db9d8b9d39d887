"""What a search takes, and the loss without each layer, from sizes alone: `plan` counts it."""

from ...architecture.units import Units
from .evolution import FEW, OFFSPRING, SURVIVORS

STARTS = 3
"""Allocations that it begins with, each looked at on all tokens."""
PASSES_OF_A_GRADIENT = 3
"""Forward passes that a forward and a backward pass come to."""


def search_bytes(vocabulary: int, tokens: int, itemsize: int) -> int:
    """Bytes of the model's logits before the cut, which candidates are compared with, in the host's memory.

    Args:
        tokens: that the fitness is of, in this process.
        itemsize: bytes of a logit.
    """
    return vocabulary * tokens * itemsize


def ablation_flops(units: Units, head: tuple[int, int], tokens: int) -> float:
    """FLOPs of the loss without each layer or block that is a unit, at one cut, and of the whole model's.

    Args:
        head: (vocabulary, width) of the output layer.
    """
    return 2.0 * tokens * (units.prunable_params + head[0] * head[1]) * (1 + len(units.pools))


def search_flops(units: Units, head: tuple[int, int], tokens: int, evaluations: int) -> float:
    """FLOPs of a search over so many candidates, as if none of them were smaller than the model.

    Args:
        head: (vocabulary, width) of the output layer.
    """
    forward = 2.0 * tokens * (units.prunable_params + head[0] * head[1])
    generation = (OFFSPRING + PASSES_OF_A_GRADIENT) / FEW + SURVIVORS * (1 - 1 / FEW)
    return forward * (1 + min(STARTS, evaluations) + max(0, evaluations - STARTS) / OFFSPRING * generation)
