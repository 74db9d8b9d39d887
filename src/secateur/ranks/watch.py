"""Second moments of z = A x, the LoRA layers' inner activations, from the passes that train."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..taps import some_tokens, tap


class Activations:
    """Watches the layers' A; `take` gives what a step's micro-batches showed.

    Only positions that the model's `attention_mask` argument lets through count: padding is no activation.
    """

    def __init__(self) -> None:
        self._handles: list[Any] = []
        self._seen: dict[str, list[Tensor]] = {}
        self._mask: Tensor | None = None
        self._steps_done: Callable[[], int] = int

    @property
    def watching(self) -> bool:
        return bool(self._handles)

    def attach(self, model: nn.Module, layers: dict[str, Any], steps_done: Callable[[], int]) -> None:
        """Watch these LoRA layers of a PEFT model; which tokens are looked at changes with the step."""
        self._steps_done = steps_done
        self._handles.append(model.register_forward_pre_hook(self._read_mask, with_kwargs=True))
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

    def take(self) -> dict[str, Tensor]:
        """Layer -> (r, r) mean of z zᵀ over the step's tokens; forgets it."""
        found = {path: torch.stack(seen).mean(0) for path, seen in self._seen.items()}
        self.forget()
        return found

    def _read_mask(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        self._mask = mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None

    def _hook(self, path: str, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        if not (torch.is_grad_enabled() and output.requires_grad):
            return None
        return tap(output, output, partial(self._observe, path, self._mask))

    def _observe(self, path: str, mask: Tensor | None, z: Tensor, gradient: Tensor) -> None:
        flat = z.detach().flatten(0, -2)
        # Some models flatten their sequences into one; an expert's tokens are of all sequences and have no mask.
        padded = mask is not None and mask.numel() == len(flat)
        if mask is not None and padded:
            flat = flat[mask.flatten().to(flat.device)]
        where, count = some_tokens(len(flat), z.shape[-2], self._steps_done(), alone=padded)
        if count:
            some = flat[where]
            wide = some.double() if some.dtype == torch.float64 else some.float()
            self._seen.setdefault(path, []).append(wide.T @ wide / count)
