"""How units are scored, how many of them go from where, and what a cut does: the options of a `Pruner`."""

from dataclasses import dataclass, fields

from .options import Options, Seeded, at_least, below_one, flag, option
from .schedule import ScheduleOptions

WIDTH = ("heads", "channels")
LAYERS, BLOCKS = "layers", "blocks"
UNITS = (",".join(WIDTH), ",".join((*WIDTH, BLOCKS)), BLOCKS, LAYERS)
"""What can be removed: heads and channels, with them or alone whole attention and FFN blocks, or whole layers."""
OF_WIDTH = (
    "attention", "round_to", "attention_sparsity", "floor", "across_layers", "search_evaluations", "search_minutes",
    "compensate", "allocation",
)  # fmt: skip
"""Options that are about heads and channels; `--allocation protected` is about layers, too."""
CRITERIA = (
    "compresso", "flap", "gate", "influence", "learned", "lora", "loss", "magnitude", "obs", "projected", "random",
    "taylor", "taylor-accumulated", "wanda",
)  # fmt: skip
"""Names of the criteria that come with the package; one may register others."""
SEARCH_EVALUATIONS = 120
"""How many allocations a search looks at where nothing bounds it."""


@dataclass(frozen=True, kw_only=True)
class ScoringOptions(Seeded):
    """What becomes one score per unit and step (LoRAPrune Eqs. 4, 10; docs/papers.md)."""

    reduce: str = option(
        "how an entry's first-order term counts: squared (paper) or abs (released code)",
        "squared",
        group="criterion",
        choices=("squared", "abs"),
    )
    normalize: str = option(
        "before the linears of a unit are added: none, linear (L2 norm), scale (s²·r/in), projected (what LoRA's "
        "gradients say of ∂L/∂W, whatever the factors' scale; without --eta)",
        "none",
        group="criterion",
        choices=("none", "linear", "scale", "projected"),
    )
    eta: float = option("the -η·∂B·∂A term of the LoRA-guided gradient; 1 in the paper", 1.0, group="criterion")
    gate_tokens: int = option(
        "gate: a unit's switch is one for so many tokens in a row, of which a step sees several; 0: for a sequence",
        32,
        group="criterion",
    )
    score_linears: str | None = option(
        "score the linears whose rows a unit owns (q k v gate up), or all; default: what suits the criterion",
        None,
        group="criterion",
        choices=("rows", "all"),
    )
    offload_gradients: bool = option(
        "taylor-accumulated: keep the weights' gradients in the host's memory", False, group="criterion"
    )
    mask_lr: float | None = option(
        "learned, projected, compresso: learning rate of the masks; default: 0.02, 0.01 and 0.1, more where they train "
        "for few steps",
        None,
        group="criterion",
    )

    def faults(self) -> list[str]:
        """All faults that can be known from the options alone."""
        found = at_least(self, "gate_tokens", 0)
        if self.mask_lr is not None and not self.mask_lr > 0:
            found.append(f"--mask-lr is {self.mask_lr}: it must be above 0.")
        return found


