"""Which rows and columns of a layer's linears belong to which head or channel: arithmetic on a family and sizes."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

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
    beside: tuple[tuple[str, int], ...] = ()
    """Name and width of each FFN that is beside the routed experts, or in their place (`Family.beside`)."""
    latent: tuple[int, int] = (0, 0)
    """Entries of a head's key that do not depend on the position, and of its value (`Family.latent`)."""

    @property
    def value_dim(self) -> int:
        """Entries of a head's value, and so of what `o` reads of it."""
        return self.latent[1] or self.head_dim

    @property
    def attention_width(self) -> float:
        """Entries of a head over all query heads, on average over keys, of which scores are made, and values."""
        return self.heads * (self.head_dim + self.value_dim) / 2

    @property
    def gone(self) -> bool:
        """Whether the layer is gone: one without attention and FFN has its biases and its place still."""
        return not self.head_dim

    def without(self, kind: str, removed: int, part: str = "") -> "LayerShape":
        """The shape after `removed` units of `kind` are gone from this layer.

        Args:
            part: the FFN beside the routed experts whose channels they are, if so.
        """
        heads, kv_heads, ffn = self.heads, self.kv_heads, self.ffn
        if kind == LAYER and removed:
            return LayerShape(0, 0, 0, 0)
        if part:
            return replace(self, beside=tuple((n, size - removed * (n == part)) for n, size in self.beside))
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
        return replace(self, heads=heads, kv_heads=kv_heads, ffn=ffn)

    def key(self) -> tuple[int, int, int]:
        """(query heads, KV heads, FFN width)."""
        return self.heads, self.kv_heads, self.ffn

    def __str__(self) -> str:
        beside = "".join(f", {name} {size}" for name, size in self.beside)
        return f"{self.heads} query heads, {self.kv_heads} KV heads of {self.head_dim} and {self.ffn} channels{beside}"

    def to_dict(self) -> dict[str, int]:
        """What records say of a layer."""
        sizes = dict(zip(("heads", "kv_heads", "ffn"), self.key(), strict=True))
        return sizes | {f"{name}_ffn": size for name, size in self.beside}

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


def own_name(path: str) -> str:
    """A linear's own name, by which LoRA finds it in every layer; with the one before where it is a number (`ffn.0`),
    as layers have those too."""
    parts = path.split(".")
    return ".".join(parts[-2:] if parts[-1].isdigit() else parts[-1:])


def in_code(path: str) -> str:
    """A linear of `layer` as Python says it, also where it is a numbered part (`ffn.0`)."""
    return re.sub(r"\.(\d+)", r"[\1]", f"layer.{path}")


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
    if family.value_gate and not family.experts:
        faults.append(
            "Family: value_gate is True, which the modelling file of layers that differ does not resize: leave it out, "
            "and say in no_heads why heads stay."
        )
    if wrong := {str(size) for size in family.attributes.values()} - set(SIZES):
        faults.append(f"Family: attributes hold {', '.join(sorted(wrong))}: choose from {', '.join(SIZES)}.")
    all_faults(faults)


def common_shape(shapes: tuple[LayerShape, ...], family: Family | None = None) -> LayerShape | None:
    """The one shape of layers that are alike, None if they differ; layers that are gone go with any.

    Args:
        family: so do, where it says so, layers without attention or an FFN (`in_part`); the shape then has all.
            Attention that cannot change is not compared.
    """
    in_part = family is not None and family.in_part
    heads_stay = family is not None and family.no_heads is not None
    shapes = tuple(shape for shape in shapes if not shape.gone)
    widest = Counter[str]()
    for shape in shapes if in_part else shapes[:1]:
        widest |= Counter(dict(shape.beside))
    heads, kv_heads, ffn = map(max, zip(*(shape.key() for shape in shapes), strict=True))
    beside = tuple(sorted(widest.items()))
    wide = replace(shapes[0], heads=heads, kv_heads=kv_heads, ffn=ffn, beside=beside)
    attention, channels = ([(heads, kv_heads)], [ffn]) if not in_part else ([(heads, kv_heads), (0, 0)], [ffn, 0])
    alike = all(
        (heads_stay or shape.key()[:2] in attention) and shape.ffn in channels and set(shape.beside) <= set(beside)
        for shape in shapes
    )
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
        places = dict(zip("qkv", _qkv(family, shape), strict=True))
        found += [Part(role, getattr(family, role), 0, index) for role, index in places.items()]
        found.append(Part("o", family.o, 1, _blocks(shape.heads, shape.value_dim)))
    if "ffn" in roles and family.mlp_in:
        paths = [path.format(expert) for path in (*family.mlp_in, family.mlp_out)]
        found += _ffn_parts(paths, shape.ffn, family.stacking.interleaved)
    return tuple(found)


