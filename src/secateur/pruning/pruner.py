"""The pruner: observes gradients, averages scores, and cuts units on schedule.

Knows nothing of Trainer, data or files. In a loop:

    loss.backward(); pruner.observe(); optimizer.step(); pruner.step(); optimizer.zero_grad()
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..architecture.discovery import check_class, family_for, find_units
from ..architecture.experts import expert_lists
from ..architecture.families import Family
from ..architecture.stock import accepts
from ..architecture.units import base_linear
from ..checkpoint.export import ExportReport, export_checkpoint
from ..checkpoint.verify import default_probe
from ..criteria import CRITERIA, Scoring
from ..models.coverage import check_coverage
from ..models.loading import ModelSource, resolve_model
from ..models.masks import Masks
from ..models.original import check_cuttable, restore_
from ..models.surgery import check_mergeable, removals, shrink_
from ..parallel.distributed import check_agreement, share_counts, trained_weights, whole_weights
from ..parallel.sharding import assign_, check_in_memory, gathered, is_sharded
from ..system.errors import InputError, NumericsError
from .allocation import BudgetOptions, make_budget, shape_by_quota
from .averages import Averages
from .budget import Budget
from .compensation import NEEDS, check_compensation, compensate_
from .schedule import Schedule, make_schedule
from .state import load_state, restoring, save_state
from .statistics import Statistics


@dataclass(frozen=True)
class Cut:
    """What one cut did."""

    step: int
    removed: dict[str, list[int]]
    """Pool name -> units that went, ascending."""
    scores: dict[str, list[float]]
    """Pool name -> their averaged scores, in the same order."""
    sparsity: float
    """Fraction of the prunable parameters gone after it."""


class Pruner:
    """Prunes a PEFT LoRA model's attention heads and FFN channels while it is trained.

    At each cut the model shrinks: weights, LoRA factors and optimiser moments are sliced, so the steps that
    follow do less work. With `shrink=False` it is masked until export: the input of `o` and `down` is zero at
    the units that went, which is the same function (LoRAPrune Eqs. 12, 13). What is out stays out.

    Args:
        model: a `PeftModel` with plain LoRA, or (for criteria without LoRA gradients) any causal LM.
        sparsity: fraction of the parameters of the prunable linears to remove, in (0, 1).
        total_steps: optimiser steps of the run; may be left to `begin`, which the Trainer callback calls.
        prune_start, prune_end, frequency, schedule: see `Schedule`; fractions of the run or steps.
        criterion, scoring, ema: what scores a unit, and the weight of the past in its moving average (with the
            one-shot schedule all steps before the cut count alike).
        ema_relative: average each step's scores relative to their mean over all units: squared scores grow with the
            square of the gradient, and the steps just after a cut would outweigh the others.
        compensate: how what stays takes over at a cut: `none`, `lstsq` or `bias` (see `compensation`).
        attention: `auto`, `kv_group`, `query_head` or `none`; the other shape options as in `BudgetOptions`.
        model_class: stock class the result will have (`keep`, or `mistral` for any head count).
        family: layout of a model type that secateur does not know.
        shrink: slice at each cut (`step` then needs the optimiser), or mask; a base in 4 bits can only be masked.

    Attributes:
        units: the units at the start; all names and numbers of units refer to these.
        keep: pool name -> (units,) bool, which of them are left.
        live: the units as they physically are in the model now.
    Raises:
        InputError: unsupported model or adapter, unreachable sparsity, options that contradict.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        sparsity: float,
        total_steps: int | None = None,
        schedule: str = "cubic",
        prune_start: float | int = 0.1,
        prune_end: float | int = 0.6,
        frequency: int = 10,
        criterion: str = "lora",
        scoring: Scoring | None = None,
        ema: float = 0.9,
        ema_relative: bool = False,
        compensate: str = "none",
        attention: str = "auto",
        attention_sparsity: float | None = None,
        allocation: str = "uniform",
        protect_first: int | None = None,
        protect_last: int | None = None,
        floor: float | None = None,
        across_layers: str | None = None,
        round_to: int = 1,
        model_class: str = "keep",
        family: str | Family | None = None,
        shrink: bool = True,
    ) -> None:
        if not 0 < sparsity < 1:
            raise InputError(f"sparsity is {sparsity}: give a number between 0 and 1, such as 0.2.")
        self.model = model
        base = cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)
        self._find_units = partial(find_units, base, family_for(base, base.config.model_type, family), attention)
        self.units = self.live = self._find_units()
        self.shrink = shrink
        self.modules = {path: base.get_submodule(path) for path in self.units.linears}
        check_in_memory(base)
        check_mergeable(model)
        check_cuttable(self.modules, shrink=shrink, compensate=compensate)
        self.model_class = model_class
        self.criterion = CRITERIA[criterion]
        self.budget_options = BudgetOptions(
            sparsity, attention_sparsity, allocation, protect_first, protect_last, floor, round_to,
            across_layers or self.criterion.across_layers, attention,
        )  # fmt: skip
        self.legal = partial(accepts, base.config, self.units.family, model_class=model_class)
        self.budget: Budget = make_budget(self.units, self.budget_options, self.legal)
        if isinstance(family, str) and allocation == "uniform":
            wanted = shape_by_quota(self.units, self.budget.quota)
            check_class(base.config, self.units.family, wanted, model_class)
        self.scoring = self.criterion.options(criterion, scoring or Scoring())
        self._check_coverage()
        check_compensation(compensate, self.units, self.modules)
        self.compensate = compensate
        # Masks come before statistics: what is out has no input to speak of.
        self.masks = None if shrink else Masks(self.units.pools, self.modules)
        past = 1.0 if schedule == "one-shot" else ema
        self.statistics = Statistics(
            model, self.criterion.needs, self.scoring, past, NEEDS[compensate], self.budget.spared
        )
        self._living = self.units.pools
        """Pools of the units that are left, where they are in the model now."""
        self.statistics.attach(self._living, self.modules)
        self._make_schedule: Callable[[int], Schedule] = lambda total: make_schedule(
            schedule, prune_start, prune_end, frequency, total
        )
        self.schedule: Schedule | None = None
        if total_steps is not None:
            self.begin(total_steps)
        self.steps_done = 0
        self.keep = {pool.name: torch.ones(pool.size, dtype=torch.bool) for pool in self.units.pools}
        self.averages = Averages(
            {pool.name: pool.size for pool in self.units.pools}, ema=ema, alike=schedule == "one-shot",
            relative=ema_relative, dtype=torch.float64 if base.dtype == torch.float64 else torch.float32,
        )  # fmt: skip
        self.scores_before_cuts: dict[str, Tensor] = {}
        """The averages of all units just before the first cut."""
        self.cuts: list[Cut] = []

    def begin(self, total_steps: int) -> None:
        """Fix the schedule for a run of `total_steps` optimiser steps."""
        self.schedule = self._make_schedule(total_steps)

    def observe(self) -> None:
        """Score all units from the gradients that training has now, into the moving average (Eq. 11).

        Call it once per optimiser step, on the accumulated (and averaged) gradients, before the update.

        Raises:
            NumericsError: a score is NaN or infinite; names the pool and the step.
        """
        if self.schedule is None:
            raise InputError("the pruner does not know the run's length: pass total_steps, or call begin(steps).")
        step = self.steps_done + 1
        if step > self.schedule.last_cut:
            return
        self.statistics.fold()
        if self.schedule.is_cut(step):
            self.statistics.average_()
        if self.criterion.changes or self.schedule.is_cut(step):
            self._score(step)
        self.statistics.forget_step()

    def skip(self) -> None:
        """Leave a step out of the averages, in place of `observe`: its gradients are not finite."""
        assert self.schedule is not None, "begin() comes first"
        self.statistics.forget_step()
        if not self.schedule.is_cut(self.steps_done + 1):
            return
        self.statistics.average_()  # compensation reads moments, too, and all processes must read the same
        if not self.criterion.changes:
            self._score(self.steps_done + 1)

    def _score(self, step: int) -> None:
        evidence = self.statistics.evidence(self.modules)
        fresh = {pool: self.criterion.score(pool, evidence, self.scoring) for pool in self._living}
        self.averages.add(fresh, self.keep, step, anew=not self.criterion.changes, apart=self._own_scores)

    @property
    def scores(self) -> dict[str, Tensor]:
        """Pool name -> (units,) averaged scores; of a unit that went, the one that it went with."""
        return self.averages.scores

    def step(self, optimizer: torch.optim.Optimizer | None = None) -> Cut | None:
        """Count an optimiser update, and cut when the schedule says so. Returns the cut, if any.

        Args:
            optimizer: the one that trains the model; needed when `shrink` is on, as its moments shrink too.
        """
        assert self.schedule is not None, "observe() or begin() comes first"
        self.steps_done += 1
        if not self.schedule.is_cut(self.steps_done):
            return None
        if self.shrink and optimizer is None:
            raise InputError("a cut shrinks the model and the optimiser's state: call pruner.step(optimizer).")
        if not any(scores.any() for scores in self.scores.values()):
            raise NumericsError(
                f"step {self.steps_done}: no step before the first cut had finite gradients, so nothing is known of "
                "any unit: lower --lr, or compute in float32."
            )
        if self._own_scores:  # LoRA's gradients are averaged in every step
            self.averages.share()
        if not self.cuts:
            self.scores_before_cuts = {name: scores.clone() for name, scores in self.scores.items()}
        before = self.keep
        self.keep = self.budget.select(self.scores, before, self.schedule.progress(self.steps_done))
        check_agreement(self.keep, self.steps_done, trained_weights(self.model))
        self._apply(before, optimizer)
        if self.compensate != "none":
            check_agreement(self.keep, self.steps_done, whole_weights(self.rewritten().items()))
        cut = self._record(before)
        self.cuts.append(cut)
        if self.steps_done >= self.schedule.last_cut:
            self.statistics.detach()
        return cut

    @property
    def sparsity(self) -> float:
        """Fraction of the prunable parameters that is gone."""
        return self.units.removed_params(self.keep) / self.units.prunable_params

    @property
    def removed_params(self) -> int:
        """Parameters that are gone."""
        return self.units.removed_params(self.keep)

    def export(
        self,
        output: str | Path,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        probe_ids: Tensor | None = None,
        overwrite: bool = False,
    ) -> ExportReport:
        """Write the merged, sliced model as a checkpoint, verified in a fresh process. The model is not changed.

        Args:
            probe_ids: (1, tokens) to compare logits on; by default a few sentences through the tokenizer.
        Raises:
            InputError, VerificationError: as `export_checkpoint`.
        """
        base = cast(PreTrainedModel, self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model)
        if probe_ids is None:
            probe_ids = default_probe(tokenizer, base.config.get_text_config().vocab_size)
        return export_checkpoint(
            self.model,
            self.live,
            self.live_keep,
            Path(output),
            probe_ids=probe_ids,
            dtype=base.dtype,
            tokenizer=tokenizer,
            model_class=self.model_class,
            overwrite=overwrite,
        )

    def restore(self, source: str | ModelSource, *, trust_remote_code: bool = False) -> None:
        """After training on a quantised base: put the original weights in its place, on the CPU. Then `export`.

        PEFT's own merge does not know such a model.

        Args:
            source: the model that was quantised: a folder or hub id.
        Raises:
            InputError, VerificationError: as `original.restore_`.
        """
        self.statistics.detach()
        source = resolve_model(source) if isinstance(source, str) else source
        stay = {} if self.masks else removals(self.units, self.keep)
        restore_(self.model, stay, source, trust=trust_remote_code)
        base = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        self.modules = {path: base.get_submodule(path) for path in self.units.linears}
        if self.masks is not None:
            self.masks.remove()
            self.masks = Masks(self.units.pools, self.modules)
            self.masks.update(self.keep)

    def close(self) -> None:
        """Take everything that watches or masks off the model."""
        self.statistics.detach()
        if self.masks is not None:
            self.masks.remove()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later `load_state_dict` needs to go on from here (tensors, ints, lists)."""
        return {
            "steps_done": self.steps_done,
            "keep": dict(self.keep),
            "scores": dict(self.scores),
            "scores_before_cuts": dict(self.scores_before_cuts),
            "cuts": [vars(cut) for cut in self.cuts],
            "moments": self.statistics.state_tensors(),
            "moment_steps": self.statistics.steps,
            "chosen": {path: experts.chosen for path, experts in expert_lists(self.model).items()},
            "compensated": {name: gathered(parameter.detach()) for name, parameter in self.rewritten().items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore masks or shapes, averages, compensated weights and step count.

        Raises:
            InputError: the state is of a model with other units.
        """
        if {n: len(m) for n, m in state["keep"].items()} != {n: len(m) for n, m in self.keep.items()}:
            raise InputError("the pruner's saved state belongs to a model with other units: start a new run.")
        before = self.keep
        self.steps_done = int(state["steps_done"])
        self.keep = {name: mask.clone() for name, mask in state["keep"].items()}
        self.averages.load(state["scores"])
        self.scores_before_cuts = dict(state["scores_before_cuts"])
        self.cuts = [Cut(**cut) for cut in state["cuts"]]
        self._apply(before, None, compensating=False)
        for path, experts in expert_lists(self.model).items():
            experts.chosen = state["chosen"][path].clone()
        self.statistics.load_tensors(state["moments"], state["moment_steps"])
        for path, parameter in self.rewritten().items():
            assign_(parameter, state["compensated"][path])

    def share(self) -> None:
        """Between cuts each process averages what it saw itself; now all hold the mean over all of them.

        Averages are linear, so a later mean of means is the same. Every process must call it before one of them saves.
        """
        if self._own_scores:
            self.averages.share()
        self.statistics.average_()
        share_counts(self.model)

    @property
    def _own_scores(self) -> bool:
        """Whether processes score apart: from their own batches, or their own rows of a sharded weight."""
        return bool(self.criterion.needs - {"lora_grad"}) or any(map(is_sharded, self.model.modules()))

    def save(self, folder: Path) -> None:
        """Write the state as pruner.safetensors (masks, averages, rewritten weights) and pruner.json (the rest)."""
        save_state(self.state_dict(), folder)

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote: masks or shrunk shapes, averages, rewritten weights, step count."""
        with restoring(folder):
            self.load_state_dict(load_state(folder))

    def _record(self, before: dict[str, Tensor]) -> Cut:
        removed, scores = {}, {}
        for name, keep in self.keep.items():
            gone = (before[name] & ~keep).nonzero().flatten()
            if len(gone):
                removed[name] = gone.tolist()
                scores[name] = self.scores[name][gone].tolist()
        return Cut(self.steps_done, removed, scores, self.sparsity)

    @property
    def live_keep(self) -> dict[str, Tensor]:
        """Pool name -> which of the units in `live` are left: all of them, unless masks stand in."""
        if not self.shrink:
            return self.keep
        return {pool.name: torch.ones(pool.size, dtype=torch.bool) for pool in self.live.pools}

    def _apply(
        self, before: dict[str, Tensor], optimizer: torch.optim.Optimizer | None, compensating: bool = True
    ) -> None:
        """Make the model what `keep` says, from the state in which `before` was left."""
        relative = {name: keep[before[name]] if self.shrink else keep for name, keep in self.keep.items()}
        if compensating and self.compensate != "none":
            self._compensate(before, relative)
        if self.masks is not None:
            self.masks.update(self.keep)
            for pool in self.units.pools:
                self.statistics.clear_(pool, ~self.keep[pool.name])
            self._living = tuple(pool.only(self.keep[pool.name]) for pool in self.units.pools)
            self.statistics.attach(self._living, self.modules)
            return
        shrink_(self.model, self.live, relative, optimizer)
        for pool in self.live.pools:
            self.statistics.slice_(pool, relative[pool.name])
        self.live = self._find_units()
        self._living = self.live.pools
        self.statistics.attach(self._living, self.modules)

    def _compensate(self, before: dict[str, Tensor], relative: dict[str, Tensor]) -> None:
        for pool in self.live.pools:
            keep = relative[pool.name]
            gone = ~keep if self.shrink else before[pool.name] & ~keep
            if gone.any():
                for gate in pool.gates:
                    module, moments = self.modules[gate.linear], self.statistics.moments[gate.linear]
                    compensate_(self.compensate, module, moments, gate.entries(keep), gate.entries(gone))

    def rewritten(self) -> dict[str, nn.Parameter]:
        """Name -> base parameter that compensation changes: an adapter alone does not say the model any more."""
        leaf = {"none": None, "lstsq": "weight", "bias": "bias"}[self.compensate]
        if leaf is None:
            return {}
        return {
            f"{gate.linear}.{leaf}": getattr(base_linear(self.modules[gate.linear]), leaf)
            for pool in self.units.pools
            for gate in pool.gates
        }

    def _check_coverage(self) -> None:
        """Refuse LoRA that leaves out a linear of a unit, also one that `Scoring.linears` does not score by."""
        if "lora_grad" in self.criterion.needs:
            covered = [path for path, module in self.modules.items() if isinstance(module, LoraLayer)]
            check_coverage(self.units.linears, covered)
