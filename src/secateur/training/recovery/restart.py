"""LoRA that begins anew: what it has learnt goes into the base, so that the ranks of its lives add up.

Source: ReLoRA, arXiv:2307.05695 (Alg. 1). There 90 to 99 % of the optimiser's moments are set to zero at a merge; here
all of LoRA's are dropped. The base is held in float32 (`beside`): added in bfloat16, what is small beside the
weight is lost, and again at every merge.
"""

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ...architecture.units import Units, weight_of
from ...config.lora import RecoveryOptions
from ...models.surgery import lora_factors, lora_layers, merged, removals
from ...pruning.schedule import Schedule
from ...system.errors import InputError
from ...system.machine.devices import own_randomness
from ..callback import is_over, plain_optimizer


def restart_steps(options: RecoveryOptions, schedule: Schedule, total_steps: int) -> tuple[int, ...]:
    """The optimiser steps of the training after which LoRA begins anew, ascending.

    Args:
        total_steps: of the run; with the one-shot schedule its scoring steps, which are none of the training, too.
    Raises:
        InputError: the run is over before LoRA would.
    """
    scoring = schedule.start if schedule.kind == "one-shot" else 0
    last, end = schedule.last_cut - scoring, total_steps - scoring
    steps = {step - scoring for step in schedule.cuts()} if options.restarts_at_cuts else set[int]()
    if every := options.restarts_every:
        if last + every >= end:
            raise InputError(
                f"--restart-lora {every}: {end - last} steps follow the last cut: give fewer, or leave it out."
            )
        steps |= set(range(last + every, end, every))
    return tuple(sorted(step for step in steps if step < end))


Columns = Mapping[str, tuple[int, Tensor]]


def columns_left(units: Units, keep: dict[str, Tensor]) -> Columns:
    """Linear -> how many inputs it had at the start, and which of them a cut has left, where it has lost some."""
    sizes = {member.linear: member.size for pool in units.pools for member in pool.members if member.dim == 1}
    return {path: (sizes[path], index) for (path, dim), index in removals(units, keep).items() if dim == 1}


def restart_lora_(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    seed: int,
    init: bool | str = True,
    columns: Columns = MappingProxyType({}),
) -> None:
    """Merge LoRA into the base and begin it anew, in place: the model's function stays, to rounding.

    A is drawn from a random state of its own, B is zero, and the optimiser forgets the moments of both.

    Args:
        optimizer: the one that trains LoRA.
        seed: decides the new A.
        init: as PEFT's `init_lora_weights`.
        columns: of linears that were sliced: A is drawn for all that there were, so that masks come to the same.
    """
    with torch.no_grad(), own_randomness(next(model.parameters()).device):
        torch.manual_seed(seed)
        for path, layer in lora_layers(model).items():
            lora = lora_factors(layer)
            weight = weight_of(layer.get_base_layer())
            weight.copy_(merged(weight, lora))
            (adapter,) = layer.active_adapters
            if path in columns:
                size, left = columns[path]
                factor, sliced = layer.lora_A[adapter], lora.a
                factor.weight = nn.Parameter(sliced.new_empty(sliced.shape[0], size))  # for PEFT to fill
                layer.reset_lora_parameters(adapter, init)
                sliced.copy_(factor.weight.index_select(1, left.to(sliced.device)))
                factor.weight = sliced
            else:
                layer.reset_lora_parameters(adapter, init)
            for parameter in (lora.a, lora.b):
                optimizer.state.pop(parameter, None)


class RestartCallback(TrainerCallback):
    """Begins LoRA anew at the steps that it is given; comes after the pruner's callback, whose cut goes first.

    Args:
        steps: optimiser steps of Trainer.
        seed: of the run.
        init: as PEFT's `init_lora_weights`.
        told: is told what happens, in words.
    """

    def __init__(self, steps: Collection[int], seed: int, init: bool | str, told: Callable[[str], None]) -> None:
        self.steps, self.seed, self.init, self.told = steps, seed, init, told
        self.columns: Callable[[], Columns] = dict
        """Which columns cuts have left; set when there is a pruner."""
        self._now = False

    def note(self) -> dict[str, bool]:
        """What metrics.jsonl says of the step."""
        return {"lora_restarted": True} if self._now else {}

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        step = state.global_step + 1
        self._now = step in self.steps and not is_over(state)
        if self._now:
            seed = (self.seed * 1_000_003 + step) % 2**63
            optimizer = plain_optimizer(kwargs["optimizer"])
            restart_lora_(kwargs["model"], optimizer, seed=seed, init=self.init, columns=self.columns())
            self.told(f"LoRA merged into the base after step {step}, and begun anew")
