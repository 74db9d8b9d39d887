"""The options of `bench` and `plan`. Importing this module imports no torch."""

from dataclasses import dataclass

from .options import at_least, choice_faults, flag, option
from .prune import PruneConfig
from .run import DEVICE_HELP, DEVICES, device_faults
from .sizes import SPEED_AT, parse_bytes, parse_speed_at, size_faults


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Everything that `secateur bench` can be told."""

    model: str = option(
        "the model to time: folder, GGUF file, hub id or embedded name (not with --draft)", "", group="model"
    )
    against: str | None = option("the model to compare it with; the ratios are to this one", None, group="model")
    adapter: str | None = option("also time --model with this LoRA adapter, merged and not", None, group="model")
    draft: str | None = option(
        "in place of --model: a smaller model that proposes tokens to --against (speculative decoding)",
        None,
        group="model",
    )
    drafted: int = option("with --draft: tokens that it proposes in a round", 4, group="draft")
    draft_tokens: int = option("with --draft: greedy tokens after each prompt", 64, group="draft")
    prompts: int = option("with --draft: prompts, of 64 tokens each", 16, group="draft")
    prompt_data: str = option(
        "with --draft: text that the prompts are taken from, evenly spread", "stdlib-docs:held-out", group="draft"
    )
    trust_remote_code: bool = option("allow Python code shipped with the model", False, group="model")
    seq_len: int = option("tokens of a prompt", 512, group="measurement")
    batch_sizes: tuple[str, ...] = option("prompts per forward pass", ("1", "8"), group="measurement")
    decode_tokens: int = option("tokens to generate greedily after a prompt of 64; 0: none", 32, group="measurement")
    repeats: int = option("timed turns; the models take turns", 7, group="measurement")
    cost_table: str | None = option(
        "in place of timing models: measure what --model's heads and widths cost here, and write it to this file, for "
        "prune --cost-table",
        None,
        group="costs",
        metavar="FILE",
    )
    speed_at: str = option(
        "with --cost-table: what is timed, as for prune; several with commas between them", SPEED_AT, group="costs"
    )
    memory: bool = option("measure each model's peak memory in a process of its own", True, group="measurement")
    device: str = option(DEVICE_HELP, "auto", group="measurement", known=DEVICES)
    dtype: str = option(
        "computation: auto takes bfloat16 where the hardware has it",
        "auto",
        group="measurement",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    output: str | None = option("write the figures to this JSON file", None, group="output")
    overwrite: bool = option("replace an existing --output file", False, group="output")

    def faults(self) -> list[str]:
        """All faults that can be known from the options alone."""
        found = choice_faults(self) + device_faults(self.device)
        for name in ("seq_len", "repeats"):
            found += at_least(self, name, 1)
        found += at_least(self, "decode_tokens", 0)
        for name in ("drafted", "draft_tokens", "prompts"):
            found += at_least(self, name, 1)
        if self.draft is None and not self.model:
            found.append("--model is required: the model to time (or --draft, with --against).")
        if self.draft is not None and (self.model or self.adapter):
            found.append("--draft takes the place of --model, and goes with no --adapter: leave these out.")
        if self.draft is not None and self.against is None:
            found.append("--draft needs --against: the model that it proposes tokens to.")
        found += size_faults(self, "speed_at", parse_speed_at)
        others = {"against": self.against, "adapter": self.adapter, "draft": self.draft, "output": self.output}
        if self.cost_table is not None and (given := [flag(name) for name, value in others.items() if value]):
            found.append(f"--cost-table is of one model, without {', '.join(given)}: leave one of the two out.")
        if self.cost_table is None and self.speed_at != SPEED_AT:
            found.append(
                "--speed-at goes with --cost-table: --seq-len and --decode-tokens say what models are timed at."
            )
        for size in self.batch_sizes:
            if not size.isdecimal() or int(size) < 1:
                found.append(f"--batch-sizes {size!r}: give whole numbers from 1, such as 1 8.")
        return found


@dataclass(frozen=True, kw_only=True)
class PlanConfig(PruneConfig):
    """`secateur plan` takes what `prune` takes; data and output are not looked at."""

    data: tuple[str, ...] = option("not needed: a plan reads no text", (), group="data")
    output: str = option("not needed: a plan writes nothing", "", group="output")
    dry_run: bool = option("not needed: a plan trains nothing", False, group="output")
    push_to_hub: str | None = option("not needed: a plan writes nothing", None, group="hub")
    private: bool = option("not needed: a plan writes nothing", False, group="hub")
    base_model: str | None = option("not needed: a plan writes nothing", None, group="hub")
    json: str | None = option("also write the plan to this JSON file", None, group="output")
    device_memory: str | None = option("memory of a device, such as 24GB; default: this machine's", None, group="plan")
    devices: int = option("devices that train together, for memory and traffic of each", 1, group="plan")
    device_tflops: float | None = option(
        "TFLOP/s of a device in matrix products; default: as timed on this machine", None, group="plan"
    )
    link_bandwidth: str = option(
        "what a device sends to the others in a second (50GB: a port of 400 Gbit/s)", "50GB", group="plan"
    )

    def faults(self) -> list[str]:
        """All faults that can be known from the options alone."""
        found = super().faults() + at_least(self, "devices", 1)
        for name in ("device_memory", "link_bandwidth"):
            found += size_faults(self, name, parse_bytes)
        if self.device_tflops is not None and not self.device_tflops > 0:
            found.append(f"--device-tflops is {self.device_tflops}: it must be above 0, such as 312.")
        if not found and not parse_bytes(self.link_bandwidth, "--link-bandwidth"):
            found.append(f"--link-bandwidth is {self.link_bandwidth}: it must be above 0, such as 50GB.")
        return found
