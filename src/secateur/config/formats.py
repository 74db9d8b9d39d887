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


FORMATS: Registry[Format] = Registry("format")
STOCK, LAYERED, PADDED, TEXT = "stock", "layered", "padded", "text"
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


def convertible(*, of_pruned: bool = False) -> tuple[str, ...]:
    """The formats that `export` writes: all, or those of a pruned model alone."""
    return tuple(name for name, format in FORMATS.items() if format.converter and format.of_pruned >= of_pruned)


def converter(name: str) -> Callable[[Any], Any]:
    """What writes a checkpoint in another format; imported only now."""
    module, _, function = FORMATS[name].converter.partition(":")
    found: Callable[[Any], Any] = getattr(import_module(f"secateur.{module}"), function)
    return found
