"""Masks: units that are out are zeroed at the input of `o` and `down`, the same function as removing them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..architecture.depth import entering, layer_prefixes, with_states
from ..architecture.units import Units
from ..system.errors import InputError


class Masks:
    """Input masks of a model's `o` and `down` (LoRAPrune Eqs. 12, 13); what comes out of a layer that is out is what
    came in.

    Args:
        modules: path -> linear of a unit.
        layers: path -> layer that is a unit.
    """

    def __init__(self, units: Units, modules: Mapping[str, nn.Module], layers: Mapping[str, nn.Module]) -> None:
        self._pools, self._prefixes = units.pools, layer_prefixes(units)
        self._masks: dict[str, Tensor] = {}
        self._skipped: set[str] = set()
        self._on = True
        self._hooks: list[Any] = [
            modules[path].register_forward_pre_hook(self._hook(path))
            for path in dict.fromkeys(gate.linear for pool in units.pools for gate in pool.gates)
        ]
        self._hooks += [
            layer.register_forward_hook(self._layer_hook(path), with_kwargs=True) for path, layer in layers.items()
        ]

    def update(self, keep: Mapping[str, Tensor]) -> None:
        """1 at entries of units that stay, else 0."""
        self._skipped = {path for name, path in self._prefixes.items() if not keep[name].all()}
        self._masks = {}
        for pool in (pool for pool in self._pools if not keep[pool.name].all()):
            for gate in pool.gates:  # heads and their block have the same
                mask = self._masks.setdefault(gate.linear, torch.ones(gate.size))
                mask[gate.entries(~keep[pool.name])] = 0

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

    def _layer_hook(self, path: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if path not in self._skipped or not self._on:
                return None
            return with_states(output, entering(args, kwargs))

        hook.masks = self  # type: ignore[attr-defined]
        return hook

    @property
    def hide(self) -> bool:
        """Whether any unit is out."""
        return bool(self._masks or self._skipped)


def check_unmasked(modules: Iterable[nn.Module]) -> None:
    """Refuse a model on which another pruner's masks hide units.

    Raises:
        InputError: there are some.
    """
    # Gains that are trained (`models.surgery.gains`) hide nothing: they are sliced and folded with the weights.
    hooks = [hook for each in modules for hook in (*each._forward_pre_hooks.values(), *each._forward_hooks.values())]
    if any(masks.hide for hook in hooks if (masks := getattr(hook, "masks", None)) is not None):
        raise InputError(
            "another pruner's masks hide units of this model, or scale them: export that pruner's result, and prune "
            "what was written."
        )
