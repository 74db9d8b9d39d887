"""Cost tables that are made up, so that every figure is known."""

from collections.abc import Callable
from pathlib import Path

from secateur.architecture.discovery import find_units
from secateur.architecture.families import family_of
from secateur.architecture.units import Units
from secateur.config.sizes import parse_speed_at
from secateur.speed.costs import Costs
from secateur.speed.table import Channels, CostTable, Heads, LayerTimes, Times
from secateur.system.records import write_json

AT = "prefill:1x512"


def units_of(model, attention: str = "kv_group", kinds=("heads", "channels")) -> Units:
    return find_units(model, family_of(model.config.model_type), attention, kinds)


def table(
    model,
    heads_ms: Callable[[int, int], float],
    channels_ms: Callable[[int], float],
    *,
    step: int = 1,
    rest_ms: float = 10.0,
    base_ms: float = 0.0,
) -> CostTable:
    """A layer takes `base_ms + heads_ms(layer, KV heads left) + channels_ms(channels left)`."""
    shapes = units_of(model).shapes
    groups = []
    for number, shape in enumerate(shapes):
        each = shape.heads // shape.kv_heads
        whole_heads, whole_channels = heads_ms(number, shape.kv_heads), channels_ms(shape.ffn)
        heads = [
            Heads(kv * each, kv, base_ms + heads_ms(number, kv) + whole_channels) for kv in range(shape.kv_heads + 1)
        ]
        widths = {*range(0, shape.ffn, step), shape.ffn}
        channels = [Channels(width, base_ms + whole_heads + channels_ms(width)) for width in sorted(widths)]
        groups.append(LayerTimes((number,), tuple(heads), tuple(channels)))
    return CostTable({AT: Times(rest_ms, tuple(groups))}, step, {}, "made up")


def by_parameters(model, ms: float = 1e-4, rest_ms: float = 10.0) -> CostTable:
    """Of heads and channels that take `ms` for each parameter."""
    units = units_of(model)
    heads, ffn = units.of_kind("kv_group")[0], units.of_kind("ffn")[0]
    return table(
        model, lambda _, kv: ms * kv * heads.unit_params, lambda width: ms * width * ffn.unit_params, rest_ms=rest_ms
    )


def costs(found: CostTable, units: Units) -> Costs:
    return Costs(found, parse_speed_at(AT), units)


def written(path: Path, found: CostTable) -> Path:
    write_json(path, found.record())
    return path
