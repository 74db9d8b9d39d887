"""What `--load-in` goes with, from the options alone. Importing this module imports no torch."""

LOAD_IN = ("8bit", "4bit")
HELP = (
    "hold the frozen base quantised, through bitsandbytes: 8bit (LLM.int8; cuts slice it) or 4bit (NF4; cuts mask it, "
    "as its blocks run across rows); the result is made from the original weights"
)


NAMES = {"8bit": "8 bits (LLM.int8)", "4bit": "4 bits (NF4)"}
CUTS = {
    "8bit": "cuts slice it",
    "4bit": "cuts mask it until the result is written, as its blocks of 64 entries run across rows",
}


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
