"""An adapter whose layers lose components and gain others, the sum of their ranks unchanged (after ElaLoRA).

Nothing by itself: a contender of adapt.py. Importance is of AdaLoRA's kind: a moving average of |∂L/∂w · w|, the mean
over a component's entries in A plus that in B. Every `every` steps between a tenth and six tenths of the run the
components with the least go, of all layers together, and as many new ones go to the layers whose components have the
most on average. A new one has a random row in A and zeros in B, so the function stays. The idea is ElaLoRA's
(arXiv:2504.00254), whose text and code were not at hand: how many move, and when, is this script's choice.
"""

from typing import Any

import torch
from torch import Tensor, nn

from secateur.models.surgery import lora_factors, lora_layers
from secateur.ranks.choice import lowest_of_all
from secateur.ranks.layers import slice_components_

DECAY = 0.85
SHARE = 0.02
"""Of all components: how many move at a time."""


class Growing:
    """Has what adapt.py calls of a pruner.

    Args:
        rank: that all layers have at the start, and on average at the end.
    """

    def __init__(self, model: nn.Module, *, rank: int, total_steps: int, every: int, seed: int) -> None:
        self.layers: dict[str, Any] = lora_layers(model)
        self.moving = range(total_steps // 10 + every, total_steps * 6 // 10 + 1, every)
        self.moved = max(1, round(SHARE * rank * len(self.layers)))
        self.importance: dict[str, Tensor] = {}
        self.generator = torch.Generator().manual_seed(seed)
        self.steps_done, self.cuts = 0, list[Any]()

    @property
    def ranks(self) -> dict[str, int]:
        return {path: len(lora_factors(layer).a) for path, layer in self.layers.items()}

    @torch.no_grad()
    def observe(self) -> None:
        """Take a step's gradients into the averages."""
        for path, layer in self.layers.items():
            lora = lora_factors(layer)
            assert lora.a.grad is not None
            assert lora.b.grad is not None
            fresh = (lora.a.grad * lora.a).abs().mean(1) + (lora.b.grad * lora.b).abs().mean(0)
            self.importance[path] = DECAY * self.importance.get(path, fresh) + (1 - DECAY) * fresh

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Count an update; where it is time, move components."""
        self.steps_done += 1
        if self.steps_done not in self.moving:
            return
        ranks = self.ranks
        whole = sum(ranks.values())
        gone = lowest_of_all(self.importance, ranks, 0, self.moved / whole)
        best = sorted(ranks, key=lambda path: -float(self.importance[path].mean()))
        for path, components in gone.items():
            if len(components):
                every = torch.arange(ranks[path])
                stay = every[~torch.isin(every, components)]
                slice_components_(self.layers[path], stay, optimizer)
                self.importance[path] = self.importance[path][stay]
        for number in range(sum(map(len, gone.values()))):
            self._grow(best[number % max(1, self.moved // 2)], optimizer)
        assert sum(self.ranks.values()) == whole

    def _grow(self, path: str, optimizer: torch.optim.Optimizer) -> None:
        layer = self.layers[path]
        (adapter,) = layer.active_adapters
        a, b = layer.lora_A[adapter], layer.lora_B[adapter]
        row = torch.randn(1, a.weight.shape[1], generator=self.generator) * a.weight.square().mean().sqrt()
        for holder, dim, extra in ((a, 0, row), (b, 1, torch.zeros(len(b.weight), 1))):
            old = holder.weight
            holder.weight = nn.Parameter(torch.cat([old.data, extra.to(old)], dim))
            setattr(holder, "out_features" if dim == 0 else "in_features", holder.weight.shape[dim])
            state = optimizer.state.pop(old, {})
            for key in ("exp_avg", "exp_avg_sq"):
                if key in state:
                    state[key] = torch.cat([state[key], torch.zeros_like(extra).to(state[key])], dim)
            optimizer.state[holder.weight] = state
            for group in optimizer.param_groups:
                group["params"] = [holder.weight if each is old else each for each in group["params"]]
        seen = self.importance[path]
        self.importance[path] = torch.cat([seen, seen.mean().unsqueeze(0)])  # no reason to go yet
