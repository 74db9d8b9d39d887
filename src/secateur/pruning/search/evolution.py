"""An evolutionary search over how much each layer loses, down the slope of what a parameter is worth.

Each generation one gradient says, on a few tokens, what every unit at its layer's edge is worth. Candidates that follow
it, and others made at random, are compared on these tokens; the best of them and their parent on all. Comparing many on
few tokens and few on more is EvoPress's way (arXiv:2410.14649), and Týr-the-Pruner's for structure; the slope is
ours. No candidate leaves the budget.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from ...parallel.distributed import largest, processes, total
from ...system.launcher import rank
from ...system.records import write_json
from ..budget import Budget
from .fitness import Fitness
from .shares import Field, Rungs

OFFSPRING = 10
"""Candidates of a generation."""
SURVIVORS = 2
"""Those of them that are compared on all tokens."""
FEW = 4
"""All are compared on one batch in so many, others in each generation."""
REACH, LEAST_REACH, MOST_REACH = 0.12, 0.01, 0.25
"""Share of a layer that a candidate down the slope moves, at the start, at least and at most; others up to that."""
SHRINKS = 1.5
"""What the reach is divided by where nothing was gained."""
EDGE = 12
"""Units within one in so many of a layer, on either side of where it is cut, say what a parameter there is worth."""

Told = Callable[[int, int], None]


@dataclass(frozen=True)
class Limits:
    """When a search ends: after so many candidates, or so many seconds; 0: unbounded."""

    candidates: int
    seconds: float = 0.0

    def reached(self, candidates: int, seconds: float) -> bool:
        """Whether it ends here; all processes agree."""
        if self.candidates and candidates >= self.candidates:
            return True
        return bool(self.seconds) and bool(largest(int(seconds >= self.seconds)))

    def told(self, tell: Told, candidates: int, seconds: float) -> None:
        """How far it is: in candidates, or in seconds where these end it."""
        if self.candidates:
            tell(min(candidates, self.candidates), self.candidates)
        elif seconds >= 1:
            tell(min(int(seconds), int(self.seconds)), int(self.seconds))


@dataclass
class State:
    """A search after a generation: what it needs to go on, and what there is to say of it."""

    about: str
    """Of what scores, budget and tokens it is."""
    generation: int = 0
    candidates: int = 0
    """Looked at so far."""
    seconds: float = 0.0
    reach: float = REACH
    parent: Rungs = field(default_factory=dict)
    sums: list[float] = field(default_factory=list)
    """The parent's divergence on each batch."""
    starts: dict[str, float] = field(default_factory=dict)
    """Allocation -> KL per token of what the search began with."""
    curve: list[list[float]] = field(default_factory=list)
    """Candidates by then, and KL per token, of each parent."""


@dataclass(frozen=True)
class SearchRecord:
    """What a search came to."""

    gone: dict[str, int]
    """Pool name -> units that go by the end."""
    kl: float
    """KL(model before ‖ candidate) in nats per token, before any refit."""
    starts: dict[str, float]
    """Allocation -> the same of what it began with."""
    curve: list[list[float]]
    """Candidates looked at, and the same of the best by then."""
    candidates: int
    tokens: int
    seconds: float


