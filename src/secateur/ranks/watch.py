"""Second moments of z = A x, the LoRA layers' inner activations, from the passes that train."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..criteria.base import wide
from ..pruning.taps import Passes, some_tokens, tap


class Activations:
    """Watches the layers' A; `take` gives what a step's micro-batches showed.

    Only positions that the model's `attention_mask` argument lets through count: padding is no activation.

    Args:
        steps_done: optimiser steps so far.
    """

    def __init__(self, steps_done: Callable[[], int]) -> None:
        self._steps_done = steps_done
        self._handles: list[Any] = []
        self._seen: dict[str, tuple[Tensor, Tensor]] = {}

    @property
    def watching(self) -> bool:
        return bool(self._handles)

    def attach(self, model: nn.Module, layers: dict[str, Any]) -> None:
        """Watch these LoRA layers of a PEFT model."""
        self._passes = Passes(model)
        self._handles += self._passes.watch()
        for path, layer in layers.items():
            (adapter,) = layer.active_adapters
            self._handles.append(layer.lora_A[adapter].register_forward_hook(partial(self._hook, path)))

    def detach(self) -> None:
        """Stop watching, and forget."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.forget()

    def forget(self) -> None:
        """Drop what the step under way showed."""
        self._seen.clear()
        if self._handles:
            self._passes.forget()

    def take(self) -> dict[str, Tensor]:
        """Layer -> (r, r) mean of z zᵀ over the step's tokens; forgets it."""
        found = {path: total / count.where(count > 0, 1) for path, (total, count) in self._seen.items()}
        self.forget()
        return found

    def _hook(self, path: str, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        mask = self._passes.of(path).mask
        if not (torch.is_grad_enabled() and output.requires_grad):
            return None
        return tap(output, output, partial(self._observe, path, mask))

    def _observe(self, path: str, mask: Tensor | None, z: Tensor, gradient: Tensor) -> None:
        flat = z.detach().flatten(0, -2)
        where, taken = some_tokens(len(flat), z.shape[-2], self._steps_done())
        flat, count = flat[where], torch.tensor(float(taken), device=z.device)
        # Some models flatten their sequences into one; an expert's tokens are of all sequences and have no mask.
        if mask is not None and mask.numel() == z.shape[:-1].numel():
            # As weights of 0 and 1, since picking tokens by a mask would wait for the device.
            weights = mask.flatten()[where].to(flat)
            flat, count = flat * weights.unsqueeze(1), weights.sum(dtype=torch.float32)
        moment = wide(flat.T @ flat)
        if path in self._seen:
            moment, count = moment + self._seen[path][0], count + self._seen[path][1]
        self._seen[path] = moment, count
