"""When cuts are made: the options of `pruning.schedule.Schedule`."""

import math
from dataclasses import dataclass

from .options import Options, option, step_faults


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions(Options):
    """From which step to which something goes, how often, and along which curve."""

    schedule: str = option(
        "how much is gone between the first and the last cut; one-shot: score on the first --prune-start steps "
        "without training, cut once, then train",
        "cubic",
        group="schedule",
        choices=("cubic", "linear", "one-shot"),
    )
    prune_start: float | int = option(
        "cuts begin after this, the first --frequency steps later; one-shot: here: a fraction (0.1) or a step (10)",
        0.1,
        group="schedule",
    )
    prune_end: float | int = option("last cut: a fraction (0.6) or a step (60)", 0.6, group="schedule")
    frequency: float | int = option(
        "optimiser steps between cuts: a number (10), or a fraction of the run (0.17: three cuts)",
        10,
        group="schedule",
    )

    def faults(self) -> list[str]:
        """All faults that can be known from the options alone."""
        every, found = self.frequency, step_faults(self, "prune_start") + step_faults(self, "prune_end")
        if not 0 < every < math.inf or (every > 1 and every != int(every)):
            found.append(f"--frequency is {every}: give at least 1, in whole steps, or a fraction of the run.")
        return found