class Search:
    """A search, ready to run.

    Args:
        budget: one whose pools share pots (global allocation).
        starts: allocation -> pool name -> units that go; the first is the one to fall back on, and meets the budget.
        scores: pool name -> (units,), which decide inside a layer.
        seed: of candidates made at random.
        note: where the state is kept after each generation, and looked for.
    """

    def __init__(
        self,
        budget: Budget,
        starts: Mapping[str, Mapping[str, int]],
        scores: Mapping[str, Tensor],
        fitness: Fitness,
        limits: Limits,
        *,
        seed: int = 0,
        told: Told = lambda done, of: None,
        note: Path | None = None,
    ) -> None:
        self.field = Field(budget)
        self._units, self._scores, self._fitness, self._limits = budget.units, dict(scores), fitness, limits
        self._starts, self._seed, self._told, self._note = starts, seed, told, note
        self._all = range(len(fitness.tokens))
        self.state = self._noted() or State(self._about())

    def run(self) -> SearchRecord:
        """Search until the limit."""
        state, began = self.state, time.monotonic() - self.state.seconds
        if not state.parent:
            self._begin()
        while not self._limits.reached(state.candidates, time.monotonic() - began) and len(self.field.ladders) > 1:
            before = state.candidates
            self._generation()
            state.seconds = time.monotonic() - began
            self._write()
            self._limits.told(self._told, state.candidates, state.seconds)
            if state.candidates == before:
                break  # nothing can move
        state.seconds = time.monotonic() - began
        tokens = sum(self._fitness.tokens)
        return SearchRecord(
            gone=self.field.gone(state.parent),
            kl=sum(state.sums) / tokens,
            starts=state.starts,
            curve=state.curve,
            candidates=state.candidates,
            tokens=tokens,
            seconds=state.seconds,
        )

    def _begin(self) -> None:
        """Compare what there is to start from."""
        state, tokens = self.state, sum(self._fitness.tokens)
        for name, gone in self._starts.items():
            rungs = self.field.rungs_of(gone)
            if state.parent:  # the first one is taken as it is
                settled = self.field.settled(rungs)
                if settled is None or (self._limits.candidates and state.candidates >= self._limits.candidates):
                    continue
                rungs = settled
            sums = self._fitness.divergences(self._keep(rungs), self._all)
            state.candidates += 1
            state.starts[name] = sum(sums) / tokens
            if not state.parent or sum(sums) < sum(state.sums):
                state.parent, state.sums = rungs, sums
        state.curve.append([state.candidates, sum(state.sums) / tokens])

    def _generation(self) -> None:
        """Make candidates, and let the best of them take the parent's place if it is better."""
        state = self.state
        random = Random(f"{self._seed}/{state.generation}")
        count = max(1, len(self._all) // FEW)
        few = [(state.generation * count + number) % len(self._all) for number in range(count)]
        rest = [number for number in self._all if number not in few]
        young = self._candidates(random, few)
        found = [self._fitness.divergences(self._keep(rungs), few) for rungs in young]
        state.candidates += len(young)
        state.generation += 1
        gained = False
        for number in sorted(range(len(young)), key=lambda number: sum(found[number]))[:SURVIVORS]:
            if sum(found[number]) >= sum(state.sums[batch] for batch in few):
                continue  # not even here
            known = dict(zip(few, found[number], strict=True))
            known |= dict(zip(rest, self._fitness.divergences(self._keep(young[number]), rest), strict=True))
            sums = [known[batch] for batch in self._all]
            if sum(sums) < sum(state.sums):
                state.parent, state.sums, gained = young[number], sums, True
        state.reach = min(MOST_REACH, state.reach * SHRINKS**0.5) if gained else max(LEAST_REACH, state.reach / SHRINKS)
        state.curve.append([state.candidates, sum(state.sums) / sum(self._fitness.tokens)])

    def _candidates(self, random: Random, few: Sequence[int]) -> list[Rungs]:
        """Those down the slope first, others at random beside them; none twice."""
        state = self.state
        most = min(OFFSPRING, self._limits.candidates - state.candidates if self._limits.candidates else OFFSPRING)
        found: list[Rungs] = []

        def add(rungs: Rungs | None) -> None:
            if rungs is not None and rungs != state.parent and rungs not in found and len(found) < most:
                found.append(rungs)

        for rungs in self.field.guided(state.parent, self._slopes(few), state.reach):
            add(rungs)
        for _ in range(4 * OFFSPRING):
            if len(found) == most:
                break
            add(self.field.mutated(state.parent, random, MOST_REACH * random.random()))
        return found

    def _slopes(self, few: Sequence[int]) -> dict[str, float]:
        """Pool name -> what ΣKL rises by for a parameter more that goes, from the units at the edge of its cut."""
        keep = self._keep(self.state.parent)
        found = self._fitness.slopes(keep, few)
        wide = {
            name: max(1, round(ladder.pool.size / EDGE / ladder.step)) for name, ladder in self.field.ladders.items()
        }
        more, less = (
            self._keep({n: self.field.ladders[n].within(rung + way * wide[n]) for n, rung in self.state.parent.items()})
            for way in (1, -1)
        )
        slopes = {}
        for name, ladder in self.field.ladders.items():
            sides = (keep[name] & ~more[name], less[name] & ~keep[name])
            means = [float(found[name][side].mean()) for side in sides if side.any()]
            slopes[name] = -sum(means) / max(1, len(means)) / ladder.pool.unit_params
        return slopes

    def _keep(self, rungs: Mapping[str, int]) -> dict[str, Tensor]:
        """The units that are left of a candidate: the highest scores of each pool, as a cut picks them."""
        everything = {pool.name: torch.ones(pool.size, dtype=torch.bool) for pool in self._units.pools}
        return Budget(self._units, self.field.gone(rungs)).select(self._scores, everything, 1.0)

    def _about(self) -> str:
        """What the search is of: another's state is none of its own."""
        held = hashlib.sha256()
        for name, scores in sorted(self._scores.items()):
            held.update(name.encode() + scores.contiguous().numpy().tobytes())
        pots = [(pot.upper, [ladder.rungs for ladder in pot.ladders]) for pot in self.field.pots]
        held.update(json.dumps([self._seed, self._fitness.tokens, pots, self._starts]).encode())
        return held.hexdigest()

    def _noted(self) -> State | None:
        """The state to go on from: every process has it, or none does."""
        about = self._about()
        state: State | None = None
        if self._note is not None and self._note.is_file():
            found: dict[str, Any] = json.loads(self._note.read_text(encoding="utf-8"))
            state = State(**found) if found.get("about") == about else None
        stands = state.generation if state else -1
        alike = largest(stands) == stands and total(stands) == stands * processes()
        if largest(int(not alike)) or state is None:
            return None
        same = self._fitness.divergences(self._keep(state.parent), self._all) == state.sums
        return state if same else None  # else it was of other weights or texts

    def _write(self) -> None:
        if self._note is not None and rank() == 0:
            write_json(self._note, asdict(self.state))
