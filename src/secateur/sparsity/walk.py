"""A decoder made sparse layer by layer: what a pruned layer makes is what the next one is pruned on."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..architecture.units import Linear, sides_of, weight_of
from ..config.sparsify import Pattern
from ..criteria.base import wide
from ..pruning.compensation.layerwise import Batch, at_rest, recorded
from ..system.errors import InputError
from .choice import by_magnitude, by_sparsegpt, by_wanda
from .layers import SparseLayer
from .moments import Moments, in_portions

MOST_BYTES = 2 * 2**30
"""Of second moments that are held at a time; a single one may be larger."""


def sparsify_layers(
    model: PreTrainedModel,
    layers: Sequence[SparseLayer],
    pattern: Pattern,
    method: str,
    batches: Iterable[Mapping[str, Tensor]] = (),
    *,
    dtype: torch.dtype | None = None,
    told: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Tensor]:
    """Put zeros into the layers' linears, in place.

    Args:
        layers: `sparse_layers` of the model.
        method: `sparsegpt`, `wanda` or `magnitude`, which needs no batches.
        batches: what the model is given, such as {"input_ids": (sequences, tokens)}.
        dtype: what the model computes in, where that is not its weights' own (autocast).
        told: is told how many layers are done, of how many; at the start, too.
    Returns:
        path of a linear -> (out, in) bool, which of its weights stay.
    Raises:
        InputError: no batches; a model whose layers do not follow one another, or have linears that they do not call.
        NumericsError: an activation overflowed.
    """
    keep: dict[str, Tensor] = {}
    told(0, len(layers))
    if method == "magnitude":
        for done, layer in enumerate(layers, 1):
            for path in layer.linears:
                weight = weight_of(_linear(model, path)).detach()
                keep[path] = by_magnitude(wide(weight), pattern)
                weight.mul_(keep[path])
            told(done, len(layers))
        return keep
    modules = [model.get_submodule(layer.prefix) for layer in layers]
    if not (batches := list(batches)):
        raise InputError(f"--method {method} has nothing to calibrate on: give batches of some thousand tokens.")
    with at_rest(model, dtype):
        hidden, calls = _recorded(model, modules, batches)
        for number, layer in enumerate(layers):
            linears = {path: _linear(model, path) for path in layer.linears}
            changed: dict[str, Tensor] = {}
            for portion in in_portions(linears, MOST_BYTES if method == "sparsegpt" else 2**63):
                moments = Moments(portion, squares=method == "wanda")
                with moments.watching():
                    _through(modules[number], number, hidden, calls, moments)
                _check_called(moments, layer, portion)
                for path, linear in portion.items():
                    weight = wide(weight_of(linear).detach())
                    changed[path], keep[path] = _chosen(weight, moments[path], pattern, method, calls, path)
            for path, weight in changed.items():  # by now, so that a layer's linears have all seen it whole
                weight_of(linears[path]).detach().copy_(weight)
            hidden = _through(modules[number], number, hidden, calls)
            told(number + 1, len(layers))
    return keep


def _linear(model: nn.Module, path: str) -> Linear:
    linear = model.get_submodule(path)
    assert isinstance(linear, Linear)
    return linear


def _chosen(
    weight: Tensor, moments: Tensor, pattern: Pattern, method: str, calls: Sequence[Batch], path: str
) -> tuple[Tensor, Tensor]:
    """A linear's weights after it, and which of them stay."""
    if method == "wanda":
        keep = by_wanda(weight, moments, pattern)
        return weight * keep, keep
    return by_sparsegpt(weight, moments * (2 / sum(batch.sequences for batch in calls)), pattern, path)


def _recorded(
    model: nn.Module, layers: list[nn.Module], batches: Iterable[Mapping[str, Tensor]]
) -> tuple[list[Tensor], list[Batch]]:
    try:
        return recorded(model, layers, batches)
    except InputError:
        raise InputError(
            f"a {type(model).__name__} does not hand on what its layers make from one to the next, so they cannot be "
            "pruned one after the other: use --method magnitude."
        ) from None


def _through(
    layer: nn.Module, number: int, hidden: list[Tensor], calls: list[Batch], moments: Moments | None = None
) -> list[Tensor]:
    """What a layer makes of each batch's hidden states."""
    found = []
    for batch, states in zip(calls, hidden, strict=True):
        if moments is not None:
            moments.counts = batch.counts
        found.append(batch.calls[number](layer, states))
    return found


def _check_called(moments: Moments, layer: SparseLayer, portion: Iterable[str]) -> None:
    if missing := next((path for path in portion if path not in moments), None):
        raise InputError(
            f"{layer.prefix} reads the weight of {missing} without calling it, so its inputs are not known: use "
            "--method magnitude."
        )


def walk_bytes(model: PreTrainedModel, layers: Sequence[SparseLayer], method: str, tokens: int) -> int:
    """The most that `sparsify_layers` holds beside the model: which weights stay, hidden states, moments, one layer's
    weights.

    Args:
        model: its weights may be on the meta device.
        tokens: of all batches together.
    """
    layered = [[sides_of(_linear(model, path)) for path in layer.linears] for layer in layers]
    stay = sum(rows * columns for sides in layered for rows, columns in sides)
    choosing = 24 * max(rows * columns for sides in layered for rows, columns in sides)  # scores, ranks, ties
    if method not in ("sparsegpt", "wanda"):
        return stay + choosing
    states = 2 * 4 * tokens * model.config.get_text_config().hidden_size  # of a layer's input and output, in float32
    most = 0
    for sides in layered:
        changed, widest = sum(4 * rows * columns for rows, columns in sides), max(columns for _, columns in sides)
        moments = min(sum(4 * columns**2 for _, columns in sides), max(MOST_BYTES, 4 * widest**2))
        factors = 6 * 8 * widest**2  # of the Hessian and its inverse, in float64
        most = max(most, changed + (moments + factors if method == "sparsegpt" else 0))
    return stay + choosing + states + most
