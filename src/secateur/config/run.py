"""The options that every command that trains shares."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar

from ..system.registry import did_you_mean
from .hub import HubOptions
from .lora import LoraOptions
from .options import Seeded, at_least, choice_faults, flag, option, step_faults

DEVICE_HELP = (
    "what computes: auto (the accelerator where there is one), cpu, cuda or cuda:1 (NVIDIA, AMD), mps (Apple), xpu "
    "(Intel)"
)
DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
BOS = ("auto", "always", "never")
BOS_HELP = (
    "begin each segment and training sequence with the beginning-of-sequence token: auto where the tokenizer puts it "
    "before texts"
)

LOAD_IN = ("8bit", "4bit")
LOAD_IN_HELP = (
    "hold the frozen base quantised, through bitsandbytes: 8bit (LLM.int8; cuts slice it) or 4bit (NF4; cuts mask it, "
    "as its blocks run across rows); the result is made from the original weights"
)
NAMES = {"8bit": "8 bits (LLM.int8)", "4bit": "4 bits (NF4)"}
CUTS = {
    "8bit": "cuts slice it",
    "4bit": "cuts mask it until the result is written, as its blocks of 64 entries run across rows",
}


def device_faults(device: str) -> list[str]:
    """A fault where `--device` names no kind of device; whether there is one is seen when torch is there."""
    kind, _, number = device.partition(":")
    if kind not in DEVICES:
        meant = "'auto' takes the GPU where there is one. " if kind.lower() == "gpu" else did_you_mean(kind, DEVICES)
        return [f"--device is {device!r}. {meant}Choose from: {', '.join(DEVICES)}, cuda:0."]
    numbered = kind in ("cuda", "xpu") and number.isdecimal() and number.isascii() and len(number) < 4
    if device != kind and not numbered:
        return [f"--device is {device!r}: give {kind}{' or a number with it, such as cuda:1' * (kind == 'cuda')}."]
    return []


@dataclass(frozen=True, kw_only=True)
class RunConfig(Seeded, LoraOptions, HubOptions):
    """What every command that trains can be told."""

    least_steps: ClassVar[int] = 1

    model: str = option("local folder, GGUF file, hub id, or smollm2-135m-instruct", group="model")
    trust_remote_code: bool = option("allow Python code shipped with the model", False, group="model")
    data: tuple[str, ...] = option(
        "training text: .txt, .jsonl, .json, .csv, .parquet, .arrow, a folder of these, a hub data set, or stdlib-docs",
        group="data",
    )
    eval_data: str | None = option("text to evaluate on while training and at the end", None, group="data")
    eval_steps: int = option("steps between evaluations; 0: only before and after", 0, group="training")
    eval_tokens: int = option("tokens of --eval-data to use", 65536, group="data")
    eval_seq_len: int | None = option("segment length of evaluations; default: --seq-len", None, group="data")
    output: str = option("folder for the pruned checkpoint and its records", group="output")
    overwrite: bool = option("replace a non-empty output folder", False, group="output")
    dry_run: bool = option(
        "all but the training: checks, loads, cuts to the target, writes to a folder beside the output, reads "
        "that back, and deletes it",
        False,
        group="output",
    )
    steps: int | None = option("optimiser steps; default: --epochs over the data", None, group="training")
    epochs: float = option("passes over the data when --steps is not given", 1.0, group="training")
    batch_size: int = option("sequences per optimiser step and process", 8, group="training")
    accumulation: int = option("micro-batches a step is split into", 1, group="training")
    seq_len: int = option("tokens per sequence", 256, group="training")
    target_seq_len: int | None = option(
        "encoder-decoders (T5): tokens of a target at most, where --seq-len are those of a source; default: --seq-len",
        None,
        group="training",
    )
    gradient_checkpointing: bool = option(
        "keep only each layer's input and compute the rest again in the backward pass: less memory, more time",
        False,
        group="training",
    )
    response_only: bool = option("loss on the response tokens only", False, group="training")
    system_prompt: str | None = option(
        "before each conversation or prompt of the training data, as its system turn: a text, or collaborative, which "
        "tells the model that it is being pruned (after Compresso)",
        None,
        group="data",
    )
    packing: str = option(
        "documents of a sequence: joined into one text, or separate: positions, attention, labels stay within each",
        "joined",
        group="data",
        choices=("joined", "separate"),
    )
    bos: str = option(BOS_HELP, "auto", group="data", choices=BOS)
    lr: float = option("peak learning rate of AdamW", 5e-4, group="training")
    lr_warmup: float | int = option("learning-rate warm-up: a fraction or steps", 0.05, group="training")
    device: str = option(DEVICE_HELP, "auto", group="training", known=DEVICES)
    dtype: str = option(
        "computation: auto takes bfloat16 where the hardware has it",
        "auto",
        group="training",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    load_in: str | None = option(LOAD_IN_HELP, None, group="model", choices=LOAD_IN)
    on_nan: str = option(
        "gradients that are not finite leave their step out; stop: end the run after three in a row",
        "stop",
        group="training",
        choices=("stop", "skip"),
    )
    save_steps: int = option("steps between training checkpoints; 0: none", 0, group="training")
    resume: bool = option("go on from the newest complete checkpoint of this --output", False, group="training")
    process_timeout: int = option(
        "with several processes: seconds after which one that does not answer is given up", 1800, group="training"
    )
    report_to: tuple[str, ...] = option(
        "experiment trackers that get the figures of every step: tensorboard, wandb, mlflow, trackio",
        (),
        group="training",
        known=TRACKERS,
    )
    family: str | None = option("architecture layout, when the model type is not known", None, group="model")

    def faults(self) -> list[str]:
        """All faults that can be known from the options alone."""
        found = choice_faults(self) + LoraOptions.faults(self) + HubOptions.faults(self) + device_faults(self.device)
        for name in ("batch_size", "accumulation", "eval_tokens", "process_timeout"):
            found += at_least(self, name, 1)
        found += at_least(self, "seq_len", 2)  # the first token is not predicted
        for name in ("save_steps", "eval_steps", "seed"):
            found += at_least(self, name, 0)
        found += at_least(self, "steps", self.least_steps) + at_least(self, "eval_seq_len", 2)
        found += at_least(self, "target_seq_len", 2)
        for name in ("lr", "epochs"):
            if not (value := getattr(self, name)) > 0:
                found.append(f"{flag(name)} is {value}: it must be above 0.")
        found += step_faults(self, "lr_warmup")
        if self.batch_size > 0 and self.accumulation > 0 and self.batch_size % self.accumulation:
            found.append(
                f"--batch-size {self.batch_size} does not split into --accumulation {self.accumulation} "
                "equal micro-batches: choose a divisor."
            )
        if self.system_prompt is not None and not self.system_prompt.strip():
            found.append("--system-prompt is empty: give a text, or leave it out.")
        if self.resume and self.overwrite:
            found.append("--resume goes on with a run and --overwrite starts it anew: leave one out.")
        for name in self.report_to:
            if name not in TRACKERS:
                found.append(f"--report-to {name}: choose from {', '.join(TRACKERS)}.")
            elif (spec := find_spec(name)) is None or spec.origin is None:  # a folder is no package
                found.append(f"--report-to {name}: the package is not installed: pip install {name}.")
        if self.eval_steps and not self.eval_data:
            found.append(f"--eval-steps {self.eval_steps} needs --eval-data.")
        return found


def load_in_words(load_in: str, *, cuts: bool) -> str:
    """How the base is held, and what a cut does to it."""
    what = f"{CUTS[load_in]}; " if cuts else ""
    return f"the frozen base is held in {NAMES[load_in]}: {what}the result is made from the original weights"


def load_in_faults(
    load_in: str | None, lora_init: str, compensate: str = "none", experts: int | None = None
) -> list[str]:
    """Faults of `--load-in` beside other options of `prune` or `adapt`."""
    if load_in is None:
        return []
    given, found = f"--load-in {load_in}", []
    if lora_init in ("pissa", "olora"):
        found.append(
            f"--lora-init {lora_init} moves a part of the base's weights into LoRA, and {given} has them "
            "rounded, so the two would not add up to the original ones: leave one out."
        )
    if compensate != "none":
        found.append(
            f"--compensate {compensate} rewrites the base's weights or biases at a cut, and with {given} the "
            "result is made from the original ones: leave one out."
        )
    if experts is not None:
        found.append(f"--experts is for mixtures of experts, which {given} cannot hold: leave one out.")
    return found
