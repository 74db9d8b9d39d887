"""What goes into linears, summed over tokens: Σ x·xᵀ, or Σ x² alone."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..architecture.units import Linear, sides_of

L = TypeVar("L", bound=Linear)


class Moments:
    """Sums over the tokens that go through linears; those of one input share one sum.

    Args:
        linears: name -> linear.
        squares: sum x² alone, (columns,), in the place of x·xᵀ, (columns, columns).
    """

    def __init__(self, linears: Mapping[str, nn.Module], *, squares: bool = False) -> None:
        self.linears, self.squares = linears, squares
        self.counts: Tensor | None = None
        """(tokens,) bool, which tokens of the batch under way count; None: all."""
        self._sums: dict[str, Tensor] = {}
        self._origin: dict[str, str] = {}
        self._last: tuple[Any, str] = (None, "")

    def __getitem__(self, name: str) -> Tensor:
        """The sum of a linear's inputs, in float32 (float64 of such inputs); KeyError of one that had none."""
        return self._sums[self._origin[name]]

    def __contains__(self, name: str) -> bool:
        return name in self._origin

    def get(self, name: str) -> Tensor | None:
        """The same, and None of one that had none."""
        return self._sums.get(self._origin.get(name, name))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Add what goes through the linears inside."""
        hooks = [linear.register_forward_pre_hook(self._hook(name)) for name, linear in self.linears.items()]
        try:
            yield
        finally:
            self._last = (None, "")
            for hook in hooks:
                hook.remove()

    def _hook(self, name: str) -> Any:
        def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            tensor, (last, other) = inputs[0], self._last
            if name not in self._origin:
                self._origin[name] = other if last is tensor else name
            if self._origin[name] != name:
                return
            self._last = (tensor, name)
            flat = tensor.detach().reshape(-1, tensor.shape[-1])
            flat = flat if flat.dtype == torch.float64 else flat.float()
            if self.counts is not None:
                flat = flat[self.counts]
            with torch.autocast(flat.device.type, enabled=False):  # rounded, they have negative eigenvalues
                found = flat.square().sum(0) if self.squares else flat.T @ flat
            self._sums[name] = found + self._sums.get(name, 0)

        return add


def in_portions(linears: Mapping[str, L], most_bytes: int) -> Iterable[dict[str, L]]:
    """The linears in order, as many at a time as their second moments (float32) fit into so many bytes."""
    portion: dict[str, L] = {}
    size = 0
    for name, linear in linears.items():
        own = 4 * sides_of(linear)[1] ** 2
        if portion and size + own > most_bytes:
            yield portion
            portion, size = {}, 0
        portion[name], size = linear, size + own
    if portion:
        yield portion
