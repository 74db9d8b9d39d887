"""What a search over layers' shares moves in: how many units each pool loses, all at one and the same budget."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from random import Random

from ...architecture.units import Pool
from ..budget import Budget

Rungs = dict[str, int]
"""Pool name -> rung of its ladder: one candidate."""


@dataclass(frozen=True, eq=False)
class Ladder:
    """The numbers of units that a pool may lose, ascending from none to all but its floor.

    Query heads go from every set at once; channels such that the width is a multiple of `--round-to` from the first
    step on.
    """

    pool: Pool
    first: int
    """Units that the first step takes."""
    step: int
    """Units that each further step takes."""
    rungs: int
    """Steps to the floor."""

    @classmethod
    def of(cls, pool: Pool, least: int, round_to: int) -> "Ladder":
        """Of a pool of which `least` units always stay (a whole number of sets and of `round_to`)."""
        step = round_to if pool.kind == "ffn" else pool.sets
        first = pool.size % step or step
        most = pool.size - least
        return cls(pool, first, step, 1 + (most - first) // step if most >= first else 0)

    def gone(self, rung: int) -> int:
        """Units that are gone on a rung."""
        return self.first + (rung - 1) * self.step if rung else 0

    def params(self, rung: int) -> int:
        """Parameters that are gone on a rung."""
        return self.gone(rung) * self.pool.unit_params

    def within(self, rung: int) -> int:
        """The nearest rung that there is."""
        return min(max(rung, 0), self.rungs)

    def nearest(self, units: float) -> int:
        """The rung that comes nearest to a number of units."""
        return self.within(math.floor((units - self.first) / self.step + 1.5)) if units >= self.first / 2 else 0


@dataclass(frozen=True, eq=False)
class Pot:
    """Pools that share one number of parameters which goes.

    Attributes:
        upper: the most parameters that may go: half of the smallest unit above the target, as `Budget.select` has it.
        finest: parameters of the smallest step; more than `upper - finest` go.
    """

    ladders: tuple[Ladder, ...]
    upper: float
    finest: int

    @classmethod
    def of(cls, ladders: tuple[Ladder, ...], params: float) -> "Pot":
        """Of a target of `params` parameters."""
        unit = min(ladder.pool.unit_params * ladder.pool.sets for ladder in ladders)
        return cls(ladders, params + unit / 2, min(ladder.step * ladder.pool.unit_params for ladder in ladders))

    def taken(self, rungs: Mapping[str, int]) -> int:
        """Parameters that are gone."""
        return sum(ladder.params(rungs[ladder.pool.name]) for ladder in self.ladders)

    def holds(self, rungs: Mapping[str, int]) -> bool:
        """Whether the target is met."""
        return self.upper - self.finest < self.taken(rungs) <= self.upper

    def settle_(self, rungs: Rungs) -> None:
        """Spread what is missing of the target, or too much, evenly over the pools with the smallest steps."""
        fine = [ladder for ladder in self.ladders if ladder.step * ladder.pool.unit_params == self.finest]
        while steps := math.floor((self.upper - self.taken(rungs)) / self.finest):
            way = 1 if steps > 0 else -1
            free = [
                ladder for ladder in fine if ladder.within(rungs[ladder.pool.name] + way) != rungs[ladder.pool.name]
            ]
            if not free:
                return
            each, extra = divmod(abs(steps), len(free))
            for number, ladder in enumerate(free):
                name = ladder.pool.name
                rungs[name] = ladder.within(rungs[name] + way * (each + (number < extra)))


class Field:
    """All candidates: what each pool loses, with every pot's target met to the unit.

    Args:
        budget: one whose pools share pots (global allocation).
    """

    def __init__(self, budget: Budget) -> None:
        self.ladders = {
            pool.name: Ladder.of(pool, budget.least[pool.name], budget.round_to)
            for pool in budget.units.pools
            if pool.name in budget.least
        }
        self.pots = tuple(
            Pot.of(ladders, params)
            for kinds, params in budget.pot.items()
            if (ladders := tuple(ladder for ladder in self.ladders.values() if ladder.pool.kind in kinds))
        )

    def rungs_of(self, gone: Mapping[str, float]) -> Rungs:
        """The candidate nearest to numbers of units, whether or not it meets the target."""
        return {name: ladder.nearest(gone.get(name, 0)) for name, ladder in self.ladders.items()}

    def gone(self, rungs: Mapping[str, int]) -> dict[str, int]:
        """Pool name -> units that go."""
        return {name: self.ladders[name].gone(rung) for name, rung in rungs.items()}

    def settled(self, rungs: Mapping[str, int]) -> Rungs | None:
        """The candidate that meets the target and is otherwise as near as can be; None where there is none."""
        found = {name: self.ladders[name].within(rung) for name, rung in rungs.items()}
        for pot in self.pots:
            pot.settle_(found)
        return found if all(pot.holds(found) for pot in self.pots) else None

    def mutated(self, rungs: Mapping[str, int], random: Random, reach: float) -> Rungs | None:
        """Between one and three times, some pool loses more and another of its pot as many parameters less.

        Args:
            reach: the most that moves at once, as a share of the pool that loses more.
        """
        found = dict(rungs)
        pots = [pot for pot in self.pots if len(pot.ladders) > 1]
        if not pots:
            return None
        for _ in range(min(random.randint(1, 3), random.randint(1, 3))):
            more, less = random.sample(random.choice(pots).ladders, 2)
            steps = max(1, round(random.random() * reach * more.pool.size / more.step))
            before = found[more.pool.name]
            found[more.pool.name] = more.within(before + steps)
            params = less.params(found[less.pool.name]) - more.params(found[more.pool.name]) + more.params(before)
            found[less.pool.name] = less.nearest(max(0, params) / less.pool.unit_params)
        return self.settled(found)

    def guided(self, rungs: Mapping[str, int], slopes: Mapping[str, float], reach: float) -> Iterable[Rungs | None]:
        """Candidates down the slope: where a parameter is worth less than elsewhere, more of them go.

        Args:
            slopes: pool name -> what the fitness rises by for a parameter more that goes.
            reach: the most that a pool's share changes by.
        """
        for share in (2 * reach, reach, reach / 2):
            yield self.settled(self._downhill(rungs, slopes, share))
        order = sorted(self.ladders.values(), key=lambda ladder: slopes[ladder.pool.name])
        free = [ladder for ladder in order if rungs[ladder.pool.name] < ladder.rungs]
        for ladder in [ladder for ladder in free if ladder.pool.kind == "ffn"][:1]:  # a layer's channels, to the floor
            yield self.settled({**rungs, ladder.pool.name: ladder.rungs})
        cheap = next((ladder for ladder in free if ladder.pool.kind != "ffn"), None)
        dear = next((each for each in reversed(order) if each.pool.kind != "ffn" and rungs[each.pool.name]), None)
        for pair in ((cheap, None), (None, dear), (cheap, dear)):
            if any(pair):
                found = self._downhill(rungs, slopes, reach)
                for head, way in zip(pair, (1, -1), strict=True):
                    if head is not None:
                        found[head.pool.name] += way
                yield self.settled(found)

    def _downhill(self, rungs: Mapping[str, int], slopes: Mapping[str, float], share: float) -> Rungs:
        """Channels moved towards equal slopes, a share of each layer's at most; heads stay where they are."""
        found = dict(rungs)
        for pot in self.pots:
            ffn = [ladder for ladder in pot.ladders if ladder.pool.kind == "ffn"]
            if not ffn:
                continue
            mean = sum(slopes[ladder.pool.name] for ladder in ffn) / len(ffn)
            away = sorted(abs(slopes[ladder.pool.name] - mean) for ladder in ffn)
            usual = away[int(0.8 * (len(away) - 1))] or 1.0
            for ladder in ffn:
                name = ladder.pool.name
                change = max(-1.0, min(1.0, (slopes[name] - mean) / usual)) * share * ladder.pool.size
                found[name] = ladder.nearest(max(0.0, ladder.gone(rungs[name]) - change))
        return found
