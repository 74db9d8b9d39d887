"""Zero-padding layers of different sizes to equal ones: the same function in a stock class."""

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from .errors import InputError
from .families import Family
from .stock import accepts
from .units import LayerShape


def padded_shape(
    config: PreTrainedConfig, family: Family, shapes: tuple[LayerShape, ...], model_class: str
) -> LayerShape:
    """The smallest shape that holds every layer's heads per group, KV heads and channels, and that stock takes.

    Raises:
        InputError: no head count up to twice the widest layer's is legal.
    """
    repeats = max(shape.heads // shape.kv_heads for shape in shapes)
    kv_heads, ffn = max(shape.kv_heads for shape in shapes), max(shape.ffn for shape in shapes)
    candidates = [
        LayerShape(kv * n_rep, kv, ffn, shapes[0].head_dim)
        for kv in range(kv_heads, 2 * kv_heads + 1)
        for n_rep in range(repeats, 2 * repeats + 1)
    ]
    for shape in sorted(candidates, key=lambda s: (s.heads + s.kv_heads, s.heads)):
        if accepts(config, family, shape, model_class):
            return shape
    raise InputError(
        f"--format padded: {config.model_type}'s config class takes no head count from {kv_heads * repeats} to twice "
        "that: pass --model-class mistral."
    )


def padded_state(
    state: dict[str, Tensor], family: Family, shapes: tuple[LayerShape, ...], wide: LayerShape
) -> Iterator[tuple[str, Tensor]]:
    """A layered checkpoint's tensors with every layer widened to `wide`.

    Padded channels and heads have zero columns in `down` and `o`, so they add nothing. Each KV head keeps its
    place and its query heads stay behind it: head h of layer goes to group h // n_rep, slot h % n_rep.
    """
    places = [_places(family, number, shape, wide) for number, shape in enumerate(shapes)]
    moves = {key: move for layer in places for key, move in layer.items()}
    for name, tensor in state.items():
        path, _, _ = name.rpartition(".")
        for dim in (0, 1):
            if (path, dim) in moves and dim < tensor.dim():
                index, size = moves[path, dim]
                bigger = list(tensor.shape)
                bigger[dim] = size
                tensor = tensor.new_zeros(bigger).index_copy_(dim, index, tensor)
        yield name, tensor


def _places(
    family: Family, number: int, shape: LayerShape, wide: LayerShape
) -> dict[tuple[str, int], tuple[Tensor, int]]:
    """(linear, dim) -> where each of its entries goes along `dim`, and how many there are then."""
    n_rep, wide_rep = shape.heads // shape.kv_heads, wide.heads // wide.kv_heads
    heads = torch.arange(shape.heads)
    head_slots = heads // n_rep * wide_rep + heads % n_rep
    entries = torch.arange(shape.head_dim)
    queries = (head_slots.unsqueeze(1) * shape.head_dim + entries).flatten()
    keys = torch.arange(shape.kv_heads * shape.head_dim)
    channels = torch.arange(shape.ffn)
    prefix = f"{family.layers}.{number}"
    moves = {
        (f"{prefix}.{family.q}", 0): (queries, wide.heads * shape.head_dim),
        (f"{prefix}.{family.k}", 0): (keys, wide.kv_heads * shape.head_dim),
        (f"{prefix}.{family.v}", 0): (keys, wide.kv_heads * shape.head_dim),
        (f"{prefix}.{family.o}", 1): (queries, wide.heads * shape.head_dim),
        (f"{prefix}.{family.mlp_out}", 1): (channels, wide.ffn),
    }
    return moves | {(f"{prefix}.{path}", 0): (channels, wide.ffn) for path in family.mlp_in}
