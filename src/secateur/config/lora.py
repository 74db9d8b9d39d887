"""The LoRA that a run trains: its rank, scaling, start, and the linears that get it."""

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
        if self.adapter and self.lora_init != "default":
            found.append(f"--lora-init {self.lora_init} contradicts --adapter, which has its factors: leave one out.")
        return found
