"""The options of `prune`, `quickstart` and `export`. Importing this module imports no torch.

A field of a config is a command-line flag (`prune_start` -> `--prune-start`), a YAML key and a key of `result.json`,
all with the same name. What a part of the program takes stands in a class beside this module (in `schedule`, `pruning`,
`lora`, `ranks`), which that part is given whole: an option is written there, and where it is used, and nowhere between.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .formats import ADAPTER, FORMATS, GGUF, OUTTYPES, PADDED, QUANTISED, convertible
from .lora import RecoveryOptions
from .options import at_least, choice_faults, flag, option
from .pruning import UNITS, PruningOptions
from .run import DEVICE_HELP, DEVICES, RunConfig, device_faults, load_in_faults
from .sizes import TARGETS, TimeOptions, target_faults

DEFAULT_SPARSITY = 0.2
"""Where neither a sparsity nor a size is given."""
OF_TRAINING = (
    "resume", "save_steps", "eval_steps", "report_to", "distill", "init_rank", "dropout", "train_also", "restart_lora",
)  # fmt: skip
"""Options that ask for something of the training."""


@dataclass(frozen=True, kw_only=True)
class PruneConfig(PruningOptions, RecoveryOptions, TimeOptions, RunConfig):
    """Everything that `secateur prune` can be told."""

    least_steps: ClassVar[int] = 0

    steps: int | None = option(
        "optimiser steps; default: --epochs over the data; 0: no training, prune by scores and refit alone",
        None,
        group="training",
    )
    target_params: str | int | None = option(
        "instead of --sparsity: parameters of the whole pruned model, such as 80M", None, group="pruning"
    )
    target_bytes: str | int | None = option(
        "instead of --sparsity: bytes of its weights in the checkpoint's precision, such as 160MB",
        None,
        group="pruning",
    )
    experts: int | None = option(
        "mixtures of experts: keep this many in each layer; the others go before training",
        None,
        group="pruning",
    )
    experts_by: str = option(
        "which experts go. reap: the lowest mean of routing weight times the norm of what the expert says, over the "
        "tokens that it is given (arXiv 2510.13999); router: the lowest sum of routing weights",
        "reap",
        group="pruning",
        choices=("reap", "router"),
    )
    stream_export: bool = option(
        "make the result from the original checkpoint's files, one tensor at a time, and load no dense model for it: "
        "for models that are large for this machine's memory",
        False,
        group="output",
    )
    extract_text: bool = option(
        "of a model that also reads pictures or sound, whose text model is pruned: check before training that this "
        "computes what the whole one does of text (loads both)",
        False,
        group="model",
    )
    lr_decay: str = option(
        "after-cuts: the rate stays at its peak until the last cut, then falls as a cosine; cosine: over the whole run",
        "after-cuts",
        group="training",
        choices=("cosine", "after-cuts"),
    )
    distill: float = option("weight α of the loss against the dense model's outputs", 0.0, group="training")
    distill_temperature: float = option("temperature of both in that loss", 1.0, group="training")

    def __post_init__(self) -> None:
        if all(getattr(self, name) is None for name in TARGETS):
            object.__setattr__(self, "sparsity", DEFAULT_SPARSITY)
        if self.steps == 0 and self.cuts is None:
            object.__setattr__(self, "cuts", 1)

    @staticmethod
    def formerly(options: Mapping[str, Any]) -> dict[str, Any]:
        """Options that came later with another default -> what a record without them means, by its other options."""
        return {
            "lr_decay": "cosine",
            "gate_tokens": 0,
            "experts_by": "router" if options.get("experts") else "reap",  # where none go, it says nothing
        }

    @property
    def untrained(self) -> bool:
        """Whether the model is pruned without training (`--steps 0`)."""
        return self.steps == 0

    def scoring_steps(self, processes: int, batches: int | None = None) -> int:
        """Batches that are scored without training, all cuts together; each looks at the same ones.

        Args:
            batches: as many as the data makes for all processes, where it is known.
        """
        a_cut = math.ceil(self.calibration_tokens / (self.batch_size * self.seq_len * processes))
        return (self.cuts or 1) * (a_cut if batches is None else min(a_cut, batches))

    @property
    def shrinks(self) -> bool:
        """Whether cuts slice the model in training; a 4-bit one cannot be."""
        return self.shrink and self.load_in != "4bit"

    def faults(self) -> list[str]:
        """All faults that can be known from the options alone."""
        found = RunConfig.faults(self) + PruningOptions.faults(self) + target_faults(self)
        found += load_in_faults(self.load_in, self.lora_init, self.compensate, self.experts)
        found += RecoveryOptions.faults(self)
        if not 0 <= self.distill <= 1:
            found.append(f"--distill is {self.distill}: give the weight of the dense model's outputs, from 0 to 1.")
        if not self.distill_temperature > 0:
            found.append(f"--distill-temperature is {self.distill_temperature}: it must be above 0.")
        if self.extract_text and self.load_in:
            found.append(
                f"--extract-text compares with the whole model, and --load-in {self.load_in} rounds what is compared: "
                "write the text model first (secateur extract-text), and give that."
            )
        if self.experts is not None and any(getattr(self, name) for name in TARGETS[1:]):
            found.append("--experts goes with --sparsity, which is of what the experts that stay hold.")
        if self.experts is None and self.experts_by != "reap":
            found.append(f"--experts-by {self.experts_by} says which experts --experts takes away: give that too.")
        if self.distill and self.shrinks:
            found.append("--distill needs the dense weights to the end, which shrinking drops: add --no-shrink.")
        if self.init_rank is not None and self.units != UNITS[0]:
            found.append(f"--init-rank prunes the adapter of what --units {self.units} removes: leave one out.")
        if self.init_rank is not None and self.init_rank < self.rank:
            found.append(f"--init-rank {self.init_rank} is below --rank {self.rank}: the adapter's rank only falls.")
        if self.init_rank is not None and (self.schedule == "one-shot" or self.adapter):
            found.append(
                "--init-rank goes with cuts while training, and with an adapter of our own: leave out "
                "--schedule one-shot and --adapter."
            )
        return found + self._stream_faults() + self._recovery_faults() + self._training_faults()

    def _recovery_faults(self) -> list[str]:
        """What does not go with LoRA that begins anew, or with a second learning rate."""
        found = []
        if self.restart_lora:
            found += [f"--restart-lora: {why}" for why in self._no_restarts()]
        if self.schedule == "one-shot" and self.lr_after is not None:
            found.append("--lr-after: with --schedule one-shot all of the training follows the cut: give --lr.")
        if self.load_in:
            found += [
                f"--train-also {part}: those of --load-in {self.load_in} are rounded: leave one out."
                for part in ("biases", "weights")
                if part in self.also
            ]
        return found

    def _no_restarts(self) -> list[str]:
        found = []
        if self.load_in:
            found.append(
                f"LoRA is merged into the base, and that of --load-in {self.load_in} is rounded: leave one out."
            )
        if self.init_rank is not None:
            found.append("--init-rank averages what it sees of components that would be replaced: leave one out.")
        if self.lora_init in ("pissa", "olora"):
            found.append(f"--lora-init {self.lora_init} takes a part of the base into LoRA: leave one out.")
        if self.schedule == "one-shot" and self.restarts_at_cuts:
            found.append("with --schedule one-shot no LoRA is trained before the cut: give a number of steps.")
        return found

    def _training_faults(self) -> list[str]:
        """What goes with training alone where there is none, and the other way round."""
        if not self.untrained:
            return ["--cuts goes with --steps 0: with training, --frequency says when cuts are made."] * bool(self.cuts)
        return [
            f"{flag(name)} goes with training, and --steps 0 asks for none: leave one out."
            for name in OF_TRAINING
            if getattr(self, name)
        ]

    def _stream_faults(self) -> list[str]:
        """What changes the frozen weights, and so is not in the files that `--stream-export` reads."""
        if not self.stream_export:
            return []
        found = [f"--lora-init {self.lora_init}"] if self.lora_init in ("pissa", "olora") else []
        found += [f"--compensate {self.compensate}"] if self.compensate != "none" else []
        found += [f"--experts {self.experts}"] if self.experts is not None else []
        found += ["--train-also weights"] if "weights" in self.also else []
        found += ["--restart-lora"] if self.restart_lora else []
        return [f"{given} changes the weights that --stream-export reads anew: leave one out." for given in found]


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """Everything that `secateur quickstart` can be told."""

    output: str = option("folder for the pruned checkpoint and its records", "secateur-quickstart", group="output")
    overwrite: bool = option("replace a non-empty output folder", False, group="output")
    steps: int = option("optimiser steps", 34, group="training")
    device: str = option(DEVICE_HELP, "auto", group="training", known=DEVICES)

    def faults(self) -> list[str]:
        """All faults that can be known from the options alone."""
        return at_least(self, "steps", 10) + device_faults(self.device)


@dataclass(frozen=True, kw_only=True)
class ExtractTextConfig:
    """Everything that `secateur extract-text` can be told."""

    model: str = option(
        "a model that also reads pictures or sound: its folder", group="model", metavar="MODEL", positional=True
    )
    output: str = option("folder for its text model", group="output", metavar="OUT", positional=True)
    overwrite: bool = option("replace a non-empty output folder", False, group="output")

    def faults(self) -> list[str]:
        """All faults that can be known from the options alone."""
        return choice_faults(self)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Everything that `secateur export` can be told."""

    model: str = option("a checkpoint that secateur wrote", group="model")
    output: str = option("folder for the new checkpoint; with --format gguf a file", group="output")
    format: str = option(
        "; ".join(f"{name}: {FORMATS[name].help}" for name in convertible()),
        PADDED,
        group="output",
        choices=convertible(),
    )
    data: str | None = option(
        "compressed-tensors, --imatrix: text to calibrate on; default: what the run was trained on",
        None,
        group="output",
    )
    calibration_tokens: int = option(
        "compressed-tensors, --imatrix: tokens of it to calibrate on", 65536, group="output"
    )
    device: str = option(f"compressed-tensors, --imatrix: {DEVICE_HELP}", "auto", group="output", known=DEVICES)
    model_class: str = option(
        "stock class to write: keep, or mistral (same function as llama, any head count)",
        "keep",
        group="output",
        choices=("keep", "mistral"),
    )
    outtype: str | None = option(
        "gguf: precision of the weights; default: the checkpoint's", None, group="output", choices=OUTTYPES
    )
    quantise: str | None = option(
        "gguf: by llama.cpp's own quantiser; compressed-tensors: int8 (activations too) or int4 (GPTQ; default)",
        None,
        group="output",
        choices=tuple(dict.fromkeys(name for format in FORMATS.values() for name in format.quantisations)),
    )
    imatrix: bool = option(
        "gguf, with --quantise: weigh roundings by an importance matrix (mean squares of what weights get on --data)",
        False,
        group="output",
    )
    engine: str | None = option(
        "gguf, and adapters for llama.cpp: the Python of the environment that has its wheels; default: this one",
        None,
        group="output",
        metavar="PYTHON",
    )
    overwrite: bool = option("replace a non-empty output folder, or a file", False, group="output")

    def faults(self) -> list[str]:
        """All faults that can be known from the options alone."""
        found = choice_faults(self) + at_least(self, "calibration_tokens", 1024) + device_faults(self.device)
        if found:
            return found
        if self.device != "auto" and self.format != QUANTISED and not self.imatrix:
            found.append(
                f"--device {self.device} goes with --format {QUANTISED}, which calibrates, and with --imatrix: others "
                "are written and read back on the CPU."
            )
        if self.imatrix and (self.format != GGUF or not self.quantise):
            found.append(f"--imatrix goes with --format {GGUF} and --quantise: it is of use for a quantisation alone.")
        chosen = FORMATS[self.format]
        if not chosen.engine:
            given = {"outtype": self.outtype, "engine": self.engine if self.format != ADAPTER else None}
            found += [f"{flag(name)} {value} goes with --format {GGUF}." for name, value in given.items() if value]
        elif self.model_class != "keep":
            found.append(f"--model-class {self.model_class} goes with --format {PADDED}: leave it out.")
        if self.quantise and self.quantise not in chosen.quantisations:
            fit = [name for name, format in FORMATS.items() if self.quantise in format.quantisations]
            found.append(f"--quantise {self.quantise} goes with --format {' or '.join(fit)}.")
        if self.quantise and self.outtype == "q8_0":
            found.append(f"--outtype q8_0 is quantised already, and --quantise {self.quantise} too: leave one out.")
        return found
