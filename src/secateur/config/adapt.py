"""The options of `secateur adapt`. Importing this module imports no torch."""

from dataclasses import dataclass

from .options import at_least, option
from .ranks import RankOptions
from .run import RunConfig, load_in_faults
from .schedule import ScheduleOptions


@dataclass(frozen=True, kw_only=True)
class AdaptConfig(RankOptions, RunConfig):
    """Everything that `secateur adapt` can be told."""

    output: str = option("folder for the adapter and its records", group="output")
    merge: bool = option("write the model with the adapter merged, not the adapter", False, group="output")
    adapter_for: str = option(
        "who reads the adapter: peft (each layer's own rank and scaling), or vllm or llama.cpp, whose readers know one "
        "rank and one scaling: both are then baked into the factors",
        "peft",
        group="output",
        choices=("peft", "vllm", "llama.cpp"),
    )
    init_rank: int = option("rank that it starts with; equal to --rank: plain LoRA", 64, group="lora")
    criterion: str = option(
        "what scores the rank components",
        RankOptions.criterion,
        group="criterion",
        choices=("gradient", "sparsegpt", "wanda", "taylor", "magnitude", "random"),
    )
    schedule: str = option(
        "how the rank falls between the first and the last cut",
        ScheduleOptions.schedule,
        group="schedule",
        choices=("cubic", "linear"),
    )
    alpha: int | None = option("LoRA alpha at the final rank; default: the rank, so scaling 1", None, group="lora")

    def faults(self) -> list[str]:
        """All faults that can be known from the options alone."""
        found = RunConfig.faults(self) + RankOptions.faults(self) + load_in_faults(self.load_in, self.lora_init)
        found += at_least(self, "init_rank", 1)
        if self.rank > self.init_rank and not self.adapter:  # an adapter has a rank of its own
            found.append(
                f"--rank {self.rank} is above --init-rank {self.init_rank}: an adapter's rank only falls, so start "
                "with a higher one."
            )
        if self.adapter_for != "peft" and self.merge:
            found.append(f"--merge writes no adapter, so --adapter-for {self.adapter_for} says nothing: leave one out.")
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
        if self.lora_init in ("pissa", "olora") and not self.merge:
            found.append(
                f"--lora-init {self.lora_init} also changes the base model's weights, so an adapter alone would not "
                "fit the model it came from: add --merge, or choose default or gaussian."
            )
        return found
