"""The formats in which a model can be written: what each is called, how it loads, and what makes it of another.

A new one is a file with a function that converts a checkpoint, and its entry here: the choices of `export`, what
`families` lists and what is said of results follow.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ..system.registry import Registry


@dataclass(frozen=True)
class Format:
    """One form of a result."""

    reader: str
    """With what it loads, for lists."""
    trust: bool = False
    """Whether it loads with a modelling file of its own (`trust_remote_code=True`) alone."""
    help: str = ""
    """What `export` makes of it."""
    converter: str = ""
    """`module:function` (of the package), from an `ExportConfig` to what was written; "": a run's own format."""
    of_pruned: bool = True
    """Whether a pruned model can be in it; the others are made of whole models."""
    engine: str = ""
    """The engine that alone reads it, of the families that it knows; "": transformers, of all that can be pruned."""
    quantisations: tuple[str, ...] = ()
    """What `--quantise` may name."""

    @property
    def of_any_family(self) -> bool:
        """Whether every pruned model can be in it."""
        return self.of_pruned and not self.engine


FORMATS: Registry[Format] = Registry("format")
STOCK, LAYERED, PADDED, TEXT, GGUF, VLLM = "stock", "layered", "padded", "text", "gguf", "vllm"
ADAPTER, QUANTISED = "adapter", "compressed-tensors"


@dataclass(frozen=True)
class Quantisation:
    """One of llama.cpp's: what its quantiser calls it, and what becomes of a tensor whose rows it cannot divide."""

    ftype: int
    """Of `llama_ftype`, in llama.h."""
    block: int
    """A row's length must be a multiple of it."""
    instead: str = "F16"
    """The type of tensors whose rows are a multiple of 32 only; others are F16."""


QUANTISATIONS = {
    "Q2_K": Quantisation(10, 256, "Q4_0"),
    "Q3_K_S": Quantisation(11, 256, "Q4_0"),
    "Q3_K_M": Quantisation(12, 256, "Q4_0"),
    "Q3_K_L": Quantisation(13, 256, "Q4_0"),
    "Q4_0": Quantisation(2, 32),
    "Q4_K_S": Quantisation(14, 256, "Q5_0"),
    "Q4_K_M": Quantisation(15, 256, "Q5_0"),
    "Q5_0": Quantisation(8, 32),
    "Q5_K_S": Quantisation(16, 256, "Q5_1"),
    "Q5_K_M": Quantisation(17, 256, "Q5_1"),
    "Q6_K": Quantisation(18, 256, "Q8_0"),
    "Q8_0": Quantisation(7, 32),
}
"""What llama.cpp makes without an importance matrix (ftypes: llama.h; what it takes instead: llama-quant.cpp)."""
SMALL_BLOCK, LARGE_BLOCK = 32, 256
OUTTYPES = ("f32", "f16", "bf16", "q8_0")
"""What llama.cpp's converter writes."""
FORMATS.register(STOCK, Format("loads anywhere"))
FORMATS.register(LAYERED, Format("with a modelling file (trust_remote_code)", trust=True))
FORMATS.register(
    PADDED,
    Format(
        "stock, zeros kept",
        help="every layer zero-padded to the widest, loads in the stock class",
        converter="checkpoint.convert:to_padded",
    ),
)
FORMATS.register(
    TEXT,
    Format(
        "stock, of a model that also reads pictures or sound",
        help="the text model of one that also reads pictures or sound, alone",
        converter="checkpoint.convert:to_text",
        of_pruned=False,
    ),
)
FORMATS.register(
    GGUF,
    Format(
        "llama.cpp and what is built on it",
        help="one file for llama.cpp, Ollama and others, also of layers that differ",
        converter="runs.quantised.weighed:to_gguf",
        engine="llama.cpp",
        quantisations=tuple(QUANTISATIONS),
    ),
)
FORMATS.register(
    ADAPTER,
    Format(
        "PEFT, and engines that know one rank",
        help="a LoRA adapter with one rank and scaling 1 in every layer, as vLLM reads it, or to a name that ends with "
        ".gguf a file for llama.cpp",
        converter="checkpoint.serving.lora_file:to_adapter",
        of_pruned=False,
    ),
)
FORMATS.register(
    QUANTISED,
    Format(
        "transformers and vLLM, quantised",
        help="linears in whole numbers of 8 or 4 bits (--quantise), for transformers and vLLM",
        converter="runs.quantised.command:to_quantised",
        of_pruned=False,
        quantisations=("int8", "int4"),
    ),
)


FORMATS.register(
    VLLM,
    Format(
        "vLLM of any age, with a modelling file (trust_remote_code)",
        trust=True,
        help="layers that differ in the form of DeciLM, for versions of vLLM that do not serve them as they are",
        converter="checkpoint.convert:to_decilm",
        engine="vLLM",
    ),
)


def convertible(*, of_pruned: bool = False) -> tuple[str, ...]:
    """The formats that `export` writes: all, or those alone in which a pruned model loads without code of its own."""
    fits = {name: format for name, format in FORMATS.items() if format.converter}
    return tuple(name for name, format in fits.items() if not of_pruned or (format.of_pruned and not format.trust))


def converter(name: str) -> Callable[[Any], Any]:
    """What writes a checkpoint in another format; imported only now."""
    module, _, function = FORMATS[name].converter.partition(":")
    found: Callable[[Any], Any] = getattr(import_module(f"secateur.{module}"), function)
    return found


def width_words(step: int, hidden: int) -> str:
    """What llama.cpp quantises of a model whose FFN widths are multiples of `step` (--round-to) and whose own width is
    `hidden`: known before a run. Unquantised, each engine takes any width."""
    if step % LARGE_BLOCK == 0:
        found = "multiples of 256, which every quantisation of llama.cpp takes"
    elif step % SMALL_BLOCK == 0:
        found = (
            "multiples of 32, for llama.cpp's q8_0; its k-quants (Q4_K_M) want 256, and take a larger type elsewhere"
        )
    else:
        found = (
            "not all multiples of 32, which any engine takes unquantised; llama.cpp's q8_0 wants multiples of 32 and "
            "its k-quants (Q4_K_M) of 256, and it keeps `down` in f16 where neither divides: --round-to 32 or 256"
        )
    if hidden % LARGE_BLOCK:
        found += f" (the model's own width, {hidden}, is no multiple of 256: k-quants take a larger type there)"
    return found
