"""What is known of each unit: a criterion's scores of every step, averaged over steps and processes."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..architecture.units import Pool
from ..config.options import part_of
from ..config.pruning import PruningOptions, ScoringOptions
from ..criteria import Evidence
from ..criteria.mask_training import MaskTraining
from ..parallel.sharding import is_sharded
from ..system.errors import InputError, NumericsError
from .ablation import loss_without
from .averages import Averages
from .budget import Budget
from .checks import check_scores, criterion_of
from .compensation.single import NEEDS
from .model import PrunedModel
from .schedule import Schedule
from .statistics import Statistics


class Scorer:
    """Watches a model's training steps, and averages the scores of its units (LoRAPrune Eq. 11).

    With the one-shot schedule all steps count alike; with `cuts` all since the last cut, and none before it.

    Args:
        budget: of the pools that lose nothing compensation need know nothing, and they have no masks.

    Attributes:
        name, criterion, scoring: what scores a unit, and its options.
        statistics: what of the backward pass the criterion and compensation need.
        averages: of the scores.
        masks: that are learned, for a criterion that scores by them.
    Raises:
        InputError: no such criterion, or options that are not for it.
    """

    def __init__(self, pruned: PrunedModel, options: PruningOptions, budget: Budget) -> None:
        self.pruned, self._budget = pruned, budget
        self.name, self.criterion = options.criterion, criterion_of(options)
        self.scoring = self.criterion.options(options.criterion, part_of(ScoringOptions, options))
        self._renews = options.cuts is not None
        self._step = self._from = 0
        alike = options.schedule == "one-shot" or self._renews
        past, at_cuts = 1.0 if alike else options.ema, NEEDS[options.compensate]
        self.statistics = Statistics(
            pruned.model, self.criterion.needs, self.scoring, past, at_cuts, budget.spared, look=self.criterion.look,
            keeps=not self.criterion.changes,
        )  # fmt: skip
        self.statistics.attach(pruned.living, pruned.modules, pruned.layers)
        dtype = torch.float64 if pruned.base.dtype == torch.float64 else torch.float32
        self.averages = Averages(
            {pool.name: pool.size for pool in pruned.units.pools}, ema=options.ema, alike=alike,
            relative=options.ema_relative, dtype=dtype,
        )  # fmt: skip
        self.masks: MaskTraining | None = None
        if self.criterion.masks is not None:
            pools, rate, seed = pruned.units.pools, self.scoring.mask_lr, self.scoring.seed
            self.masks = MaskTraining(self.criterion.masks, pools, budget.constraints(), rate, dtype, seed)
        self.put_masks_on()

    @property
    def scores(self) -> dict[str, Tensor]:
        """Pool name -> (units,) averaged scores; of a unit that went, the one that it went with."""
        return self.averages.scores

    @property
    def knows_something(self) -> bool:
        """Whether any step has had scores."""
        if self.masks is not None:
            return self.masks.steps > 0
        return any(bool(scores.any()) for scores in self.scores.values())

    def observe(self, step: int, schedule: Schedule) -> None:
        """Score all units from the gradients that training has now.

        Raises:
            NumericsError: a score is NaN or infinite; names the pool and the step.
        """
        self._step = step
        cutting = schedule.is_cut(step)
        self.pruned.check_ready()
        if self.masks is not None:
            self._learn(self.masks, step, schedule)
        self.statistics.fold()
        if cutting:
            self.statistics.average_()
        if self.criterion.changes or cutting:
            self._score(step)
        self.statistics.forget_step()

    def skip(self, step: int, *, cutting: bool) -> None:
        """Leave a step out of the averages, in place of `observe`: its gradients are not finite."""
        self._step = step
        self.statistics.forget_step()
        if self.masks is not None:
            self.masks.forget_step()
        if not cutting:
            return
        self.statistics.average_()  # compensation reads moments, too, and all processes must read the same
        if not self.criterion.changes:
            self._score(step)

    def _learn(self, masks: MaskTraining, step: int, schedule: Schedule) -> None:
        """A step of the masks, and what of the units the next forward pass sees."""
        try:
            masks.observe(step / schedule.last_cut, schedule.last_cut)
        except NumericsError as error:
            raise NumericsError(f"step {step}: {error}") from error
        due = schedule.due(step)
        if masks.rule.projects and due and not masks.began and self.statistics.steps:
            masks.begin(self.statistics.gates)
        if masks.rule.projects and masks.began:
            scores = {name: held.clone() for name, held in self.scores.items()}
            for pool, fresh in self._fresh().items():
                scores[pool.name][self.pruned.keep[pool.name]] = fresh.to(scores[pool.name])
            masks.project(self._budget.select(scores, self.pruned.keep, due))

    def _fresh(self) -> dict[Pool, Tensor]:
        evidence = self.statistics.evidence(self.pruned.modules)
        if self.masks is not None:
            evidence = replace(evidence, masks=self.masks.latents(self.pruned.living))
        if "loss_without" in self.criterion.needs:
            evidence = replace(evidence, loss_without=loss_without(self.pruned))
        return {pool: self._scores_of(pool, evidence) for pool in self.pruned.living}

    def _score(self, step: int) -> None:
        fresh = self._fresh()
        anew = not self.criterion.changes
        self.averages.add(fresh, self.pruned.keep, step, since=self._from, anew=anew, apart=self._own_scores)

    def _scores_of(self, pool: Pool, evidence: Evidence) -> Tensor:
        try:
            scores = self.criterion.score(pool, evidence, self.scoring)
        except KeyError as error:
            raise InputError(
                f"the criterion {self.name!r} looks for {error} in its evidence, which is not there: name in `needs` "
                f"what it looks at. It needs {', '.join(sorted(self.criterion.needs)) or 'nothing'} by now."
            ) from error
        return check_scores(self.name, pool, scores)

    def share_scores(self) -> None:
        """Where processes score apart, all hold the mean over them from here on; LoRA's gradients are averaged anyway.

        Averages are linear, so a later mean of means is the same.
        """
        if self._own_scores:
            self.averages.share()

    @property
    def _own_scores(self) -> bool:
        """Whether processes score apart: from their own batches, or their own rows of a sharded weight."""
        modules: list[nn.Module] = list(self.pruned.model.modules())
        return bool(self.criterion.needs - {"lora_grad", "masks"}) or any(map(is_sharded, modules))

    def follow_cut(self, before: tuple[Pool, ...], stay: dict[str, Tensor], left: dict[str, Tensor]) -> None:
        """Watch what is left after a cut, and forget the rest.

        Args:
            before: pools as they were in the model.
            stay: pool name -> (units,) bool, which of those stay.
            left: the same of the units that were left: with masks there are others in the model.
        """
        for pool in before:
            self.statistics.keep_(pool, left[pool.name])
            if self.pruned.shrink:
                self.statistics.slice_(pool, stay[pool.name])
            else:
                self.statistics.clear_(pool, ~stay[pool.name])
        if self._renews:
            self._from = self._step
            self.statistics.renew()
        self.statistics.attach(self.pruned.living, self.pruned.modules, self.pruned.layers)
        self.put_masks_on()

    def put_masks_on(self) -> None:
        """Where masks are learned: on the units that are left, in the modules that are there."""
        if self.masks is not None:
            self.masks.attach(self.pruned.living, self.pruned.keep, self.pruned.modules)

    def state(self) -> dict[str, Any]:
        """What has been seen so far."""
        moments, steps = self.statistics.state_tensors(), self.statistics.steps
        own = {"scores": dict(self.scores), "moments": moments, "moment_steps": steps, "scored_from": self._from}
        return own | (self.masks.state() if self.masks is not None else {})

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` says."""
        self.averages.load(state["scores"])
        self._from = state.get("scored_from", 0)  # earlier versions do not have it
        self.statistics.load_tensors(state["moments"], state["moment_steps"])
        if self.masks is not None:
            self.masks.load(state)

    def pause(self) -> None:
        """Watch nothing until the cut that follows: what runs until then is no training."""
        self.statistics.detach()

    def stop(self) -> None:
        """Stop watching, and learning."""
        self.statistics.detach()
        if self.masks is not None:
            self.masks.settle()

    def close(self) -> None:
        """Take everything off the model."""
        self.stop()
        if self.masks is not None:
            self.masks.remove()
