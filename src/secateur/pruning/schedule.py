"""When to cut and how far: optimiser step -> share of the target. Pure arithmetic."""

import logging
import math
from dataclasses import dataclass

from ..config.options import steps_of
from ..config.pruning import PruningOptions
from ..config.schedule import ScheduleOptions
from ..system.errors import InputError, all_faults

log = logging.getLogger("secateur")


@dataclass(frozen=True)
class Schedule:
    """Cuts at whole optimiser steps, the last one exactly on `end` whatever the frequency.

    Steps are counted from 1: step t is the t-th optimiser update, and a cut at t follows it.

    Attributes:
        kind: `cubic` (LoRAPrune: s_t = S·(1 − (1 − (t − start)/(end − start))³)), `linear`, or `one-shot`
            (the whole target at once, at `start`, when the scores have filled), or `stepwise` (`share` of the
            target at each cut).
        start, end: steps. Nothing is removed up to and at `start`, all of the target at `end`.
        frequency: steps between cuts.
    """

    kind: str
    start: int
    end: int
    frequency: int = int(ScheduleOptions.frequency)
    share: float = 0.0

    def progress(self, step: int) -> float:
        """Share of the target that is due after `step`: 0 at `start`, exactly 1 from `end` on."""
        if self.kind == "one-shot":
            return float(step >= self.start)
        if step <= self.start:
            return 0.0
        if step >= self.end:
            return 1.0
        if self.kind == "stepwise":
            return min(1.0, self.share * ((step - self.start) // self.frequency))
        passed = (step - self.start) / (self.end - self.start)
        return passed if self.kind == "linear" else 1.0 - (1.0 - passed) ** 3

    def due(self, step: int) -> float:
        """Share of the target that masks which no cut has made final may hide after `step`.

        As much as would be gone if there were a cut; one-shot: all of it, after a tenth of the steps.
        """
        return float(10 * step >= self.start) if self.kind == "one-shot" else self.progress(step)

    def is_cut(self, step: int) -> bool:
        """Whether units are removed after `step`."""
        if self.kind == "one-shot":
            return step == self.start
        return self.start < step <= self.end and (step == self.end or (step - self.start) % self.frequency == 0)

    @property
    def last_cut(self) -> int:
        return self.start if self.kind == "one-shot" else self.end

    def cuts(self) -> list[int]:
        """All steps with a cut, ascending."""
        return [step for step in range(1, self.last_cut + 1) if self.is_cut(step)]


def cuts_after(schedule: Schedule | None, step: int) -> int:
    """How many cuts come after a step; none without a schedule."""
    if schedule is None or step >= schedule.last_cut:
        return 0
    if schedule.kind == "one-shot":
        return 1
    behind = max(step, schedule.start) - schedule.start
    return math.ceil((schedule.end - schedule.start) / schedule.frequency) - behind // schedule.frequency


def tell_unfinished(schedule: Schedule | None, steps_done: int) -> None:
    """Warn where a run ended before its last cut: less is gone than was asked for."""
    if schedule is None or steps_done >= schedule.last_cut:
        return
    share = max((schedule.progress(step) for step in schedule.cuts() if step <= steps_done), default=0.0)
    log.warning(
        "the last cut was to follow step %d, and %d steps were made: %.0f %% of the target is gone. Train to the end, "
        "or give total_steps the number of steps that are made.",
        schedule.last_cut,
        steps_done,
        100 * share,
    )


def make_schedule(options: ScheduleOptions, total_steps: int) -> Schedule:
    """A schedule for a run of `total_steps`, of which the options give fractions or steps.

    Raises:
        InputError: bounds outside the run or in the wrong order, with the steps they come to.
    """
    if isinstance(options, PruningOptions) and options.cuts is not None:
        return _spread(options.schedule, options.cuts, total_steps)
    kind, start, end = options.schedule, options.prune_start, options.prune_end
    first, last = steps_of(start, total_steps), steps_of(end, total_steps)
    if kind == "one-shot":
        first = last = max(first, 1)  # scores exist only after the first step
    faults = []
    if last > total_steps:
        faults.append(f"--prune-end {end} is step {last} of a run of {total_steps}: end the cuts inside the run.")
    if kind != "one-shot" and first >= last:
        faults.append(
            f"--prune-start {start} (step {first}) is not before --prune-end {end} (step {last}) in a run of "
            f"{total_steps} steps: move them apart, or make the run longer."
        )
    all_faults(faults)
    return Schedule(kind, first, last, _apart(options.frequency, total_steps))


def _apart(frequency: float | int, total_steps: int) -> int:
    """Steps between cuts, of which the option may say a fraction of the run; rounded up, so none comes on top."""
    share = isinstance(frequency, float) and frequency <= 1
    return max(1, math.ceil(round(frequency * total_steps, 6))) if share else int(frequency)


def _spread(kind: str, cuts: int, total_steps: int) -> Schedule:
    """So many cuts at equal distances, the last one at the end (`--cuts`).

    Raises:
        InputError: the steps do not part into so many.
    """
    if total_steps % cuts:
        raise InputError(
            f"--cuts {cuts} does not part {total_steps} steps into equal shares: give a multiple of {cuts} steps."
        )
    if cuts == 1:
        return Schedule("one-shot", total_steps, total_steps)
    return Schedule(kind, 0, total_steps, total_steps // cuts)


def make_stepwise(start: float | int, every: int, size: int, removed: int, total_steps: int) -> Schedule:
    """`size` of `removed` components go every `every` steps, the first of them `every` steps after `start`.

    Raises:
        InputError: the run ends before the last cut; says how many steps it takes.
    """
    first, cuts = steps_of(start, total_steps), math.ceil(removed / size)
    last = first + every * cuts
    if last > total_steps:
        # A start given as a fraction moves with the run's length.
        needed = math.ceil(every * cuts / (1 - start)) if isinstance(start, float) else last
        raise InputError(
            f"--k1 {every} --k2 {size} takes {cuts} cuts to remove {removed} components, the last at step {last}, and "
            f"the run has {total_steps} steps: give --steps {needed + 1} or more, a larger --k2 or a smaller --k1."
        )
    return Schedule("stepwise", first, last, every, size / removed)
