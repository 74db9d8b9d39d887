"""The LoRA that a run trains: its rank, scaling, start, the linears that get it; and what is trained beside it."""

import re
from dataclasses import dataclass

from .options import Options, at_least, below_one, flag, option


@dataclass(frozen=True, kw_only=True)
class LoraOptions(Options):
    """What a PEFT `LoraConfig` is made from."""

    rank: int = option("LoRA rank", 8, group="lora")
    init_rank: int | None = option(
        "rank that LoRA starts with; it is pruned to --rank between the same steps (as adapt does)", None, group="lora"
    )
    alpha: int | None = option("LoRA alpha; default: 2 x rank", None, group="lora")
    dropout: float = option("LoRA dropout", 0.0, group="lora")
    lora_init: str = option(
        "how LoRA's factors start: default and gaussian (B = 0), pissa (the weight's leading singular vectors), "
        "olora (its QR factors)",
        "default",
        group="lora",
        choices=("default", "gaussian", "pissa", "olora"),
    )
    lora_plus: float | None = option(
        "LoRA+: the learning rate of B over that of A, which is --lr; default: 1", None, group="lora"
    )
    rslora: bool = option("scale LoRA by alpha / sqrt(rank) rather than alpha / rank", False, group="lora")
    targets: tuple[str, ...] = option("linears that get LoRA; default: every linear of every unit", (), group="lora")
    adapter: str | None = option("start from this LoRA adapter folder", None, group="lora")

    @property
    def first_rank(self) -> int:
        """The rank that LoRA starts with."""
        return self.rank if self.init_rank is None else self.init_rank

    def faults(self) -> list[str]:
        """All faults that can be known from the options alone."""
        found = at_least(self, "rank", 1) + below_one(self, "dropout")
        if self.alpha is not None and not self.alpha > 0:
            found.append(f"{flag('alpha')} is {self.alpha}: it must be above 0.")
        if self.lora_plus is not None and not self.lora_plus > 0:
            found.append(f"--lora-plus is {self.lora_plus}: it must be above 0.")
        if self.adapter and self.lora_init != "default":
            found.append(f"--lora-init {self.lora_init} contradicts --adapter, which has its factors: leave one out.")
        return found


ALSO = ("norms", "gains", "biases", "weights")
"""What can be trained beside LoRA."""
ALSO_RATES = {"norms": 1.0, "gains": 1.0, "biases": 1.0, "weights": 0.1}
"""What of it -> its learning rate where none is given, over LoRA's."""


@dataclass(frozen=True, kw_only=True)
class RecoveryOptions(Options):
    """What a pruned model has to learn with beyond one LoRA at one learning rate."""

    train_also: tuple[str, ...] = option(
        "trained beside LoRA, in float32: norms, gains (one per unit, at the input of o and down), biases of linears, "
        "weights (of the linears with units or LoRA: full fine-tuning)",
        (),
        group="training",
        metavar="PART",
    )
    also_lr: float | None = option(
        "peak learning rate of --train-also; default: "
        + ", ".join(f"{x} x --lr for {n}" for n, x in ALSO_RATES.items()),
        None,
        group="training",
    )
    restart_lora: str | int | None = option(
        "merge LoRA into the base, held in float32, and begin it anew (ReLoRA): cuts: at each cut; a number: every so "
        "many steps after the last cut",
        None,
        group="training",
        metavar="cuts|STEPS",
    )
    lr_after: str | int | float | None = option(
        "peak learning rate after the last cut, or a multiple of --lr, such as 0.5x; default: --lr",
        None,
        group="training",
        metavar="RATE|FACTORx",
    )

    @property
    def also(self) -> tuple[str, ...]:
        """What is trained beside LoRA, in the order of `ALSO`."""
        asked = _items(self.train_also)
        return tuple(name for name in ALSO if name in asked)

    @property
    def _restarts(self) -> list[str]:
        return [] if self.restart_lora is None else str(self.restart_lora).split(",")

    @property
    def restarts_at_cuts(self) -> bool:
        """Whether LoRA begins anew at each cut."""
        return "cuts" in self._restarts

    @property
    def restarts_every(self) -> int | None:
        """Steps between LoRA's new beginnings after the last cut."""
        return next((int(item) for item in self._restarts if item.isdecimal()), None)

    def rate_after(self, lr: float) -> float:
        """The peak rate after the last cut, over `lr`."""
        if self.lr_after is None:
            return 1.0
        given = str(self.lr_after)
        return float(given[:-1]) if given.endswith("x") else float(given) / lr

    def also_rate(self, what: str, lr: float) -> float:
        """The peak rate of a part of `also`."""
        return ALSO_RATES[what] * lr if self.also_lr is None else self.also_lr

    def faults(self) -> list[str]:
        """All faults that can be known from the options alone."""
        found = [
            f"--train-also {item}: choose from {', '.join(ALSO)}."
            for item in _items(self.train_also)
            if item not in ALSO
        ]
        if self.also_lr is not None and not self.also_lr > 0:
            found.append(f"--also-lr is {self.also_lr}: it must be above 0.")
        if self.also_lr is not None and not self.train_also:
            found.append(f"--also-lr {self.also_lr} is the rate of --train-also: say what is trained, or leave it out.")
        restarts = self._restarts
        wrong = [item for item in restarts if item != "cuts" and not re.fullmatch("[1-9][0-9]{0,8}", item)]
        found += [f"--restart-lora {item}: give cuts, a number of steps from 1, or cuts,100." for item in wrong]
        if sum(item != "cuts" for item in restarts) > 1:
            found.append(f"--restart-lora {self.restart_lora}: give one number of steps.")
        if self.lr_after is not None and not re.fullmatch(
            r"([0-9]+\.?[0-9]*|\.[0-9]+)(e-?[0-9]{1,2})?x?", given := str(self.lr_after)
        ):
            found.append(f"--lr-after is {given!r}: give a rate such as 1e-3, or a multiple of --lr such as 0.5x.")
        elif self.lr_after is not None and not self.rate_after(1.0) > 0:
            found.append(f"--lr-after is {given}: it must be above 0.")
        return found


def _items(given: tuple[str, ...]) -> list[str]:
    """Items given apart or with commas."""
    return [item for text in given for item in text.split(",")]