def beside_parts(family: Family, shape: LayerShape) -> dict[str, tuple[Part, ...]]:
    """Name of each FFN that a layer of this shape has beside the routed experts -> its projections."""
    widths = dict(shape.beside)
    there = [beside for beside in family.beside if beside.name in widths]
    return {beside.name: _ffn_parts([*beside.inputs, beside.output], widths[beside.name]) for beside in there}


def _ffn_parts(paths: Sequence[str], width: int, interleaved: bool = False) -> tuple[Part, ...]:
    """The projections of an FFN, the last of which reads the channels.

    Args:
        interleaved: a linear that holds several projections has a row of each for a channel, then for the next.
    """
    *inputs, output = paths
    found: list[Part] = []
    seen: Counter[str] = Counter()
    for path in inputs:  # a path that comes again holds one projection after the other
        step, start = (inputs.count(path), seen[path]) if interleaved else (1, width * seen[path])
        found.append(Part("in", path, 0, _channels(width, step, start)))
        seen[path] += 1
    return (*found, Part("out", output, 1, _channels(width, 1, 0)))


@lru_cache(maxsize=64)
def _channels(width: int, step: int, start: int) -> Tensor:
    """(width, 1): the position of each channel. One tensor for all experts, of which there are many thousands."""
    return torch.arange(width, device="cpu").unsqueeze(1) * step + start


def linear_sizes(family: Family, shape: LayerShape) -> dict[tuple[str, int], int]:
    """(linear, dim) -> how long that side is, for every side that pruning can change."""
    sizes: Counter[tuple[str, int]] = Counter()
    beside = [part for found in beside_parts(family, shape).values() for part in found]
    for part in (*parts(family, shape), *beside):
        sizes[part.linear, part.dim] += part.index.numel()
    return dict(sizes)


def kv_heads_of(family: Family, heads: int, head_dim: int, key_rows: int, latent: tuple[int, int] = (0, 0)) -> int:
    """KV heads of a layer whose key projection lies in a linear of `key_rows` rows.

    Args:
        latent: as `LayerShape.latent`.
    """
    if family.latent is not None:
        return key_rows // sum(latent)
    if family.q == family.k:
        key_rows = (key_rows - heads * head_dim) // 2
    return key_rows // head_dim


def _qkv(family: Family, shape: LayerShape) -> tuple[Tensor, Tensor, Tensor]:
    """(heads or KV heads, head_dim) rows of q, k and v in their linears."""
    heads, kv_heads, size = shape.heads, shape.kv_heads, shape.head_dim
    gate = shape.value_dim if family.value_gate else 0
    queries, keys = _blocks(heads, size * family.query_rows + gate), _blocks(kv_heads, size)
    if family.latent is not None:  # of each head, the key's entries that do not depend on the position, then the value
        rows = _blocks(kv_heads, sum(shape.latent))
        return queries, rows[:, : shape.latent[0]], rows[:, shape.latent[0] :]
    if family.q != family.k:
        return queries, keys, _blocks(kv_heads, shape.value_dim)
    if not family.interleaved:
        return queries, keys + heads * size, keys + (heads + kv_heads) * size
    # Query head h attends with KV head h // n_rep, so a group's query heads come first, then its key, then its value.
    n_rep = heads // max(1, kv_heads)
    groups = torch.arange(kv_heads * (n_rep + 2) * size).view(kv_heads, n_rep + 2, size)
    return groups[:, :n_rep].reshape(heads, size), groups[:, n_rep], groups[:, n_rep + 1]


def _blocks(units: int, entries: int) -> Tensor:
    """(units, entries): unit u owns the contiguous positions u*entries ... (u+1)*entries - 1."""
    return torch.arange(units * entries).view(units, entries)
