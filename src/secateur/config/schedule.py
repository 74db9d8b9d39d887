"""When cuts are made: the options of `pruning.schedule.Schedule`."""

from dataclasses import dataclass

from .options import Options, at_least, option, step_faults


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
    frequency: int = option("optimiser steps between cuts", 10, group="schedule")

    def faults(self) -> list[str]:
        """All faults that can be known from the options alone."""
        return at_least(self, "frequency", 1) + step_faults(self, "prune_start") + step_faults(self, "prune_end")
