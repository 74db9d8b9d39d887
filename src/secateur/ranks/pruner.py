"""The rank pruner: watches LoRA's gradients, and removes rank components on schedule. Knows no Trainer."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from ..config.options import with_given
from ..config.ranks import RankOptions
from ..models.devices import without_autocast
from ..models.surgery import check_shapes, lora_factors, lora_layers
from ..parallel.distributed import average_, check_agreement, check_weights, trained_weights
from ..parallel.replicas import unwrapped, watch_for_wrappers_
from ..pruning.checks import NO_LENGTH, Loop, check_bounds, check_steps
from ..pruning.schedule import Schedule
from ..pruning.state import load_state, restoring, save_state
from ..system.errors import InputError, NumericsError
from ..system.voice import speaks_python
from .basis import turn_
from .checks import check_adapter, check_options, rank_schedule
from .choice import lowest_of_all, lowest_of_each
from .criteria import RANK_CRITERIA
from .cut import LayerNow, RankCut, recover_, score
from .layers import Averages, check_gradients, rescale_, slice_components_, step_facts, tell_peft
from .watch import Activations

STATE = "rank_pruner"
"""Name of the state's files in a checkpoint."""


class RankPruner:
    """Prunes a LoRA adapter from its rank down to a lower one while it trains.

    In a loop: `loss.backward(); pruner.observe(); optimizer.step(); pruner.step(optimizer); optimizer.zero_grad()`;
    in Trainer, `PruningCallback(pruner)`.

    Removal is physical: A (r, in), B (out, r) and their AdamW moments shrink.

    Args:
        model: a `PeftModel` with one plain LoRA adapter.
        options: a `RankOptions`, or none for its defaults.
        total_steps: optimiser steps of the run; may be left to `begin`.
        merges: the result will be merged into the base weights. Otherwise a start that has moved a part of them into
            the adapter (PiSSA, OLoRA) is warned of: saved alone, it fits no model.
        given: any option of `RankOptions` by its name (`rank=8`, `basis="singular"`, ...), in the place of what
            `options` says; each is explained there. `k1` and `k2` are PrunedLoRA's K₁ and K₂.
    Raises:
        InputError: no plain LoRA, a target above the adapter's rank, options out of range.
    """

    @speaks_python()
    def __init__(
        self,
        model: nn.Module,
        options: RankOptions | None = None,
        *,
        total_steps: int | None = None,
        merges: bool = False,
        **given: Any,
    ) -> None:
        if options is None and "rank" not in given:
            raise InputError("no rank is given: say with which one the adapter ends, such as rank=8.")
        self.options = with_given(RankOptions() if options is None else options, given, RankOptions)
        check_bounds(self.options)
        model = unwrapped(model)
        check_adapter(model, merges)
        assert isinstance(model, PeftModel)
        self.model = model
        watch_for_wrappers_(model)
        self.layers = lora_layers(model)
        check_options(self.options, list(self.ranks.values()))
        self.rank, self.criterion = self.options.rank, RANK_CRITERIA[self.options.criterion]
        self.start_ranks = self.ranks
        self._start_scalings = {path: lora_factors(layer).scaling for path, layer in self.layers.items()}
        self.steps_done, self.cuts = 0, list[RankCut]()
        self._averages = {path: Averages() for path in self.layers}
        self._activations = Activations(lambda: self.steps_done)
        self._loop, self.total_steps = Loop(), 0
        self.schedule: Schedule | None = None
        if total_steps is not None:
            self.begin(total_steps)
        if self.criterion.wants_activations(self.options) and self._cuts_ahead:
            self._activations.attach(model, self.layers)

    @property
    def replaces(self) -> bool:
        """Whether cuts put other parameters in the place of those that are trained."""
        return True

    @speaks_python()
    def begin(self, total_steps: int) -> None:
        """Fix the schedule for a run of `total_steps` optimiser steps."""
        self.total_steps = check_steps(total_steps)
        self.schedule = rank_schedule(self.options, max(self.start_ranks.values()), self.total_steps)
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

    @speaks_python()
    @without_autocast()
    def observe(self) -> None:
        """Take this step's gradients into the moving averages; before the update, on final gradients.

        Raises:
            NumericsError: a gradient is not finite; names layer and step.
        """
        if self.schedule is None:
            raise InputError(NO_LENGTH)
        watch_for_wrappers_(self.model)
        self._loop.observe(self.model)
        if not self._cuts_ahead:
            return
        check_gradients({path: lora_factors(layer) for path, layer in self.layers.items()}, self.steps_done + 1)
        seen_z = self._activations.take()
        wanted = {
            "curvature": self.criterion.wants_curvature(self.options),
            "gradients": self.options.recovery == "newton+compensate",
            "first_order": self.criterion.first_order,
        }
        for path, layer in self.layers.items():
            lora = lora_factors(layer)
            fresh = step_facts(lora.a.detach(), lora.b.detach(), lora.a.grad, lora.b.grad, **wanted)
            if path in seen_z:
                fresh["second_z"] = seen_z[path]
            self._averages[path].mix(fresh, self.options.fisher_decay)
        self._loop.took(self.model)

    def skip(self) -> None:
        """Leave a step out, in place of `observe`."""
        self._loop.skip()
        self._activations.forget()

    @speaks_python()
    @without_autocast()
    def step(self, optimizer: torch.optim.Optimizer | None = None) -> RankCut | None:
        """Count an optimiser update, and cut when the schedule says so.

        Args:
            optimizer: the one that trains the adapter; its moments shrink too.
        Raises:
            DisagreementError: at a cut, one step after it or at the run's last step, processes hold other weights.
        """
        if self.schedule is None:
            raise InputError(NO_LENGTH)
        self._loop.step(optimizer, cuts=True)
        self.steps_done += 1
        if not self.schedule.is_cut(self.steps_done) or self.rank == max(self.start_ranks.values()):
            if self.steps_done == self.total_steps or self.schedule.is_cut(self.steps_done - 1):
                check_weights(self.model, self.steps_done)
            return None
        self._check_known()
        before = self.ranks
        self.share()
        if self.options.basis != "given":
            for path, layer in self.layers.items():
                turn_(lora_factors(layer), self._averages[path], optimizer, self.options.basis)
        chosen: dict[str, Tensor] = {}
        for path, gone in self._choose(self.schedule.progress(self.steps_done), optimizer).items():
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

    def _check_known(self) -> None:
        """The averages hold something, where something is to be looked up in them, on the layers' devices."""
        own, options = self.criterion, self.options
        needs = own.wants_curvature(options) or own.first_order or own.wants_activations(options)
        for path, averages in self._averages.items():
            if needs and not averages.tensors:
                self._loop.check_observed()
                raise NumericsError(
                    f"step {self.steps_done}: no step before the first cut had finite gradients, so nothing is known "
                    f"of the components of {path}: lower --lr, or compute in float32."
                )
            averages.to_(lora_factors(self.layers[path]).a.device)

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

    @speaks_python()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ranks (as shapes: the weights are loaded into them afterwards), averages and step count."""
        self.steps_done = int(state["steps_done"])
        self.cuts = [RankCut(**cut) for cut in state["cuts"]]
        for path, rank in state["ranks"].items():
            slice_components_(self.layers[path], torch.arange(rank), None)
            if self.options.scaling == "rank":
                rescale_(self.layers[path], self._scaling(path), None, None)
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

    def record(self) -> dict[str, Any]:
        """What `ranks.json` holds: each layer's rank at the start, after each cut, and at the end."""
        cuts = [{"step": cut.step, "ranks": cut.ranks} for cut in self.cuts]
        return {"start": self.start_ranks, "cuts": cuts, "end": self.ranks}

    def save(self, folder: Path) -> None:
        """Write the state as rank_pruner.safetensors and rank_pruner.json."""
        save_state(self.state_dict(), folder, STATE)

    @speaks_python()
    def load(self, folder: Path) -> None:
        """Restore what `save` wrote."""
        with restoring(folder):
            self.load_state_dict(load_state(folder, STATE))

    def _choose(self, progress: float, optimizer: torch.optim.Optimizer | None) -> dict[str, Tensor]:
        """Layer -> components that go now, ascending."""
        scores = {
            path: score(self._now(path, optimizer), self.criterion, self.options.recovery, self.options.seed).cpu()
            for path in self.layers
        }
        lowest = lowest_of_each if self.options.allocation == "uniform" else lowest_of_all
        return lowest(scores, self.start_ranks, self.rank, progress)

    def _now(self, path: str, optimizer: torch.optim.Optimizer | None) -> LayerNow:
        lora, known = lora_factors(self.layers[path]), self._averages[path].tensors
        return LayerNow(path, self.steps_done, lora, known, self.options.damping, optimizer)

    def _remove(self, path: str, gone: Tensor, optimizer: torch.optim.Optimizer | None) -> None:
        """Recover one factor, drop the components from both."""
        layer = self._now(path, optimizer)
        gone = gone.to(layer.lora.a.device)
        stay = (everything := torch.arange(layer.lora.a.shape[0], device=gone.device))[~torch.isin(everything, gone)]
        if self.options.recovery != "none":
            recover_(layer, self.criterion, self.options.recovery, stay, gone)
        slice_components_(self.layers[path], stay, optimizer)
        self._averages[path].slice_(stay)
        if self.options.scaling == "rank":
            rescale_(self.layers[path], self._scaling(path), self._averages[path], optimizer)

    def _scaling(self, path: str) -> float:
        """What a layer's `scaling` is at its rank now, where it follows it."""
        rank = lora_factors(self.layers[path]).a.shape[0]
        return float(self._start_scalings[path] * (self.start_ranks[path] / rank) ** 0.5)
