"""Scoring one layer's components, and what those that stay do when others go."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..models.surgery import LoraFactors
from ..system.machine.devices import precise
from .criteria import RankCriterion, RankEvidence
from .layers import last_update_norm
from .recovery import compensation, damped, inverse_of, newton_step, rise_of_set


@dataclass(frozen=True)
class RankCut:
    """What one cut did."""

    step: int
    removed: dict[str, int]
    """Layer -> components that went."""
    ranks: dict[str, int]
    """Layer -> rank after it."""


@dataclass(frozen=True, eq=False)
class LayerNow:
    """One LoRA layer at a cut."""

    path: str
    step: int
    lora: LoraFactors
    known: dict[str, Tensor]
    """Moving averages of its steps, as in `Averages`."""
    damping: float
    optimizer: torch.optim.Optimizer | None
    """The one that trains it: a Newton step is no longer than its last update."""

    def precisely(self) -> "LayerNow":
        """The same, what is known of it where there is float64."""
        return replace(self, known={name: found.to(precise(found.device)) for name, found in self.known.items()})

    def inverse(self, curvature: str) -> Tensor:
        """(r, r) of a curvature's average, damped."""
        return inverse_of(self.known[curvature], self.damping, f"step {self.step}, {self.path}")

    def newton(self, factor: str, stay: Tensor) -> Tensor:
        """(d, stay) the Newton step of one factor (`a`: of its transpose), no longer than the optimiser's last."""
        longest = last_update_norm(self.lora.b if factor == "b" else self.lora.a, self.optimizer)
        curvature = damped(self.known[f"curvature_{factor}"], self.damping)
        return newton_step(self.known[f"gradient_{factor}"], curvature, stay, longest)


def score(layer: LayerNow, criterion: RankCriterion, recovery: str, seed: int) -> Tensor:
    """(r,) scores of the components, higher stays."""
    layer, place = layer.precisely(), precise(layer.lora.a.device)
    lora, known = layer.lora, layer.known
    moves = criterion.second_order and recovery == "newton+compensate"
    everything = torch.arange(lora.a.shape[0], device=place)
    evidence = RankEvidence(
        path=layer.path,
        a=lora.a.detach().to(place),
        b=lora.b.detach().to(place),
        inverse_a=layer.inverse("curvature_a") if criterion.second_order else None,
        inverse_b=layer.inverse("curvature_b") if criterion.second_order else None,
        taylor=known.get("taylor"),
        second_z=known.get("second_z"),
        inverse_z=layer.inverse("second_z") if criterion.curvature == "activations" else None,
        seed=seed,
        newton_a=layer.newton("a", everything) if moves else None,
        newton_b=layer.newton("b", everything) if moves else None,
    )
    return criterion.score(evidence)


def recover_(layer: LayerNow, criterion: RankCriterion, recovery: str, stay: Tensor, gone: Tensor) -> None:
    """Rewrite the columns that stay of the factor whose predicted rise is lower; both would correct twice."""
    layer, place = layer.precisely(), precise(layer.lora.a.device)
    lora, stay, gone = layer.lora, stay.to(place), gone.to(place)
    factors = {"b": lora.b.detach().to(place), "a": lora.a.detach().to(place).T}
    if criterion.curvature == "activations":
        inverses = {"b": layer.inverse("second_z")}
    else:
        inverses = {name: layer.inverse(f"curvature_{name}") for name in factors}
    rises = {name: rise_of_set(factors[name], inverse, gone) for name, inverse in inverses.items()}
    chosen = "a" if "a" in rises and rises["a"] < rises["b"] else "b"
    change = compensation(factors[chosen], inverses[chosen], gone)[:, stay]
    if recovery == "newton+compensate":
        change = change + layer.newton(chosen, stay)
    with torch.no_grad():
        if chosen == "b":
            lora.b.data[:, stay] += change.to(lora.b)
        else:
            lora.a.data[stay] += change.T.to(lora.a)
