"""Which components go at a cut, from all layers' scores."""

import torch
from torch import Tensor


def lowest_of_each(
    scores: dict[str, Tensor], start_ranks: dict[str, int], rank: int, progress: float
) -> dict[str, Tensor]:
    """The lowest scores of each layer, so that all layers lose alike.

    Args:
        scores: layer -> (r,), of the components that are left.
        start_ranks: layer -> rank at the run's start.
        rank: the rank to end with.
        progress: how much of the way from the one to the other is due, 0 to 1.
    Returns:
        Layer -> components that go, ascending.
    """
    chosen = {}
    for path, start in start_ranks.items():
        due = round(progress * (start - rank)) - (start - len(scores[path]))
        chosen[path] = scores[path].argsort(stable=True)[: max(0, due)].sort().values
    return chosen


def lowest_of_all(
    scores: dict[str, Tensor], start_ranks: dict[str, int], rank: int, progress: float
) -> dict[str, Tensor]:
    """The same, ranked across layers: `rank` on average, and every layer keeps one component."""
    total = sum(start_ranks.values())
    due = round(progress * (total - rank * len(scores))) - (total - sum(map(len, scores.values())))
    ranked = sorted((float(score), path, j) for path, values in scores.items() for j, score in enumerate(values))
    taken: dict[str, list[int]] = {path: [] for path in scores}
    for _, path, component in ranked:
        if due <= 0:
            break
        if len(taken[path]) < len(scores[path]) - 1:
            taken[path].append(component)
            due -= 1
    return {path: torch.tensor(sorted(gone), dtype=torch.long) for path, gone in taken.items()}
