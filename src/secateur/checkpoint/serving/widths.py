"""What becomes of a model's widths where llama.cpp quantises: which rows its blocks divide."""

from transformers import PreTrainedConfig

from ...config.formats import QUANTISATIONS, SMALL_BLOCK
from ...config.prune import ExportConfig
from ...system.errors import InputError


def check_widths(
    config: ExportConfig, model_config: PreTrainedConfig, outtype: str, sizes: list[tuple[int, int, int]] | None
) -> list[str]:
    """What becomes of rows that the quantisation cannot divide.

    Raises:
        InputError: it divides none of the model's, or does without a larger type.
    """
    if not config.quantise and outtype != "q8_0":
        return []
    name = config.quantise or "Q8_0"
    kind = QUANTISATIONS[name]
    text = model_config.get_text_config()
    hidden = int(text.hidden_size)
    if hidden % SMALL_BLOCK:
        raise InputError(
            f"{'--quantise ' + config.quantise if config.quantise else '--outtype ' + outtype}: llama.cpp quantises "
            f"rows in blocks of {SMALL_BLOCK}, and the model is {hidden} wide: write --outtype bf16 or f16."
        )
    widths = {size[2] for size in sizes} if sizes else {getattr(text, "intermediate_size", None)}
    found = sorted(w for w in {hidden, *widths} if isinstance(w, int) and w % kind.block)
    if not found:
        return []
    small = [w for w in found if w % SMALL_BLOCK == 0]
    odd = [w for w in found if w % SMALL_BLOCK]
    if odd and config.quantise and kind.block == SMALL_BLOCK:
        other = "--outtype q8_0" if name == "Q8_0" else "--quantise Q4_K_M"
        raise InputError(
            f"--quantise {name}: llama.cpp's quantiser takes rows of multiples of {SMALL_BLOCK} alone, and the model "
            f"has some of {_some(odd)}: {other} keeps those in F16; or prune with --round-to {SMALL_BLOCK}."
        )
    words = []
    if small:
        words.append(f"rows of {_some(small)} are {kind.instead} (no multiple of {kind.block})")
    if odd:
        words.append(f"rows of {_some(odd)} are F16 (no multiple of {SMALL_BLOCK}: prune with --round-to 32 or 256)")
    return [f"{name}: llama.cpp takes another type where it cannot divide: {'; '.join(words)}"]


def _some(widths: list[int]) -> str:
    return ", ".join(map(str, widths[:4])) + (f" and {len(widths) - 4} other widths" if len(widths) > 4 else "")
