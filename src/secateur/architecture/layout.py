"""Which rows and columns of a layer's linears belong to which head or channel: arithmetic on a family and sizes."""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from ..system.errors import all_faults
from .families import Family

LAYER, ATTENTION_BLOCK, FFN_BLOCK = WHOLE_KINDS = ("layer", "attention_block", "ffn_block")
"""The kinds of unit that are all of something: a layer, its attention, its FFN."""
INSIDE = {"kv_group": ATTENTION_BLOCK, "query_head": ATTENTION_BLOCK, "ffn": FFN_BLOCK}
"""Kind of unit -> the block that it is in."""


@dataclass(frozen=True)
class LayerShape:
    """The sizes of one decoder layer that pruning can change."""

    heads: int
    kv_heads: int
    ffn: int
    head_dim: int

    @property
    def gone(self) -> bool:
        """Whether the layer is gone: one without attention and FFN has its biases and its place still."""
        return not self.head_dim

    def without(self, kind: str, removed: int) -> "LayerShape":
        """The shape after `removed` units of `kind` are gone from this layer."""
        heads, kv_heads, ffn = self.heads, self.kv_heads, self.ffn
        if kind == LAYER and removed:
            return LayerShape(0, 0, 0, 0)
        if kind in WHOLE_KINDS:
            heads, kv_heads = (0, 0) if removed and kind == ATTENTION_BLOCK else (heads, kv_heads)
            ffn = 0 if removed and kind == FFN_BLOCK else ffn
        elif kind == "ffn":
            ffn -= removed
        elif kind == "query_head":
            heads -= removed
        else:
            heads -= removed * (heads // max(1, kv_heads))
            kv_heads -= removed
        return LayerShape(heads, kv_heads, ffn, self.head_dim)

    def key(self) -> tuple[int, int, int]:
        """(query heads, KV heads, FFN width)."""
        return self.heads, self.kv_heads, self.ffn

    def __str__(self) -> str:
        return f"{self.heads} query heads, {self.kv_heads} KV heads of {self.head_dim} and {self.ffn} channels"

    def sizes(self) -> dict[str, int]:
        """What attributes of an attention module may hold, by the names that `Family.attributes` uses."""
        return {
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "groups": self.heads // max(1, self.kv_heads),
            "width": self.heads * self.head_dim,
        }


SIZES = ("heads", "kv_heads", "groups", "width")
"""The names of `LayerShape.sizes`."""


def check_layout(family: Family) -> None:
    """Refuse what no model's layout can be, in families of users' own.

    Raises:
        InputError: names the fields, their values and what they must be.
    """
    paths = {name: getattr(family, name) for name in ("name", "layers", "attention", *"qkvo", "mlp_out")}
    faults = [
        f"Family: {name} is {value!r}: give a name, such as {'model.layers' if name == 'layers' else 'mlp.up_proj'}."
        for name, value in paths.items()
        if not isinstance(value, str) or not value
    ]
    keys = {name: getattr(family, name) for name in ("heads", "kv_heads", "ffn", "head_dim")}
    faults += [
        f"Family: {name} is {value!r}: give a key of the config, or None where it has none."
        for name, value in keys.items()
        if value is not None and not isinstance(value, str)
    ]
    if not isinstance(family.mlp_in, tuple | list) or not all(isinstance(path, str) for path in family.mlp_in):
        faults.append(f"Family: mlp_in is {family.mlp_in!r}: give the paths in a tuple, such as ('mlp.up_proj',).")
    elif family.o in (family.q, family.k, family.v) or family.mlp_out in family.mlp_in:
        faults.append(
            "Family: o and mlp_out take what the units give out, so neither is a linear that makes it (q, k, v, "
            "mlp_in): name the linear that follows."
        )
    if wrong := {str(size) for size in family.attributes.values()} - set(SIZES):
        faults.append(f"Family: attributes hold {', '.join(sorted(wrong))}: choose from {', '.join(SIZES)}.")
    all_faults(faults)


def common_shape(shapes: tuple[LayerShape, ...], *, in_part: bool = False) -> LayerShape | None:
    """The one shape of layers that are alike, None if they differ; layers that are gone go with any.

    Args:
        in_part: so do layers of which the layout names no FFN (`Family.alike_only`).
    """
    shapes = tuple(shape for shape in shapes if not shape.gone)
    wide = LayerShape(shapes[0].heads, shapes[0].kv_heads, max(shape.ffn for shape in shapes), shapes[0].head_dim)
    others = [(wide.heads, wide.kv_heads, 0)] * in_part
    alike = all(shape.key() in (wide.key(), *others) for shape in shapes)
    return wide if alike else None


@dataclass(frozen=True, eq=False)
class Part:
    """One projection's place in a linear."""

    role: str
    """`q`, `k`, `v`, `o`, `in` or `out`."""
    linear: str
    """Path in the layer."""
    dim: int
    """0: its heads or channels own rows (outputs); 1: columns (inputs)."""
    index: Tensor
    """(heads, KV heads or channels; entries of each) positions along `dim`."""


def parts(family: Family, shape: LayerShape, roles: str = "attention ffn", expert: int = 0) -> tuple[Part, ...]:
    """The projections of a layer of this shape.

    Args:
        roles: `attention`, `ffn` or both.
        expert: whose FFN, in a layer that has several.
    """
    found: list[Part] = []
    if "attention" in roles:
        heads = _blocks(shape.heads, shape.head_dim)
        places = dict(zip("qkv", _qkv(family, shape), strict=True))
        found += [Part(role, getattr(family, role), 0, index) for role, index in places.items()]
        found.append(Part("o", family.o, 1, heads))
    if "ffn" in roles and family.mlp_in:
        channels = _blocks(shape.ffn, 1)
        seen: Counter[str] = Counter()
        for path in family.mlp_in:  # a path that comes again holds one projection after the other
            found.append(Part("in", path.format(expert), 0, channels + shape.ffn * seen[path]))
            seen[path] += 1
        found.append(Part("out", family.mlp_out.format(expert), 1, channels))
    return tuple(found)


def linear_sizes(family: Family, shape: LayerShape) -> dict[tuple[str, int], int]:
    """(linear, dim) -> how long that side is, for every side that pruning can change."""
    sizes: Counter[tuple[str, int]] = Counter()
    for part in parts(family, shape):
        sizes[part.linear, part.dim] += part.index.numel()
    return dict(sizes)


def kv_heads_of(family: Family, heads: int, head_dim: int, key_rows: int) -> int:
    """KV heads of a layer whose key projection lies in a linear of `key_rows` rows."""
    if family.q == family.k:
        key_rows = (key_rows - heads * head_dim) // 2
    return key_rows // head_dim


def _qkv(family: Family, shape: LayerShape) -> tuple[Tensor, Tensor, Tensor]:
    """(heads or KV heads, head_dim) rows of q, k and v in their linears."""
    heads, kv_heads, size = shape.heads, shape.kv_heads, shape.head_dim
    queries, keys = _blocks(heads, size), _blocks(kv_heads, size)
    if family.q != family.k:
        return queries, keys, keys
    if not family.interleaved:
        return queries, keys + heads * size, keys + (heads + kv_heads) * size
    # Query head h attends with KV head h // n_rep, so a group's query heads come first, then its key, then its value.
    n_rep = heads // max(1, kv_heads)
    groups = torch.arange(kv_heads * (n_rep + 2) * size).view(kv_heads, n_rep + 2, size)
    return groups[:, :n_rep].reshape(heads, size), groups[:, n_rep], groups[:, n_rep + 1]


def _blocks(units: int, entries: int) -> Tensor:
    """(units, entries): unit u owns the contiguous positions u*entries ... (u+1)*entries - 1."""
    return torch.arange(units * entries).view(units, entries)
