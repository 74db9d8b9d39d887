"""How an adapter's rank falls: the options of a `RankPruner`."""

from dataclasses import dataclass

from .lora import LoraOptions
from .options import Seeded, at_least, below_one, option
from .schedule import ScheduleOptions


@dataclass(frozen=True, kw_only=True)
class RankOptions(ScheduleOptions, Seeded):
    """Everything that a `RankPruner` can be told (PrunedLoRA, arXiv:2510.00192)."""

    rank: int = option(
        "rank that the adapter ends with; with global allocation, on average", LoraOptions.rank, group="lora"
    )
    scaling: str = option(
        "fixed: alpha / r of the final rank throughout; rank: it grows to that as the rank falls, as 1 / sqrt(r)",
        "fixed",
        group="lora",
        choices=("fixed", "rank"),
    )
    criterion: str = option("what scores the rank components", "gradient", group="criterion")
    recovery: str = option(
        "what the components that stay do at a cut: nothing, make up for it, or that and a Newton step",
        "compensate",
        group="criterion",
        choices=("none", "compensate", "newton+compensate"),
    )
    damping: float = option("added to the curvature, relative to its mean diagonal", 0.1, group="criterion")
    fisher_decay: float = option("weight of the past in the moving average of the curvature", 0.9, group="criterion")
    allocation: str = option(
        "uniform: the same rank in each layer; global: ranked across layers, at least 1",
        "uniform",
        group="pruning",
        choices=("uniform", "global"),
    )
    basis: str = option(
        "components that a cut chooses from: given, as they are trained; singular, the adapter's singular directions; "
        "weighted, those of what it makes of its inputs",
        "given",
        group="pruning",
        choices=("given", "singular", "weighted"),
    )
    prune_start: float | int = option(
        "cuts begin after this, the first --frequency steps later: a fraction (0.1) or a step (10)",
        ScheduleOptions.prune_start,
        group="schedule",
    )
    k1: int | None = option("with --k2, instead of --prune-end: steps between cuts", None, group="schedule")
    k2: int | None = option("with --k1: components per cut and layer", None, group="schedule")

    def faults(self) -> list[str]:
        """All faults that can be known from the options alone."""
        found = super().faults() + at_least(self, "k1", 1) + at_least(self, "k2", 1)
        if not self.damping > 0:
            found.append(f"--damping is {self.damping}: it must be above 0.")
        found += below_one(self, "fisher_decay")
        if (self.k1 is None) != (self.k2 is None):
            found.append("--k1 and --k2 go together: give both, or neither.")
        return found
