"""Zero-padding layers of different sizes to equal ones: the same function in a stock class."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from ..architecture.families import Family
from ..architecture.layout import LayerShape, linear_sizes, parts
from ..architecture.stock import accepts
from ..config.formats import PADDED
from ..system.errors import InputError


def padded_shape(
    config: PreTrainedConfig, family: Family, shapes: tuple[LayerShape, ...], model_class: str
) -> LayerShape:
    """The smallest shape that holds every layer's heads per group, KV heads and channels, and that stock takes.

    Raises:
        InputError: no head count up to twice the widest layer's (or the whole model's) is legal.
    """
    if family.no_heads:
        wide = max(shape.ffn for shape in shapes) if family.ffn else family.ffn_of_width * config.hidden_size
        return replace(shapes[0], ffn=wide)
    repeats = max(shape.heads // shape.kv_heads for shape in shapes if shape.heads)
    kv_heads, ffn = max(shape.kv_heads for shape in shapes), max(shape.ffn for shape in shapes)
    if family.ffn is None:
        ffn = family.ffn_of_width * config.hidden_size
    most = repeats if family.kv_heads is None or family.latent else 2 * repeats
    most_kv = max(2 * kv_heads, config.hidden_size // shapes[0].head_dim // repeats)  # where the width says how many
    candidates = [
        replace(shapes[0], heads=kv * n_rep, kv_heads=kv, ffn=ffn)
        for kv in range(kv_heads, most_kv + 1)
        for n_rep in range(repeats, most + 1)
    ]
    for shape in sorted(candidates, key=lambda s: (s.heads + s.kv_heads, s.heads)):
        if accepts(config, family, shape, model_class):
            return shape
    remedy = f"pass --model-class {family.twin}" if family.twin else "keep the layered checkpoint"
    raise InputError(
        f"--format {PADDED}: {config.model_type}'s config class takes no head count from {kv_heads * repeats} to "
        f"{most_kv * most}: {remedy}."
    )


def padded_state(
    state: dict[str, Tensor], family: Family, shapes: tuple[LayerShape, ...], wide: tuple[LayerShape, ...]
) -> Iterator[tuple[str, Tensor]]:
    """A layered checkpoint's tensors with every layer widened to its shape of `wide`.

    Padded channels and heads have zero columns in `down` and `o`, so they add nothing. Each KV head keeps its
    place and its query heads stay behind it: head h of layer goes to group h // n_rep, slot h % n_rep. Where attention
    or an FFN is gone, all of its weights are zeros; the last linear's bias, which still counts, is there.
    """
    pairs = enumerate(zip(shapes, wide, strict=True))
    places = [_places(family, number, shape, wider) for number, (shape, wider) in pairs]
    moves = {key: move for layer in places for key, move in layer.items()}
    held = {key: move for number in range(len(shapes)) for key, move in _held(family, number, shapes, wide).items()}
    for name, tensor in state.items():
        path, _, _ = name.rpartition(".")
        if move := held.get(path) or held.get(name):
            slots, before, after = move
            each = tensor.view(before, -1, *tensor.shape[1:])
            wider = each.new_zeros(after, *each.shape[1:]).index_copy_(0, slots, each)
            yield name, wider.view(-1, *tensor.shape[1:])
            continue
        for dim in (0, 1):
            if (path, dim) in moves and dim < tensor.dim():
                index, size = moves[path, dim]
                along = 1 - dim if family.transposed and tensor.dim() == 2 else dim
                bigger = list(tensor.shape)
                bigger[along] = size
                tensor = tensor.new_zeros(bigger).index_copy_(along, index, tensor)
        yield name, tensor
    if not family.recurrent:  # a hybrid's layer without attention never had any
        yield from _zeros_of_gone(state, family, shapes, wide)


def _zeros_of_gone(
    state: dict[str, Tensor], family: Family, shapes: tuple[LayerShape, ...], wide: tuple[LayerShape, ...]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of attention and FFNs that are gone from some layers, and that `wide` has there."""
    whole = {  # the tensors of a layer, by their names in it; each of a layer that has it
        name.removeprefix(f"{family.layers}.{number}."): tensor
        for number in range(len(shapes))
        for name, tensor in state.items()
        if name.startswith(f"{family.layers}.{number}.")
    }
    for number, (shape, wider) in enumerate(zip(shapes, wide, strict=True)):
        if bool(shape.heads) == bool(wider.heads) and bool(shape.ffn) == bool(wider.ffn):
            continue
        sizes = linear_sizes(family, wider)
        for name, tensor in whole.items():
            if f"{family.layers}.{number}.{name}" in state:
                continue
            path, size = name.rpartition(".")[0], list(tensor.shape)
            for dim in range(tensor.dim()):
                along = 1 - dim if family.transposed and tensor.dim() == 2 else dim
                size[along] = sizes.get((path, dim), size[along])
            yield f"{family.layers}.{number}.{name}", tensor.new_zeros(size)


def _places(
    family: Family, number: int, shape: LayerShape, wide: LayerShape
) -> dict[tuple[str, int], tuple[Tensor, int]]:
    """(linear, dim) -> where each of its entries goes along `dim`, and how many there are then."""
    roles = "ffn" if family.no_heads else "attention ffn"
    slots = {"q": _slots(shape, wide), "k": torch.arange(shape.kv_heads)}
    slots |= {"o": slots["q"], "v": slots["k"], "in": torch.arange(shape.ffn), "out": torch.arange(shape.ffn)}
    sizes, wide_sizes = linear_sizes(family, shape), linear_sizes(family, wide)
    sides = {(part.linear, part.dim) for part in parts(family, shape, roles)}
    moves = {side: torch.zeros(sizes[side], dtype=torch.long) for side in sides}
    for old, new in zip(parts(family, shape, roles), parts(family, wide, roles), strict=True):
        moves[old.linear, old.dim][old.index] = new.index[slots[old.role]]
    prefix = f"{family.layers}.{number}"
    return {(f"{prefix}.{path}", dim): (move, wide_sizes[path, dim]) for (path, dim), move in moves.items()}


def _held(
    family: Family, number: int, shapes: tuple[LayerShape, ...], wide: tuple[LayerShape, ...]
) -> dict[str, tuple[Tensor, int, int]]:
    """What goes with a layer's query heads beside the projections -> their places, how many they are, and then."""
    shape, wider = shapes[number], wide[number]
    if family.no_heads or not shape.heads:
        return {}
    move = _slots(shape, wider), shape.heads, wider.heads
    return {f"{family.layers}.{number}.{path}": move for path in family.by_head}


def _slots(shape: LayerShape, wide: LayerShape) -> Tensor:
    """(heads,) the place of each query head."""
    n_rep, wide_rep = (max(1, each.heads // max(1, each.kv_heads)) for each in (shape, wide))
    heads = torch.arange(shape.heads)
    return heads // n_rep * wide_rep + heads % n_rep
