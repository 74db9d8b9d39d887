"""What goes by the end of a run, and which units at each cut: `Budget.select` turns scores into what stays.

`allocation.make_budget` makes one from a target sparsity.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ..architecture.layout import INSIDE
from ..architecture.units import Pool, Units
from ..config.options import part_of
from ..config.pruning import BudgetOptions
from ..criteria.masks import Constraint
from ..speed.costs import PARAMETERS, Costs, Parameters, hull


@dataclass(frozen=True, kw_only=True)
class BudgetGoal(BudgetOptions):
    """The options of a budget with nothing left open."""

    sparsity: float
    """Of the parameters; where time is the account, the share of all layers' time that goes."""
    across_layers: str = "mean"


def budget_goal(options: BudgetOptions, sparsity: float, across_layers: str) -> BudgetGoal:
    """What a run asks of a budget.

    Args:
        sparsity: the fraction that goes, in whichever way it was asked for.
        across_layers: the criterion's own way to compare layers, where the options leave it open.
    """
    decided = {"sparsity": sparsity, "across_layers": options.across_layers or across_layers}
    return BudgetGoal(**{**vars(part_of(BudgetOptions, options)), **decided})


@dataclass(frozen=True, eq=False)
class Budget:
    """What goes by the end of the run. Exactly one of `quota` and `pot` is filled for a pool.

    Attributes:
        quota: pool name -> units that go (uniform and protected allocation).
        pot: kinds that are ranked across layers -> what goes from all their pools together, of the account.
        least: pool name -> units that always stay (global allocation).
        across_layers: how scores of different layers compare (global allocation): relative to the layer's `mean`, in
            `standard` deviations from it, or `raw`.
        heads_stay: why no attention unit goes, where a stock checkpoint cannot be without those that were due.
        account: what units are worth: parameters, or milliseconds.
    """

    units: Units
    quota: dict[str, int]
    pot: dict[tuple[str, ...], float] = field(default_factory=dict)
    least: dict[str, int] = field(default_factory=dict)
    round_to: int = 1
    across_layers: str = "mean"
    heads_stay: str = ""
    account: Parameters | Costs = PARAMETERS

    @property
    def removed_params(self) -> int:
        """Parameters gone at the end of the schedule (for pots: at most, to within one unit; of milliseconds: what
        comes to them when all layers lose alike)."""
        fixed = sum(self.quota.get(pool.name, 0) * pool.unit_params for pool in self.units.pools)
        if self.account is PARAMETERS:
            return fixed + round(sum(self.pot.values()))
        gone = self.expected_gone()
        return fixed + round(sum(gone[pool.name] * pool.unit_params for pool in self.units.pools if pool.name in gone))

    def expected_gone(self) -> dict[str, float]:
        """Name of a pool that shares a pot -> units that go when each loses the same share of what it is worth."""
        found: dict[str, float] = {}
        for kinds, worth in self.pot.items():
            pools = [pool for pool in self.units.of_kind(*kinds) if pool.name in self.least]
            share = worth / sum(self.account.saved(pool, pool.size) for pool in pools)
            for pool in pools:
                due, size = share * self.account.saved(pool, pool.size), share * pool.size
                if isinstance(self.account, Costs) and pool.size > 1:
                    above = bisect_left(range(1, pool.size), due, key=partial(self.account.saved, pool)) + 1
                    low, high = self.account.saved(pool, above - 1), self.account.saved(pool, above)
                    size = above - 1 + ((due - low) / (high - low) if high > low else 0.0)
                found[pool.name] = size
        return found

    @property
    def spared(self) -> frozenset[str]:
        """Names of the pools that lose nothing."""
        losing = self.least.keys() | {name for name, units in self.quota.items() if units}
        return frozenset(pool.name for pool in self.units.pools) - losing

    @property
    def ffn_step(self) -> int:
        """A number of which every FFN width at the end is a multiple; 0 in a model without FFNs."""
        ffn = self.units.of_kind("ffn")
        known = [pool.size - self.quota[pool.name] for pool in ffn if pool.name in self.quota]
        return math.gcd(*known, *(n for pool in ffn if pool.name not in self.quota for n in (pool.size, self.round_to)))

    def constraints(self) -> list[Constraint]:
        """What is to stay at the end: of each pool with a quota, or of all pools that share a pot."""
        found = [
            Constraint((pool.name,), 1 - self.quota[pool.name] / pool.size)
            for pool in self.units.pools
            if self.quota.get(pool.name)
        ]
        gone = self.expected_gone()
        for kinds in self.pot:
            pools = [pool for pool in self.units.of_kind(*kinds) if pool.name in self.least]
            whole = sum(pool.size * pool.unit_params for pool in pools)
            params = sum(gone[pool.name] * pool.unit_params for pool in pools)
            found += [Constraint(tuple(pool.name for pool in pools), 1 - params / whole)] if pools and params else []
        return found

    def example(self) -> dict[str, Tensor]:
        """Pool name -> (units,) bool: what might stay. Where layers compete, the first one loses all it can."""
        first = min((pool.layer for pool in self.units.pools if pool.name in self.least), default=None)
        keep = {}
        blocks = {(pool.layer, pool.kind) for pool in self.units.pools if pool.name in self.least}
        for pool in self.units.pools:
            gone = self.quota.get(pool.name, 0)
            if pool.name in self.least and pool.layer == first:
                gone = (pool.size - self.least[pool.name]) // pool.sets * pool.sets
                gone = pool.size if (pool.layer, INSIDE.get(pool.kind)) in blocks else gone
            mask = torch.ones(pool.sets, pool.size // pool.sets, dtype=torch.bool)
            mask[:, : gone // pool.sets] = False
            keep[pool.name] = mask.flatten()
        return keep

    @property
    def sparsity(self) -> float:
        return self.removed_params / self.units.prunable_params

    def with_shares(self, gone: dict[str, int]) -> "Budget":
        """A budget of which each pool has its own part: pool name -> units that go."""
        return Budget(self.units, dict(gone), round_to=self.round_to)

    def select(self, scores: dict[str, Tensor], keep: dict[str, Tensor], progress: float) -> dict[str, Tensor]:
        """What stays when `progress` (0 ... 1) of the target is due. Never brings a unit back.

        Args:
            scores: pool name -> (units,) scores, higher stays.
            keep: pool name -> (units,) bool, what is there now.
        """
        kept = {name: mask.clone() for name, mask in keep.items()}
        for pool in self.units.pools:
            if pool.name in self.quota:
                step = math.lcm(pool.sets, pool.together)
                due = round(progress * self.quota[pool.name] / step) * step
                gone = pool.size - int(kept[pool.name].sum())
                _remove_lowest_(kept[pool.name], scores[pool.name], max(0, due - gone), pool.sets)
        for kinds, worth in self.pot.items():
            pools = [pool for pool in self.units.of_kind(*kinds) if pool.name in self.least]
            self._select_across_layers_(pools, scores, kept, progress * worth)
        return kept

    def _select_across_layers_(
        self, pools: list[Pool], scores: dict[str, Tensor], kept: dict[str, Tensor], worth: float
    ) -> None:
        """Cut the lowest-ranked units of all layers until `worth` of these pools is gone, in the account's measure."""
        inside = _inside(pools)
        left = [int(kept[pool.name].sum()) for pool in pools]
        take = [0] * len(pools)

        def saved(number: int, units: int) -> float:
            """By so many units more of a pool."""
            pool, before = pools[number], pools[number].size - left[number] + take[number]
            return self.account.saved(pool, before + units) - self.account.saved(pool, before)

        gone = sum(self.account.saved(pool, pool.size - left[number]) for number, pool in enumerate(pools))
        ranked: list[tuple[float, int, int]] = []
        finest = min(self.account.saved(pool, pool.sets) for n, pool in enumerate(pools) if n not in inside)
        for number, pool in enumerate(pools):
            before = pool.size - left[number]
            for score, count in self._candidates(pool, pools, scores, kept[pool.name]) if number not in inside else ():
                ranked.append((score, number, count))
                step = self.account.saved(pool, before + count) - self.account.saved(pool, before)
                finest, before = min(finest, step), before + count
        for number, own in inside.items():
            if left[number]:  # a block, worth its score for what is left of it
                whole = sum(saved(each, left[each]) for each in (number, *own))
                ranked.append((_rank(float(scores[pools[number].name]), whole), number, 1))
        for _, number, count in sorted(ranked):
            if take[number] + count > left[number]:
                continue  # its block is gone
            taken = {number: count} | {each: left[each] - take[each] for each in inside.get(number, ())}
            cost = sum(saved(each, units) for each, units in taken.items())
            if gone + cost <= worth + finest / 2:  # one too large to fit leaves its place to smaller ones
                for each, units in taken.items():
                    take[each] += units
                gone += cost
        for pool, count in zip(pools, take, strict=True):
            _remove_lowest_(kept[pool.name], scores[pool.name], count, pool.sets)

    def _candidates(
        self, pool: Pool, pools: list[Pool], scores: dict[str, Tensor], keep: Tensor
    ) -> list[tuple[float, int]]:
        """(rank, units) of what could go next from a pool, lowest first, down to its floor."""
        layer = [p for p in pools if p.layer == pool.layer]
        relative = self._across_layers(pool, layer, scores)
        alive = int(keep.sum())
        ordered = relative.masked_fill(~keep, torch.inf).view(pool.sets, -1).sort(1).values.mean(0)
        per_set = ordered[: alive // pool.sets].tolist()
        spare = (alive - self.least[pool.name]) // pool.sets
        chunk = self.round_to if pool.kind == "ffn" else 1
        groups, taken = [], 0
        while (size := chunk if alive % chunk == 0 or taken else alive % chunk) and taken + size <= spare:
            groups.append((sum(per_set[taken : taken + size]) / size, size * pool.sets))
            taken += size
        if self.across_layers == "standard" or not isinstance(self.account, Costs):
            return groups
        return self._by_time(self.account, pool, layer, alive, groups)

    def _by_time(
        self, costs: Costs, pool: Pool, layer: list[Pool], alive: int, groups: list[tuple[float, int]]
    ) -> list[tuple[float, int]]:
        """Candidates whose scores are by parameters, by the milliseconds that they save."""
        level, gone, steps = 1.0, pool.size - alive, []
        if self.across_layers == "mean":  # the layer's mean is then by time, too
            level = sum(costs.saved(p, p.size) for p in layer) / sum(p.size * p.unit_params for p in layer)
        for score, units in groups:
            saved = costs.saved(pool, gone + units) - costs.saved(pool, gone)
            steps.append((level * score * units * pool.unit_params, saved, units))
            gone += units
        return [(_rank(score, saved), units) for score, saved, units in hull(steps)]

    def _across_layers(self, pool: Pool, layer: list[Pool], scores: dict[str, Tensor]) -> Tensor:
        """(units,) score per parameter, comparable with that of other layers' units.

        Scores that estimate what the loss changes by compare as they are (`raw`). Others differ by orders of magnitude
        between layers: divided by its layer's `mean`, a unit says what is unimportant *within* its layer. In
        `standard` deviations (FLAP) heads and channels are each compared with their own kind.
        """
        per_parameter = scores[pool.name].double() / pool.unit_params
        if self.across_layers == "raw":
            return per_parameter
        if self.across_layers == "standard":
            spread = per_parameter.std() if pool.size > 1 else per_parameter.new_ones(())
            return (per_parameter - per_parameter.mean()) / spread.clamp_min(torch.finfo(torch.float64).tiny)
        mean = sum(float(scores[p.name].sum()) for p in layer) / sum(p.size * p.unit_params for p in layer)
        return per_parameter / max(mean, torch.finfo(torch.float32).tiny)


def _inside(pools: list[Pool]) -> dict[int, list[int]]:
    """Position of a block that has heads or channels as units of their own -> positions of these."""
    found = {}
    for number, block in enumerate(pools):
        own = [
            each for each, pool in enumerate(pools) if pool.layer == block.layer and INSIDE.get(pool.kind) == block.kind
        ]
        if own:
            found[number] = own
    return found


def _rank(score: float, worth: float) -> float:
    """Score for what it is worth; what is worth nothing comes last."""
    return score / worth if worth > 0 else math.inf


def _remove_lowest_(keep: Tensor, scores: Tensor, count: int, sets: int) -> None:
    """Clear the `count` lowest-scoring units that are still marked, the same number in each set."""
    if count:
        candidates = scores.masked_fill(~keep, torch.inf).view(sets, -1)
        lowest = candidates.argsort(dim=1, stable=True)[:, : count // sets]
        keep.view(sets, -1).scatter_(1, lowest, False)
