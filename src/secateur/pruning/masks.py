"""Masks: units that are out are zeroed at the input of `o` and `down`, the same function as removing them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..architecture.units import Pool
from ..system.errors import InputError


class Masks:
    """Input masks of a model's `o` and `down` (LoRAPrune Eqs. 12, 13)."""

    def __init__(self, pools: tuple[Pool, ...], modules: Mapping[str, nn.Module]) -> None:
        self._pools = pools
        self._masks: dict[str, Tensor] = {}
        self._on = True
        self._hooks = [
            modules[gate.linear].register_forward_pre_hook(self._hook(gate.linear))
            for pool in pools
            for gate in pool.gates
        ]

    def update(self, keep: Mapping[str, Tensor]) -> None:
        """1 at entries of units that stay, else 0."""
        for pool in self._pools:
            kept = keep[pool.name]
            for gate in pool.gates:
                if kept.all():
                    self._masks.pop(gate.linear, None)
                    continue
                mask = torch.zeros(gate.size)
                mask[gate.entries(kept)] = 1
                self._masks[gate.linear] = mask

    @contextmanager
    def off(self) -> Iterator[None]:
        """The model as it is without masks."""
        self._on = False
        try:
            yield
        finally:
            self._on = True

    def remove(self) -> None:
        """Take the masks off the model for good."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _hook(self, path: str) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            mask = self._masks.get(path)
            if mask is None or not self._on:
                return None
            x = args[0]
            if mask.device != x.device or mask.dtype != x.dtype:
                mask = self._masks[path] = mask.to(x)
            return (x * mask, *args[1:])

        hook.masks = self  # type: ignore[attr-defined]
        return hook

    @property
    def hide(self) -> bool:
        """Whether any unit is out."""
        return bool(self._masks)


def check_unmasked(modules: Iterable[nn.Module]) -> None:
    """Refuse a model on which another pruner's masks hide units.

    Raises:
        InputError: there are some.
    """
    # Gains that are trained (`models.surgery.gains`) hide nothing: they are sliced and folded with the weights.
    hooks = [hook for module in modules for hook in module._forward_pre_hooks.values()]
    if any(masks.hide for hook in hooks if (masks := getattr(hook, "masks", None)) is not None):
        raise InputError(
            "another pruner's masks hide units of this model, or scale them: export that pruner's result, and prune "
            "what was written."
        )
