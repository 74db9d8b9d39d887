"""How much each pool loses: what the target allows, and with `--allocation search` what is found at the first cut."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...architecture.stock import accepts
from ...config.pruning import SEARCH_EVALUATIONS, PruningOptions
from ...speed.costs import PARAMETERS, Costs, Parameters
from ...system.errors import InputError
from ..allocation.make import make_budget
from ..budget import Budget, budget_goal
from ..checks import criterion_of
from ..model import PrunedModel
from ..scorer import Scorer
from .evolution import Limits, Search, SearchRecord, Told
from .fitness import Fitness


@dataclass(frozen=True)
class Watch:
    """What watches a search.

    Attributes:
        told: is called with candidates looked at and all of them; with `--search-minutes` alone, with seconds.
        note: file of the search's state, written after each generation: an interrupted one goes on from there.
    """

    told: Told = lambda done, of: None
    note: Path | None = None


class Allocator:
    """Makes a pruner's budget, and searches for the layers' shares of it.

    Attributes:
        goal: what the budget was made for.
        legal: whether a stock checkpoint can have a shape in every layer.
        budget: what goes by the end; after a search each pool has its own part.
        watch: of the search.
        record: what it came to.
    Args:
        account: what the target is a share of.
    Raises:
        InputError: as `make_budget`.
    """

    def __init__(self, pruned: PrunedModel, options: PruningOptions, account: Parameters | Costs = PARAMETERS) -> None:
        self.goal = budget_goal(options, options.sparsity or 0, criterion_of(options).across_layers)
        self.legal = partial(accepts, pruned.base.config, pruned.units.family, model_class=options.model_class)
        self.budget: Budget = make_budget(pruned.units, self.goal, self.legal, account)
        if self.goal.allocation == "search":
            pruned.calibrated_for = pruned.calibrated_for or "allocation='search'"
        self.watch = Watch()
        self.record: SearchRecord | None = None
        self._seed = options.seed

    @property
    def searches(self) -> bool:
        """Whether the layers' shares are still to be found."""
        return self.goal.allocation == "search" and self.record is None

    def search_(self, pruned: PrunedModel, scorer: Scorer) -> None:
        """Find what each pool loses by the end, on the model as it is; no unit has gone yet.

        Args:
            scorer: its scores decide inside a layer; it watches again after the cut that follows.
        """
        scorer.pause()
        scores = scorer.scores
        calibration = pruned.calibration
        assert calibration is not None, "check_ready has asked for it"
        fitness = Fitness(pruned.model, pruned.live.pools, pruned.modules, calibration)
        seconds = 60 * (self.goal.search_minutes or 0.0)
        limits = Limits(self.goal.search_evaluations or (0 if seconds else SEARCH_EVALUATIONS), seconds)
        search = Search(
            self.budget, self.starts(scores), scores, fitness, limits, seed=self._seed, told=self.watch.told,
            note=self.watch.note,
        )  # fmt: skip
        self._take(search.run())

    def state(self) -> dict[str, Any]:
        """What was found, if anything."""
        return {"search": asdict(self.record) if self.record else {}}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` says; an earlier version's says nothing of a search."""
        if found := state.get("search"):
            self._take(SearchRecord(**found))

    def _take(self, record: SearchRecord) -> None:
        self.record = record
        self.budget = self.budget.with_shares(record.gone)

    def starts(self, scores: Mapping[str, Tensor]) -> dict[str, dict[str, int]]:
        """Allocation -> pool name -> units that go: `global` by these scores, and where they can be, `protected` and
        all layers alike."""
        units = self.budget.units
        everything = {pool.name: torch.ones(pool.size, dtype=torch.bool) for pool in units.pools}
        ranked = self.budget.select(dict(scores), everything, 1.0)
        found = {"global": {name: int((~mask).sum()) for name, mask in ranked.items()}}
        for name, protect in (("protected", None), ("alike", 0)):
            options = replace(self.goal, allocation="protected", protect_first=protect, protect_last=protect)
            try:
                found[name] = dict(make_budget(units, options, self.legal).quota)
            except InputError:
                continue
        return found