@dataclass(frozen=True, kw_only=True)
class BudgetOptions(Options):
    """How much goes, of what and from where."""

    sparsity: float | None = option(
        "fraction of the parameters of the prunable linears to remove; default: 0.2", None, group="pruning"
    )
    units: str = option(
        "what is removed: attention heads and FFN channels, whole attention and FFN blocks (beside them or alone), or "
        "whole layers",
        UNITS[0],
        group="pruning",
        choices=UNITS,
    )
    attention: str = option(
        "attention unit: a KV head with its query heads, query heads only, or none; auto: KV groups where the "
        "architecture can lose some",
        "auto",
        group="pruning",
        choices=("auto", "kv_group", "query_head", "none"),
    )
    attention_sparsity: float | None = option(
        "fraction of the attention parameters to remove; default: nearest legal count not above the target",
        None,
        group="pruning",
    )
    allocation: str = option(
        "uniform: the same width in each layer; protected: all but the first/last layers alike; "
        "global: ranked across layers; search: searched, at the first cut, for what changes the model's outputs least",
        "uniform",
        group="pruning",
        choices=("uniform", "protected", "global", "search"),
    )
    protect_first: int | None = option(
        "layers left alone at the start (protected: a tenth of the layers; global, search, --units layers: 0)",
        None,
        group="pruning",
    )
    protect_last: int | None = option(
        "layers left alone at the end (protected: 1; global, search, --units layers: 0)", None, group="pruning"
    )
    floor: float | None = option(
        "global, search: fraction of each layer's units that always stays; default: 0.3, less above a sparsity of 0.5: "
        "0.6 of what stays on average",
        None,
        group="pruning",
    )
    round_to: int = option("round the FFN width to a multiple of this", 1, group="pruning")
    across_layers: str | None = option(
        "global, and where a search starts: compare scores relative to the layer's mean, in standard deviations from "
        "it, or raw; default: raw for lora, gate and taylor, which estimate what the loss would change by, else the "
        "mean",
        None,
        group="pruning",
        choices=("mean", "standard", "raw"),
    )
    search_evaluations: int | None = option(
        f"search: allocations to look at, all of the same budget; default: {SEARCH_EVALUATIONS}, or no bound with "
        "--search-minutes",
        None,
        group="pruning",
    )
    search_minutes: float | None = option(
        "search: end after so many minutes; how far it comes, and so its result, then depends on the machine",
        None,
        group="pruning",
    )
    model_class: str = option(
        "stock class to write: keep, or mistral (same function as llama, any head count)",
        "keep",
        group="output",
        choices=("keep", "mistral"),
    )

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is removed, each kind by itself."""
        return tuple(self.units.split(","))

    @property
    def takes_whole(self) -> bool:
        """Whether layers or blocks go, each as a whole, and nothing else."""
        return self.units in (BLOCKS, LAYERS)

    def _mixed_faults(self) -> list[str]:
        """What does not go where blocks compete with heads and channels."""
        found = []
        if self.allocation != "global":
            found.append(
                f"--units {self.units} ranks blocks, heads and channels of all layers against each other: add "
                "--allocation global."
            )
        if self.attention_sparsity is not None or self.across_layers not in (None, "raw"):
            found.append(
                f"--attention-sparsity and --across-layers part what --units {self.units} ranks together: leave them "
                "out."
            )
        return found

    def _whole_faults(self) -> list[str]:
        """What is about heads and channels, where whole layers or blocks go."""
        found = []
        if self.allocation not in ("uniform", "protected"):
            found.append(
                f"--allocation {self.allocation} says how much each layer loses of its heads and channels: with "
                f"--units {self.units} leave it out, or use protected, which keeps the first and the last layers."
            )
        defaults = {each.name: each.default for each in fields(BudgetOptions) if each.name in OF_WIDTH}
        return found + [
            f"{flag(name)} is about heads and channels: with --units {self.units} leave it out."
            for name, default in defaults.items()
            if getattr(self, name) != default and name != "allocation"
        ]

    def faults(self) -> list[str]:
        """All faults that can be known from the options alone."""
        found = at_least(self, "round_to", 1) + at_least(self, "protect_first", 0) + at_least(self, "protect_last", 0)
        found += below_one(self, "attention_sparsity") + below_one(self, "floor")
        if self.takes_whole:
            return found + self._whole_faults()
        if BLOCKS in self.kinds:
            found += self._mixed_faults()
        if self.allocation == "uniform" and (self.protect_first or self.protect_last):
            found.append(
                "--protect-first/--protect-last leave layers unlike the others, which --allocation uniform "
                "rules out: use --allocation protected."
            )
        if self.allocation != "uniform" and self.model_class != "keep":
            found.append(
                f"--model-class {self.model_class} goes with --allocation uniform: layers that differ need a modelling "
                "file of the model's own class. Leave one of the two out."
            )
        found += at_least(self, "search_evaluations", 1)
        if self.search_minutes is not None and not self.search_minutes > 0:
            found.append(f"--search-minutes is {self.search_minutes}: it must be above 0.")
        if self.allocation != "search" and (self.search_evaluations or self.search_minutes):
            found.append("--search-evaluations and --search-minutes bound a search: add --allocation search.")
        if self.attention == "none" and self.attention_sparsity:
            found.append("--attention-sparsity contradicts --attention none: leave one out.")
        return found


@dataclass(frozen=True, kw_only=True)
class PruningOptions(ScheduleOptions, ScoringOptions, BudgetOptions):
    """Everything that a `Pruner` can be told."""

    criterion: str = option(
        "what scores the units; see secateur criteria. A run that says nothing of how to prune takes --recipe default, "
        "which has gate",
        "lora",
        group="criterion",
        known=CRITERIA,
    )
    ema: float = option("weight λ of the past in the moving average of scores", 0.9, group="criterion")
    ema_relative: bool = option(
        "average each step's scores relative to their mean, so that a step with large gradients (as after a cut) does "
        "not outweigh the others; the paper averages them as they are",
        False,
        group="criterion",
    )
    compensate: str = option(
        "at a cut, what stays takes over: none, lstsq (least squares on down and o, each by itself), sequential (the "
        "same layer by layer, on what the layers already cut make, towards the model before the cut), bias (FLAP)",
        "none",
        group="pruning",
        choices=("none", "lstsq", "sequential", "bias"),
    )
    calibration_tokens: int = option(
        "sequential: fit to, search: compare on, loss: measure on, without training (--steps 0): score on so many "
        "tokens of the training data",
        8192,
        group="pruning",
    )
    shrink: bool = option("slice the model at each cut; --no-shrink masks it until the end", True, group="schedule")
    cuts: int | None = option(
        "without training (--steps 0): so many cuts, evenly spread, each by scores and a refit of its own; default: 1",
        None,
        group="schedule",
    )

    def faults(self) -> list[str]:
        """All faults that can be known from the options alone."""
        groups = ScheduleOptions.faults(self) + ScoringOptions.faults(self) + BudgetOptions.faults(self)
        found = groups + below_one(self, "ema") + at_least(self, "calibration_tokens", 1) + at_least(self, "cuts", 1)
        if self.schedule == "one-shot" and (self.cuts or 1) > 1:
            found.append(f"--schedule one-shot makes one cut and --cuts asks for {self.cuts}: use --schedule linear.")
        if self.units != UNITS[0] and self.compensate not in ("none", "sequential"):
            found.append(
                f"--compensate {self.compensate} lets heads and channels take over for others beside them: with "
                f"--units {self.units} use sequential, by which the layers before and behind do, or none."
            )
        if self.criterion == "compresso" and self.compensate != "none":
            found.append(
                f"--compensate {self.compensate} fits to inputs that --criterion compresso scales at random: use none."
            )
        if self.criterion == "projected" and self.compensate == "sequential":
            found.append(
                "--compensate sequential does nothing beside --criterion projected, which hides units before they are "
                "cut: use --compensate lstsq."
            )
        return found
