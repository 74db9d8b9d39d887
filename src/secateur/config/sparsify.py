"""The options of `secateur sparsify`, and what a pattern of zeros is. Importing this module imports no torch."""

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar

from ..system.errors import InputError
from .options import at_least, flag, option
from .run import RunConfig

METHODS = {
    "sparsegpt": "by the inverse Hessian, and the weights that stay make up for those that go (arXiv:2301.00774)",
    "wanda": "|W| times the norm of its input, row by row (arXiv:2306.11695)",
    "magnitude": "|W|",
    "pst": "learnt while LoRA trains, step by step more, by scores of a low rank (arXiv:2205.11005)",
}
LEARNT = "pst"
"""The method whose zeros come about in training."""
OF_TRAINING = (
    "resume", "save_steps", "eval_steps", "report_to", "dropout", "targets", "lora_plus", "rslora", "alpha",
    "mask_lora",
)  # fmt: skip
"""Options that ask for something of the training."""
SET_BY_LEARNT = ("alpha", "rslora", "lora_plus", "dropout", "targets", "mask_lora", "lora_init")
"""Options of LoRA that PST has no choice of."""


@dataclass(frozen=True)
class Pattern:
    """Which weights of a matrix are zero."""

    share: float
    """Of its entries."""
    stay: int | None = None
    """Weights that stay of each group; None: the zeros may be anywhere."""
    group: int | None = None
    """Neighbouring inputs of a row."""

    @property
    def text(self) -> str:
        return f"{self.share:g}" if self.group is None else f"{self.stay}:{self.group}"


def parse_pattern(text: object) -> Pattern:
    """`2:4` (two of every four inputs stay) or a share such as `0.5`.

    Raises:
        InputError: neither, or one that leaves all or nothing.
    """
    if isinstance(text, int) and text >= 60:  # YAML 1.1 reads 2:4 as two hours and four minutes
        text = f"{text // 60}:{text % 60}"
    given = str(text).strip()
    if found := re.fullmatch(r"([0-9]{1,4}):([0-9]{1,4})", given):
        stay, group = int(found[1]), int(found[2])
        if 0 < stay < group:
            return Pattern(1 - stay / group, stay, group)
    elif re.fullmatch(r"0?\.[0-9]{1,9}", given) and 0 < float(given) < 1:
        return Pattern(float(given))
    raise InputError(
        f"--pattern is {given!r}: give how many weights stay of how many neighbours, such as 2:4 or 4:8, or the share "
        "that goes, above 0 and below 1, such as 0.5."
    )


@dataclass(frozen=True, kw_only=True)
class SparsifyConfig(RunConfig):
    """Everything that `secateur sparsify` can be told."""

    least_steps: ClassVar[int] = 0

    pattern: str | int | float = option(
        "zeros in every linear of the layers: N:M leaves N of each M neighbouring inputs (2:4, 4:8); a share such as "
        "0.5 may lie anywhere",
        "2:4",
        group="pruning",
        metavar="N:M|SHARE",
    )
    method: str = option(
        "what goes: " + "; ".join(f"{name}: {words}" for name, words in METHODS.items()),
        "sparsegpt",
        group="pruning",
        choices=tuple(METHODS),
    )
    calibration_tokens: int = option(
        "sparsegpt, wanda: look at so many tokens of the data; the papers have 262144", 32768, group="pruning"
    )
    steps: int | None = option("optimiser steps of LoRA after it; 0: no training", 0, group="training")
    keep_pattern: bool = option(
        "merge LoRA into the weights that stay alone; --no-keep-pattern fills the zeros", True, group="lora"
    )
    mask_lora: bool = option(
        "mask LoRA as the weights are in every step: what is trained is what is merged, for a product B·A each time",
        False,
        group="lora",
    )
    output: str = option("folder for the checkpoint and its records", group="output")

    def __post_init__(self) -> None:
        with suppress(InputError):
            object.__setattr__(self, "pattern", parse_pattern(self.pattern).text)

    @property
    def zeros(self) -> Pattern:
        """The pattern that is asked for."""
        return parse_pattern(self.pattern)

    def faults(self) -> list[str]:
        """All faults that can be known from the options alone."""
        found = RunConfig.faults(self) + at_least(self, "calibration_tokens", 1)
        try:
            parse_pattern(self.pattern)
        except InputError as error:
            found.append(str(error))
        rewrites = "rewrites the base's weights"
        if self.load_in:
            found.append(f"--load-in {self.load_in} rounds the base, and sparsify {rewrites}: leave it out.")
        if self.adapter:
            found.append(
                f"--adapter {self.adapter}: sparsify {rewrites}, which the adapter was trained on: merge it first "
                "(secateur adapt --merge), and give the merged model."
            )
        if self.init_rank is not None:
            found.append(f"--init-rank {self.init_rank}: sparsify prunes no ranks: give --rank alone.")
        if self.lora_init in ("pissa", "olora"):
            found.append(f"--lora-init {self.lora_init} fills the base's zeros: leave it out.")
        if self.mask_lora and not self.keep_pattern:
            found.append("--mask-lora keeps the zeros, and --no-keep-pattern fills them: leave one out.")
        if self.mask_lora and self.dropout:
            found.append(f"--mask-lora makes one product of weight and LoRA: leave --dropout {self.dropout:g} out.")
        if self.method == LEARNT:
            return found + self._learnt_faults()
        if self.steps == 0:
            found += [
                f"{flag(name)} goes with training: give --steps, or leave it out."
                for name in OF_TRAINING
                if getattr(self, name)
            ]
            found += ["--no-keep-pattern is about LoRA's merge: give --steps."] * (not self.keep_pattern)
            found += ["--epochs: sparsify trains for --steps: give these."] * (self.epochs != 1)
        return found

    def _learnt_faults(self) -> list[str]:
        """What does not go with zeros that are learnt."""
        found = []
        if ":" in str(self.pattern):
            found.append(f"--pattern {self.pattern}: {LEARNT} chooses from a whole matrix: give a share, such as 0.5.")
        if self.steps == 0:
            found.append(f"--method {LEARNT} learns the zeros in training: give --steps.")
        found += [
            f"{flag(name)} does not go with --method {LEARNT}, whose LoRA has scaling 1, is on every linear and is "
            "masked as the weight is: leave it out."
            for name in SET_BY_LEARNT
            if name != "lora_init" and getattr(self, name)
        ]
        if self.lora_init != "default":
            found.append(f"--lora-init {self.lora_init}: {LEARNT} has a start of its own: leave it out.")
        if not self.keep_pattern:
            found.append(f"--no-keep-pattern: --method {LEARNT} trains the zeros themselves: leave it out.")
        return found
