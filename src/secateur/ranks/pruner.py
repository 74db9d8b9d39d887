"""The rank pruner: watches LoRA's gradients, and removes rank components on schedule. Knows no Trainer."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from ..distributed import average_, check_agreement, trained_weights
from ..errors import InputError, NumericsError
from ..schedule import Schedule, make_schedule, make_stepwise
from ..state import load_state, restoring, save_state
from ..surgery import check_mergeable, check_shapes, lora_factors, lora_layers
from .criteria import RANK_CRITERIA, RankEvidence
from .layers import Averages, last_update_norm, slice_components_, step_facts, tell_peft
from .recovery import compensation, damped, newton_step, rise_of_set
from .watch import Activations

RECOVERIES = ("none", "compensate", "newton+compensate")
STATE = "rank_pruner"
"""Name of the state's files in a checkpoint."""


@dataclass(frozen=True)
class RankCut:
    """What one cut did."""

    step: int
    removed: dict[str, int]
    """Layer -> components that went."""
    ranks: dict[str, int]
    """Layer -> rank after it."""


class RankPruner:
    """Prunes a LoRA adapter from its rank down to a lower one while it trains.

    In a loop: `loss.backward(); pruner.observe(); optimizer.step(); pruner.step(optimizer); optimizer.zero_grad()`;
    in Trainer, `PruningCallback(pruner)`.

    Removal is physical: A (r, in), B (out, r) and their AdamW moments shrink. `scaling` stays what it was.

    Args:
        model: a `PeftModel` with one plain LoRA adapter.
        rank: the rank to end with; with `global` allocation, on average.
        total_steps: optimiser steps of the run; may be left to `begin`.
        schedule, prune_start, prune_end, frequency: see `Schedule`.
        k1, k2: in place of `prune_end` and `frequency`, steps between cuts and components per cut and layer
            (PrunedLoRA's K₁ and K₂).
        criterion: one of `RANK_CRITERIA`.
        recovery: `none`, `compensate` or `newton+compensate` (see `recovery`).
        damping: of the curvature, relative to its mean diagonal.
        fisher_decay: weight of the past in the moving averages.
        allocation: `uniform` (the same rank in each layer) or `global` (ranked across layers, at least 1).
    Raises:
        InputError: no plain LoRA, a target above the adapter's rank, options out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        rank: int,
        total_steps: int | None = None,
        schedule: str = "cubic",
        prune_start: float | int = 0.1,
        prune_end: float | int = 0.6,
        frequency: int = 10,
        k1: int | None = None,
        k2: int | None = None,
        criterion: str = "gradient",
        recovery: str = "compensate",
        damping: float = 0.1,
        fisher_decay: float = 0.9,
        allocation: str = "uniform",
        seed: int = 0,
    ) -> None:
        if not isinstance(model, PeftModel):
            raise InputError(f"rank pruning needs a PEFT model with LoRA, and this is a {type(model).__name__}.")
        check_mergeable(model)
        self.model = model
        self.layers = lora_layers(model)
        self._check(rank, recovery, damping, allocation)
        start = max(self.ranks.values())
        self.rank, self.recovery, self.damping, self.decay = rank, recovery, damping, fisher_decay
        self.allocation, self.seed = allocation, seed
        self.criterion = RANK_CRITERIA[criterion]
        self.start_ranks = self.ranks
        self.steps_done = 0
        self.cuts: list[RankCut] = []
        self._averages = {path: Averages() for path in self.layers}
        self._activations = Activations()
        self._make_schedule: Callable[[int], Schedule] = lambda total: rank_schedule(
            schedule, prune_start, prune_end, frequency, total, init_rank=start, rank=rank, k1=k1, k2=k2
        )
        self.schedule: Schedule | None = None
        if total_steps is not None:
            self.begin(total_steps)
        if self.criterion.activations and self._cuts_ahead:
            self._activations.attach(model, self.layers, lambda: self.steps_done)

    def begin(self, total_steps: int) -> None:
        """Fix the schedule for a run of `total_steps` optimiser steps."""
        self.schedule = self._make_schedule(total_steps)
        self._watch_while_needed()

    def _watch_while_needed(self) -> None:
        """Activations pile up where nobody takes them: after the last cut, or where nothing is to go."""
        if not self._cuts_ahead:
            self._activations.detach()

    @property
    def _cuts_ahead(self) -> bool:
        """Whether anything is still to be cut; otherwise nothing need be watched."""
        done = self.schedule is not None and self.steps_done >= self.schedule.last_cut
        return not done and self.rank < max(self.start_ranks.values())

    @property
    def ranks(self) -> dict[str, int]:
        """Layer -> its rank now."""
        return {path: lora_factors(layer).a.shape[0] for path, layer in self.layers.items()}

    @property
    def adapter_parameters(self) -> int:
        """Parameters of the adapter now."""
        factors = [lora_factors(layer) for layer in self.layers.values()]
        return sum(lora.a.numel() + lora.b.numel() for lora in factors)

    def observe(self) -> None:
        """Take this step's gradients into the moving averages; before the update, on final gradients.

        Raises:
            NumericsError: a gradient is not finite; names layer and step.
        """
        assert self.schedule is not None, "begin() comes first, or total_steps"
        if not self._cuts_ahead:
            return
        self._check_gradients()
        seen_z = self._activations.take()
        wanted = {
            "curvature": self._wants_curvature,
            "gradients": self.recovery == "newton+compensate",
            "first_order": self.criterion.first_order,
        }
        for path, layer in self.layers.items():
            lora = lora_factors(layer)
            fresh = step_facts(lora.a.detach(), lora.b.detach(), lora.a.grad, lora.b.grad, **wanted)
            if path in seen_z:
                fresh["second_z"] = seen_z[path]
            self._averages[path].mix(fresh, self.decay)

    @property
    def _wants_curvature(self) -> bool:
        """Whether the score or the recovery uses the gradients' second moments."""
        recovers = self.recovery != "none" and self.criterion.curvature == "gradient"
        return self.criterion.second_order or recovers

    def _check_gradients(self) -> None:
        """All there and finite; the device is asked once."""
        norms = {}
        for path, layer in self.layers.items():
            lora = lora_factors(layer)
            if lora.a.grad is None or lora.b.grad is None:
                raise InputError(f"{path}: LoRA has no gradient: call observe() after backward(), before zero_grad().")
            norms[path] = lora.a.grad.norm() + lora.b.grad.norm().to(lora.a.grad.device)
        finite = torch.stack([norm.to(next(iter(norms.values())).device) for norm in norms.values()]).isfinite()
        for path, good in zip(norms, finite.tolist(), strict=True):
            if not good:
                raise NumericsError(
                    f"step {self.steps_done + 1}: gradients of {path} are not finite: lower --lr, or use float32."
                )

    def skip(self) -> None:
        """Leave a step out, in place of `observe`."""
        self._activations.forget()

    def step(self, optimizer: torch.optim.Optimizer | None = None) -> RankCut | None:
        """Count an optimiser update, and cut when the schedule says so.

        Args:
            optimizer: the one that trains the adapter; its moments shrink too.
        """
        assert self.schedule is not None, "observe() or begin() comes first"
        self.steps_done += 1
        if not self.schedule.is_cut(self.steps_done) or self.rank == max(self.start_ranks.values()):
            return None
        before = self.ranks
        self.share()
        chosen: dict[str, Tensor] = {}
        for path, gone in self._choose(self.schedule.progress(self.steps_done)).items():
            if len(gone):
                chosen[path] = gone
                self._remove(path, gone, optimizer)
        tell_peft(self.model, self.layers)
        check_shapes(self.model, optimizer)
        check_agreement(chosen, self.steps_done, trained_weights(self.model))
        now = self.ranks
        cut = RankCut(self.steps_done, {path: before[path] - now[path] for path in now}, now)
        self.cuts.append(cut)
        if self.steps_done >= self.schedule.last_cut:
            self.close()
        return cut

    def share(self) -> None:
        """Averages over all processes, before a cut or a save; every process must call it.

        Gradients are averaged at each step; what the processes saw of activations, only here.
        """
        average_([seen for own in self._averages.values() if (seen := own.tensors.get("second_z")) is not None])

    def close(self) -> None:
        """Stop watching."""
        self._activations.detach()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later `load_state_dict` needs to go on from here."""
        return {
            "steps_done": self.steps_done,
            "ranks": self.ranks,
            "cuts": [vars(cut) for cut in self.cuts],
            "average_steps": {path: averages.steps for path, averages in self._averages.items()},
            "averages": {
                f"{path}.{name}": value
                for path, averages in self._averages.items()
                for name, value in averages.tensors.items()
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ranks (as shapes: the weights are loaded into them afterwards), averages and step count."""
        self.steps_done = int(state["steps_done"])
        self.cuts = [RankCut(**cut) for cut in state["cuts"]]
        for path, rank in state["ranks"].items():
            slice_components_(self.layers[path], torch.arange(rank), None)
        tell_peft(self.model, self.layers)
        for path, averages in self._averages.items():
            prefix = path + "."
            averages.steps = state["average_steps"][path]
            averages.tensors = {
                key.removeprefix(prefix): value.clone()
                for key, value in state["averages"].items()
                if key.startswith(prefix) and "." not in key.removeprefix(prefix)
            }
        self._watch_while_needed()

    def save(self, folder: Path) -> None:
        """Write the state as rank_pruner.safetensors and rank_pruner.json."""
        save_state(self.state_dict(), folder, STATE)

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote."""
        with restoring(folder):
            self.load_state_dict(load_state(folder, STATE))

    def _check(self, rank: int, recovery: str, damping: float, allocation: str) -> None:
        lowest = min(self.ranks.values(), default=0)
        if not self.layers:
            raise InputError("the model has no LoRA layer: add one with get_peft_model first.")
        if not 1 <= rank <= lowest:
            raise InputError(f"--rank is {rank}: give a rank from 1 to the adapter's {lowest} (--init-rank).")
        if recovery not in RECOVERIES:
            raise InputError(f"--recovery is {recovery!r}: choose from {', '.join(RECOVERIES)}.")
        if allocation not in ("uniform", "global"):
            raise InputError(f"--allocation is {allocation!r}: choose uniform or global.")
        if not damping > 0:
            raise InputError(f"--damping is {damping}: it must be above 0.")

    def _choose(self, progress: float) -> dict[str, Tensor]:
        """Layer -> components that go now, ascending."""
        scores = {path: self._score(path).cpu() for path in self.layers}
        if self.allocation == "uniform":
            chosen = {}
            for path, start in self.start_ranks.items():
                due = round(progress * (start - self.rank)) - (start - len(scores[path]))
                chosen[path] = scores[path].argsort(stable=True)[: max(0, due)].sort().values
            return chosen
        total = sum(self.start_ranks.values())
        due = round(progress * (total - self.rank * len(self.layers))) - (total - sum(map(len, scores.values())))
        ranked = sorted((float(score), path, j) for path, values in scores.items() for j, score in enumerate(values))
        taken: dict[str, list[int]] = {path: [] for path in self.layers}
        for _, path, component in ranked:
            if due <= 0:
                break
            if len(taken[path]) < len(scores[path]) - 1:  # every layer keeps one
                taken[path].append(component)
                due -= 1
        return {path: torch.tensor(sorted(gone), dtype=torch.long) for path, gone in taken.items()}

    def _score(self, path: str) -> Tensor:
        lora, facts = lora_factors(self.layers[path]), self._averages[path].tensors
        second_order = self.criterion.second_order
        evidence = RankEvidence(
            path=path,
            a=lora.a.detach(),
            b=lora.b.detach(),
            inverse_a=self._inverse(facts["curvature_a"]) if second_order else None,
            inverse_b=self._inverse(facts["curvature_b"]) if second_order else None,
            taylor=facts.get("taylor"),
            second_z=facts.get("second_z"),
            inverse_z=self._inverse(facts["second_z"]) if self.criterion.curvature == "activations" else None,
            seed=self.seed,
        )
        return self.criterion.score(evidence)

    def _inverse(self, curvature: Tensor) -> Tensor:
        return torch.cholesky_inverse(torch.linalg.cholesky(damped(curvature, self.damping)))

    def _remove(self, path: str, gone: Tensor, optimizer: torch.optim.Optimizer | None) -> None:
        """Recover one factor, drop the components from both."""
        layer = self.layers[path]
        lora = lora_factors(layer)
        gone = gone.to(lora.a.device)
        everything = torch.arange(lora.a.shape[0], device=gone.device)
        stay = everything[~torch.isin(everything, gone)]
        if self.recovery != "none":
            self._recover_(path, stay, gone, optimizer)
        slice_components_(layer, stay, optimizer)
        self._averages[path].slice_(stay)

    def _recover_(self, path: str, stay: Tensor, gone: Tensor, optimizer: torch.optim.Optimizer | None) -> None:
        """Rewrite the columns that stay of the factor whose predicted rise is lower; both would correct twice."""
        lora, facts = lora_factors(self.layers[path]), self._averages[path].tensors
        factors = {"b": lora.b.detach(), "a": lora.a.detach().T}
        if self.criterion.curvature == "activations":
            inverses = {"b": self._inverse(facts["second_z"])}
        else:
            inverses = {name: self._inverse(facts[f"curvature_{name}"]) for name in factors}
        rises = {name: rise_of_set(factors[name], inverse, gone) for name, inverse in inverses.items()}
        chosen = "a" if "a" in rises and rises["a"] < rises["b"] else "b"
        change = compensation(factors[chosen], inverses[chosen], gone)[:, stay]
        if self.recovery == "newton+compensate":
            parameter = lora.b if chosen == "b" else lora.a
            curvature = damped(facts[f"curvature_{chosen}"], self.damping)
            longest = last_update_norm(parameter, optimizer)
            change = change + newton_step(facts[f"gradient_{chosen}"], curvature, stay, longest)
        with torch.no_grad():
            if chosen == "b":
                lora.b.data[:, stay] += change.to(lora.b)
            else:
                lora.a.data[stay] += change.T.to(lora.a)


def rank_schedule(
    kind: str,
    start: float | int,
    end: float | int,
    frequency: int,
    total_steps: int,
    *,
    init_rank: int,
    rank: int,
    k1: int | None,
    k2: int | None,
) -> Schedule:
    """When components go: between `start` and `end`, or `k2` of them every `k1` steps from `start` on.

    Raises:
        InputError: the run is too short; says how many steps it takes.
    """
    if k1 is None or k2 is None:
        return make_schedule(kind, start, end, frequency, total_steps)
    return make_stepwise(start, k1, k2, init_rank - rank, total_steps)
