"""The options of `secateur adapt`. Importing this module imports no torch."""

from dataclasses import dataclass

from .options import at_least, below_one, option, step_faults
from .run import RunConfig


@dataclass(frozen=True, kw_only=True)
class AdaptConfig(RunConfig):
    """Everything that `secateur adapt` can be told."""

    output: str = option("folder for the adapter and its records", group="output")
    merge: bool = option("write the model with the adapter merged, not the adapter", False, group="output")
    rank: int = option("rank that the adapter ends with; with global allocation, on average", 8, group="lora")
    init_rank: int = option("rank that it starts with; equal to --rank: plain LoRA", 64, group="lora")
    alpha: int | None = option("LoRA alpha at the final rank; default: the rank, so scaling 1", None, group="lora")

    scaling: str = option(
        "fixed: alpha / r of the final rank throughout; rank: it grows to that as the rank falls, as 1 / sqrt(r)",
        "fixed",
        group="lora",
        choices=("fixed", "rank"),
    )

    criterion: str = option(
        "what scores the rank components",
        "gradient",
        group="criterion",
        choices=("gradient", "sparsegpt", "wanda", "taylor", "magnitude", "random"),
    )
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
        "components that a cut chooses from: given, as they are trained; singular, the adapter's singular directions",
        "given",
        group="pruning",
        choices=("given", "singular"),
    )

    schedule: str = option(
        "how the rank falls between the first and the last cut", "cubic", group="schedule", choices=("cubic", "linear")
    )
    prune_start: float | int = option(
        "cuts begin after this, the first --frequency steps later: a fraction (0.1) or a step (10)",
        0.1,
        group="schedule",
    )
    prune_end: float | int = option("last cut: a fraction (0.6) or a step (60)", 0.6, group="schedule")
    frequency: int = option("optimiser steps between cuts", 10, group="schedule")
    k1: int | None = option("with --k2, instead of --prune-end: steps between cuts", None, group="schedule")
    k2: int | None = option("with --k1: components per cut and layer", None, group="schedule")

    def faults(self) -> list[str]:
        """All faults that can be known from the options alone."""
        found = super().faults()
        for name in ("init_rank", "frequency", "k1", "k2"):
            found += at_least(self, name, 1)
        if self.rank > self.init_rank and not self.adapter:  # an adapter has a rank of its own
            found.append(
                f"--rank {self.rank} is above --init-rank {self.init_rank}: an adapter's rank only falls, so start "
                "with a higher one."
            )
        if not self.damping > 0:
            found.append(f"--damping is {self.damping}: it must be above 0.")
        found += below_one(self, "fisher_decay")
        found += step_faults(self, "prune_start") + step_faults(self, "prune_end")
        if self.criterion == "sparsegpt" and self.recovery == "newton+compensate":
            found.append(
                "--recovery newton+compensate with --criterion sparsegpt: a Newton step goes by the gradients' "
                "curvature and this cut by the activations': use --recovery compensate."
            )
        if self.criterion == "taylor" and self.basis == "singular":
            found.append(
                "--basis singular with --criterion taylor: an average of |∂L/∂w · w| is known only for the components "
                "that it was taken of: use --basis given, or another criterion."
            )
        if (self.k1 is None) != (self.k2 is None):
            found.append("--k1 and --k2 go together: give both, or neither.")
        if self.lora_init in ("pissa", "olora") and not self.merge:
            found.append(
                f"--lora-init {self.lora_init} also changes the base model's weights, so an adapter alone would not "
                "fit the model it came from: add --merge, or choose default or gaussian."
            )
        return found
