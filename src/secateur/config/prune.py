"""The options of every command: the only place where they and their defaults are written.

A field here is a command-line flag (`prune_start` -> `--prune-start`), a YAML key and a key of
`result.json`, all with the same name. Importing this module imports no torch.
"""

from dataclasses import dataclass

from .options import at_least, below_one, choice_faults, option, step_faults
from .run import RunConfig
from .sizes import target_faults

DEFAULT_SPARSITY = 0.2
"""Where neither a sparsity nor a size is given."""


@dataclass(frozen=True, kw_only=True)
class PruneConfig(RunConfig):
    """Everything that `secateur prune` can be told."""

    sparsity: float | None = option(
        "fraction of the parameters of the prunable linears to remove; default: 0.2", None, group="pruning"
    )
    target_params: str | int | None = option(
        "instead of --sparsity: parameters of the whole pruned model, such as 80M", None, group="pruning"
    )
    target_bytes: str | int | None = option(
        "instead of --sparsity: bytes of its weights in the checkpoint's precision, such as 160MB",
        None,
        group="pruning",
    )
    stream_export: bool = option(
        "make the result from the original checkpoint's files, one tensor at a time, and load no dense model for it: "
        "for models that are large for this machine's memory",
        False,
        group="output",
    )
    experts: int | None = option(
        "mixtures of experts: keep this many in each layer; those with the least routing weight go before training",
        None,
        group="pruning",
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
        "global: ranked across layers",
        "uniform",
        group="pruning",
        choices=("uniform", "protected", "global"),
    )
    protect_first: int | None = option(
        "layers left alone at the start (protected: a tenth of the layers; global: 0)", None, group="pruning"
    )
    protect_last: int | None = option("layers left alone at the end (protected: 1; global: 0)", None, group="pruning")
    floor: float | None = option(
        "global: fraction of each layer's units that always stays; default: 0.3, less above a sparsity of 0.5: 0.6 "
        "of what stays on average",
        None,
        group="pruning",
    )
    round_to: int = option("round the FFN width to a multiple of this", 1, group="pruning")
    across_layers: str | None = option(
        "global: compare scores relative to the layer's mean, in standard deviations from it, or raw; default: raw for "
        "lora, gate and taylor, which estimate what the loss would change by, else the mean",
        None,
        group="pruning",
        choices=("mean", "standard", "raw"),
    )
    compensate: str = option(
        "at a cut, what stays takes over: none, lstsq (least squares on down and o), bias (FLAP)",
        "none",
        group="pruning",
        choices=("none", "lstsq", "bias"),
    )

    criterion: str = option("what scores the units; see secateur criteria", "lora", group="criterion")
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
    ema: float = option("weight λ of the past in the moving average of scores", 0.9, group="criterion")
    ema_relative: bool = option(
        "average each step's scores relative to their mean, so that a step with large gradients (as after a cut) does "
        "not outweigh the others; the paper averages them as they are",
        False,
        group="criterion",
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

    schedule: str = option(
        "how sparsity grows between the first and the last cut; one-shot: score on the first --prune-start steps "
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
    shrink: bool = option("slice the model at each cut; --no-shrink masks it until the end", True, group="schedule")

    lr_decay: str = option(
        "after-cuts: the rate stays at its peak until the last cut, then falls as a cosine; cosine: over the whole run",
        "after-cuts",
        group="training",
        choices=("cosine", "after-cuts"),
    )
    init_rank: int | None = option(
        "rank that LoRA starts with; it is pruned to --rank between the same steps (as adapt does)", None, group="lora"
    )
    distill: float = option("weight α of the loss against the dense model's outputs", 0.0, group="training")
    distill_temperature: float = option("temperature of both in that loss", 1.0, group="training")
    model_class: str = option(
        "stock class to write: keep, or mistral (same function as llama, any head count)",
        "keep",
        group="output",
        choices=("keep", "mistral"),
    )

    def __post_init__(self) -> None:
        if self.sparsity is None and self.target_params is None and self.target_bytes is None:
            object.__setattr__(self, "sparsity", DEFAULT_SPARSITY)

    @property
    def shrinks(self) -> bool:
        """Whether cuts slice the model in training; a 4-bit one cannot be."""
        return self.shrink and self.load_in != "4bit"

    def faults(self) -> list[str]:
        """All faults that can be known from the options alone."""
        found = super().faults()
        found += at_least(self, "frequency", 1) + at_least(self, "round_to", 1) + at_least(self, "gate_tokens", 0)
        found += at_least(self, "protect_first", 0) + at_least(self, "protect_last", 0)
        found += target_faults(self)
        found += below_one(self, "attention_sparsity") + below_one(self, "ema") + below_one(self, "floor")
        found += step_faults(self, "prune_start") + step_faults(self, "prune_end")
        if not 0 <= self.distill <= 1:
            found.append(f"--distill is {self.distill}: give the weight of the dense model's outputs, from 0 to 1.")
        if not self.distill_temperature > 0:
            found.append(f"--distill-temperature is {self.distill_temperature}: it must be above 0.")
        if self.experts is not None and (self.target_params or self.target_bytes):
            found.append("--experts goes with --sparsity, which is of what the experts that stay hold.")
        if self.distill and self.shrinks:
            found.append("--distill needs the dense weights to the end, which shrinking drops: add --no-shrink.")
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
        if self.init_rank is not None and self.init_rank < self.rank:
            found.append(f"--init-rank {self.init_rank} is below --rank {self.rank}: the adapter's rank only falls.")
        if self.init_rank is not None and (self.schedule == "one-shot" or self.adapter):
            found.append(
                "--init-rank goes with cuts while training, and with an adapter of our own: leave out "
                "--schedule one-shot and --adapter."
            )
        found += self._stream_faults()
        if self.attention == "none" and self.attention_sparsity:
            found.append("--attention-sparsity contradicts --attention none: leave one out.")
        return found

    def _stream_faults(self) -> list[str]:
        """What changes the frozen weights, and so is not in the files that `--stream-export` reads."""
        if not self.stream_export:
            return []
        found = [f"--lora-init {self.lora_init}"] if self.lora_init in ("pissa", "olora") else []
        found += [f"--compensate {self.compensate}"] if self.compensate != "none" else []
        found += [f"--experts {self.experts}"] if self.experts is not None else []
        return [f"{given} changes the weights that --stream-export reads anew: leave one out." for given in found]


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """Everything that `secateur quickstart` can be told."""

    output: str = option("folder for the pruned checkpoint and its records", "secateur-quickstart", group="output")
    overwrite: bool = option("replace a non-empty output folder", False, group="output")
    steps: int = option("optimiser steps", 34, group="training")

    def faults(self) -> list[str]:
        """All faults that can be known from the options alone."""
        return at_least(self, "steps", 10)


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """What `secateur compare` can be told beside the options of `prune`, which may have several values each."""

    evaluate_on: tuple[str, ...] = option("texts to measure perplexity on, after each run", group="comparison")
    output: str = option("folder for the cells' records, the tables and the plot", group="comparison")
    cells: tuple[str, ...] = option(
        "more runs, each as 'name: option=value option=value', once for every value of the axes that it leaves out; "
        "axes that say conditions alone (lr, seed, sparsity, steps, ...) then make no runs of their own",
        (),
        group="comparison",
    )
    reference: str | None = option(
        "with several seeds: the cell that the others are compared with, seed by seed; default: the first one pruned",
        None,
        group="comparison",
    )
    baselines: tuple[str, ...] = option(
        "what to compare with: dense (untrained), dense+lora (trained, not pruned)",
        ("dense", "dense+lora"),
        group="comparison",
    )
    keep_checkpoints: bool = option("write each cell's checkpoint, verified", False, group="comparison")
    allow_different: bool = option("compare cells of different data, steps or budget", False, group="comparison")

    def faults(self) -> list[str]:
        """All faults that can be known from the options alone."""
        found = choice_faults(self)
        for name in self.baselines:
            if name not in ("dense", "dense+lora"):
                found.append(f"--baselines {name}: choose from dense, dense+lora.")
        return found


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Everything that `secateur export` can be told."""

    model: str = option("a checkpoint that secateur wrote", group="model")
    output: str = option("folder for the new checkpoint", group="output")
    format: str = option(
        "padded: every layer zero-padded to the widest, loads in the stock class",
        "padded",
        group="output",
        choices=("padded",),
    )
    model_class: str = option(
        "stock class to write: keep, or mistral (same function as llama, any head count)",
        "keep",
        group="output",
        choices=("keep", "mistral"),
    )
    overwrite: bool = option("replace a non-empty output folder", False, group="output")

    def faults(self) -> list[str]:
        """All faults that can be known from the options alone."""
        return choice_faults(self)
