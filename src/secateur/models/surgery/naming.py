"""What a model's tensors are called when layers have gone, and which go with layers and blocks."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import Tensor

from ...architecture.families import Family
from ...architecture.layout import ATTENTION_BLOCK, FFN_BLOCK, WHOLE_KINDS
from ...architecture.units import Units


def names_gone(units: Units, keep: Mapping[str, Tensor]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Beginnings of the names of all tensors that go with layers and blocks, and the names of those that stay."""
    gone: list[str] = []
    biases: set[str] = set()
    for pool in units.of_kind(*WHOLE_KINDS):
        if keep[pool.name].all():
            continue
        place = units.places[pool.layer]
        ends = {ATTENTION_BLOCK: [place.family.attention], FFN_BLOCK: [*place.family.ffn_linears]}.get(pool.kind, [])
        gone += [f"{place.prefix}.{end}." for end in ends] or [f"{place.prefix}."]
        last = {ATTENTION_BLOCK: place.family.o, FFN_BLOCK: place.family.mlp_out}.get(pool.kind)
        biases |= {f"{place.prefix}.{last}.bias"} if last else set()
    return tuple(gone), frozenset(biases)


def renumbered(
    tensors: Iterable[tuple[str, Tensor]], units: Units, kept: Sequence[int]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the layers that are kept, and all that lie outside of layers, by the names of the small model."""
    if len(kept) == len(units.shapes):
        yield from tensors
        return
    places = {number: place for place, number in enumerate(kept)}
    for name, tensor in tensors:
        found = _number_in(name, units.family)
        if found is None:
            yield name, tensor
        elif found in places:
            yield _named(name, units.family, places[found]), tensor


def original_name(name: str, units: Units, kept: Sequence[int]) -> str:
    """What a small model's tensor was called before layers went."""
    found = _number_in(name, units.family)
    return name if found is None else _named(name, units.family, kept[found])


def _number_in(name: str, family: Family) -> int | None:
    rest = name.removeprefix(f"{family.layers}.")
    return int(rest.split(".")[0]) if rest != name else None


def _named(name: str, family: Family, number: int) -> str:
    rest = name.removeprefix(f"{family.layers}.").split(".", 1)[1]
    return f"{family.layers}.{number}.{rest}"
