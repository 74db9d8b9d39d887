"""Routing without data: every expert gets its even share of tokens, where memory is counted from shapes alone."""

from typing import Any

import torch
from torch import Tensor, nn


class EvenGating(nn.Module):
    """In the place of JetMoE's router, which asks for numbers: what it gives, with even shares."""

    def __init__(self, router: Any) -> None:
        super().__init__()
        self.layer, self.top_k, self.num_experts = router.layer, router.top_k, router.num_experts

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, list[int], Tensor]:
        """(tokens, width) -> order of the chosen places by expert, their tokens, weights, tokens of each, logits."""
        logits = self.layer(x).float()
        weights = logits.topk(self.top_k, dim=1).values.softmax(1).type_as(x).flatten()
        count = x.shape[0] * self.top_k
        order = torch.arange(count, device=x.device)
        sizes = [count // self.num_experts + (expert < count % self.num_experts) for expert in range(self.num_experts)]
        return order, order // self.top_k, weights[order], sizes, logits


def even_(layers: nn.Module) -> None:
    """Put such ones in the place of all routers of a model's layers."""
    for path, module in list(layers.named_modules()):
        if path.endswith(".router"):
            layers.set_submodule(path, EvenGating(module))
