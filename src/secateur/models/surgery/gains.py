"""A gain per unit at the input of o and down: a parameter of its own, that a cut slices and an export folds.

What LoRA of a low rank cannot say: each unit louder or softer by itself. The linear reads x ⊙ (1 + δ), with one δ for
all columns of a unit, which is (W + s·B·A)·diag(1 + δ) on x. δ starts at 0: held as 1 + δ in the precision of the
activations (bfloat16: steps of 0.8 %), small changes would not reach the forward pass. After GRASPrune
(arXiv:2604.19398), which calibrates such scales of a frozen model when its masks are settled, and folds them.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ...architecture.units import GAIN, Member, Units, base_linear

NAME = GAIN


class Gain:
    """The forward pre-hook of a linear that has gains; `gain` is what its input is multiplied by.

    Args:
        module: a linear or a LoRA layer, which gets δ (units,) as a parameter.
        gate: which columns its units have.
    """

    def __init__(self, module: nn.Module, gate: Member) -> None:
        weight = base_linear(module).weight
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        module.register_parameter(NAME, nn.Parameter(torch.zeros(len(gate.index), dtype=wide, device=weight.device)))
        self.module = module
        self.hold(_units_of(gate))

    def hold(self, index: Tensor) -> None:
        """Note the number of each column's unit (columns,)."""
        units = int(index.max()) + 1 if len(index) else 1
        self.index, self.each = index, len(index) // units
        self.regular = torch.equal(index, torch.arange(units).repeat_interleave(self.each))

    @property
    def gain(self) -> Tensor:
        """(columns,) 1 + δ of each column's unit."""
        delta: Tensor = self.module.get_parameter(NAME).detach()
        return 1 + delta[self.index.to(delta.device)]

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0]
        delta: Tensor = getattr(module, NAME)  # a plain tensor under torch.func.functional_call
        if not self.regular:
            delta = delta[self.index.to(delta.device)]
        elif self.each > 1:  # an index's backward pass may add in an order of its own
            delta = delta.repeat_interleave(self.each)
        return (torch.addcmul(x, x, delta.to(x.dtype)), *args[1:])


def add_gains_(base: nn.Module, units: Units) -> list[str]:
    """Gains of 1 at every gate of a model; -> the names of their parameters."""
    names = []
    for gate in (gate for pool in units.pools for gate in pool.gates):
        module = base.get_submodule(gate.linear)
        module.register_forward_pre_hook(Gain(module, gate))
        names.append(f"{gate.linear}.{NAME}")
    return names


def slice_gain_(module: nn.Module, gate: Member, stay: Tensor) -> tuple[nn.Parameter, nn.Parameter] | None:
    """Leave the gains of the units that stay (units,); -> the old parameter and the new one, where there are gains."""
    hook = next((hook for hook in module._forward_pre_hooks.values() if isinstance(hook, Gain)), None)
    if hook is None:
        return None
    old = module.get_parameter(NAME)
    new = nn.Parameter(old.data[stay.to(old.device)], requires_grad=old.requires_grad)
    module.register_parameter(NAME, new)
    left = hook.index[gate.entries(stay)]
    hook.hold((stay.cumsum(0) - 1)[left])
    return old, new


def _units_of(gate: Member) -> Tensor:
    """(columns,) the number of each column's unit."""
    found = torch.empty(gate.size, dtype=torch.long)
    found[gate.index] = torch.arange(len(gate.index)).unsqueeze(1)
    return found
