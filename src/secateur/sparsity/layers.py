"""Where zeros go: the linears of a decoder's layers."""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..architecture.discovery import find_units
from ..architecture.families import Family
from ..architecture.likeness import family_for
from ..architecture.units import sides_of
from ..config.sparsify import Pattern
from ..system.errors import InputError
from .choice import BLOCK


@dataclass(frozen=True)
class SparseLayer:
    """A layer of a decoder, and the linears in it."""

    prefix: str
    linears: tuple[str, ...]
    """Their paths in the model."""


def sparse_layers(
    model: PreTrainedModel, pattern: Pattern, family: str | Family | None = None
) -> tuple[SparseLayer, ...]:
    """The layers in order, with every linear in them; embeddings and head stay whole, as in SparseGPT and Wanda.

    Args:
        model: its weights may be on the meta device.
    Raises:
        InputError: a family that is not known, a mixture of experts, layers that share a block, a width that is no
            multiple of the pattern's.
    """
    known = family_for(model, model.config.model_type, family)
    if known.experts is not None:
        raise InputError(
            f"a {model.config.model_type} is a mixture of experts, whose experts see few of the calibration tokens "
            "each: sparsify takes dense models."
        )
    if known.shared is not None:
        raise InputError(
            f"layers of a {model.config.model_type} share a block, which reads other inputs in each: sparsify takes "
            "models whose layers have weights of their own."
        )
    found = []
    for place in find_units(model, known).places:
        layer = model.get_submodule(place.prefix)
        names = [n for n, module in layer.named_modules() if isinstance(module, nn.Linear | Conv1D)]
        found.append(SparseLayer(place.prefix, tuple(f"{place.prefix}.{name}" for name in names)))
    for path in (path for layer in found for path in layer.linears):
        columns = sides_of(model.get_submodule(path))[1]  # type: ignore[arg-type]
        if pattern.group is not None and columns % pattern.group:
            raise InputError(
                f"--pattern {pattern.text}: {path} has {columns} inputs, which is no multiple of {pattern.group}: give "
                "a pattern whose second number divides it, or a share such as 0.5."
            )
    return tuple(found)


def check_share(model: PreTrainedModel, layers: tuple[SparseLayer, ...], pattern: Pattern, method: str) -> None:
    """Whether a share takes out any weight at all of what a method chooses from.

    Args:
        model: its weights may be on the meta device.
    Raises:
        InputError: of one linear it takes none.
    """
    if pattern.group is not None:
        return
    for path in (path for layer in layers for path in layer.linears):
        rows, columns = sides_of(model.get_submodule(path))  # type: ignore[arg-type]
        whole, of = {
            "wanda": (columns, "row"), "sparsegpt": (rows * min(BLOCK, columns), f"block of {BLOCK} columns"),
        }.get(method, (rows * columns, "matrix"))  # fmt: skip
        if int(whole * pattern.share) < 1:
            raise InputError(
                f"--pattern {pattern.text}: of the {whole:,} weights in a {of} of {path}, from which {method} chooses, "
                "that is less than one: give a larger share."
            )
