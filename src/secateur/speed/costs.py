"""What a model's units cost: in parameters, or in milliseconds looked up in a cost table.

A layer's attention and FFN come one after the other, so its time is taken to be that of the dense layer, less what its
heads and what its channels that are gone save, each by itself.
"""

from bisect import bisect_left
from collections.abc import Sequence
from functools import cache

from ..architecture.layout import ATTENTION_BLOCK, FFN_BLOCK, INSIDE, WHOLE_KINDS, LayerShape
from ..architecture.units import Pool, Units
from ..config.sizes import Timed
from ..system.errors import InputError
from .table import CostTable, LayerTimes


class Parameters:
    """Units are worth their parameters."""

    def saved(self, pool: Pool, gone: int) -> float:
        """What goes with so many of a pool's units."""
        return gone * pool.unit_params

    def attention(self, units: Units, layers: Sequence[int]) -> float:
        """Of the attention of some layers."""
        return sum(units.attention_params[layer] for layer in layers)

    def ffn(self, units: Units, layers: Sequence[int]) -> float:
        """Of the FFN of some layers."""
        return sum(units.ffn_params[layer] for layer in layers)

    def all_of(self, units: Units) -> float:
        """What the share that goes is a share of."""
        return units.prunable_params


PARAMETERS = Parameters()


class Curve:
    """Time by a number of units, straight between those that were measured, and never less for more.

    Args:
        points: units -> ms. Without one of 0 units the line through the smallest two is followed there.
    """

    def __init__(self, points: dict[int, float]) -> None:
        self.sizes = sorted(points)
        self.values = monotone([points[size] for size in self.sizes])
        if self.sizes[0] > 0:
            (first, second), (low, high) = self.sizes[:2], self.values[:2]
            self.values.insert(0, max(0.0, low - (high - low) * first / (second - first)))
            self.sizes.insert(0, 0)

    def at(self, size: int) -> float:
        """Milliseconds of so many units, none above the largest number that was measured."""
        right = min(bisect_left(self.sizes, size), len(self.sizes) - 1)
        if self.sizes[right] <= size:
            return self.values[right]
        (low, high), (before, after) = self.sizes[right - 1 : right + 1], self.values[right - 1 : right + 1]
        return before + (after - before) * (size - low) / (high - low)


def monotone(values: Sequence[float]) -> list[float]:
    """The nearest values, by least squares, that never fall (pool adjacent violators)."""
    runs: list[tuple[float, int]] = []
    for value in values:
        runs.append((value, 1))
        while len(runs) > 1 and runs[-2][0] > runs[-1][0]:
            (last, more), (mean, count) = runs.pop(), runs.pop()
            runs.append(((mean * count + last * more) / (count + more), count + more))
    return [mean for mean, count in runs for _ in range(count)]


class Costs:
    """The times of a model's units by a table, of one thing that is timed or of a sum of several.

    Args:
        at: what is timed.
        name: of the table, for errors.
    Raises:
        InputError: the table is of another model, or lacks what is asked for.
    """

    def __init__(self, table: CostTable, at: Sequence[Timed], units: Units, name: str = "the cost table") -> None:
        check_timed(units)
        self.table, self.at, self.units = table, tuple(at), units
        if lacking := [each.name for each in at if each.name not in table.times]:
            raise InputError(
                f"{name} has no times of {', '.join(lacking)}, but of {', '.join(table.times)}: ask for these "
                "(--speed-at), or measure again with secateur bench --cost-table."
            )
        self._parts: list[tuple[float, float, dict[int, LayerCurves]]] = []
        for each in at:
            times = table.times[each.name]
            curves = {number: LayerCurves(found) for found in times.layers for number in found.layers}
            self._parts.append((each.times, times.rest_ms, curves))
            if curves.keys() != set(range(len(units.shapes))) or not all(found.layers for found in times.layers):
                raise InputError(f"{name} is of a model of {len(curves)} layers, and this one has {len(units.shapes)}.")
            for found in times.layers:
                curves[found.layers[0]].check(units, found.layers, name)
        self.width_step = table.width_step
        self._inner = {
            (layer, INSIDE[pool.kind]) for pool in units.pools for layer in pool.layers if pool.kind in INSIDE
        }
        self._several = {
            (layer, kind): sum(pool.kind == kind and layer in pool.layers for pool in units.pools)
            for layer in range(len(units.shapes))
            for kind in {pool.kind for pool in units.pools}
        }
        self.layer_ms = cache(self._layer_ms)

    def _layer_ms(self, number: int, shape: LayerShape) -> float:
        return sum(times * curves[number].ms(shape) for times, _, curves in self._parts)

    def ms(self, shapes: Sequence[LayerShape]) -> float:
        """Milliseconds that the whole model takes with layers of these shapes."""
        rest = sum(times * rest for times, rest, _ in self._parts)
        return rest + sum(self.layer_ms(number, shape) for number, shape in enumerate(shapes))

    @property
    def dense_ms(self) -> float:
        """Milliseconds of the model as it is before it is pruned."""
        return self.ms(self.units.shapes)

    def saved(self, pool: Pool, gone: int) -> float:
        """Milliseconds that go with so many of a pool's units.

        A block whose heads or channels are units themselves saves what they do, and no more.
        """
        if pool.kind in WHOLE_KINDS and (pool.layer, pool.kind) in self._inner:
            return 0.0
        total = 0.0
        for layer in pool.layers:
            shape = self.units.shapes[layer]
            before, after = self.layer_ms(layer, shape), self.layer_ms(layer, shape.without(pool.kind, gone))
            total += (before - after) / self._several[layer, pool.kind]  # the experts of a layer
        return total

    def attention(self, units: Units, layers: Sequence[int]) -> float:
        """Milliseconds of the attention of some layers."""
        return self._of_blocks(ATTENTION_BLOCK, layers)

    def ffn(self, units: Units, layers: Sequence[int]) -> float:
        """Milliseconds of the FFN of some layers."""
        return self._of_blocks(FFN_BLOCK, layers)

    def _of_blocks(self, kind: str, layers: Sequence[int]) -> float:
        shapes = {layer: self.units.shapes[layer] for layer in layers}
        return sum(self.layer_ms(n, shape) - self.layer_ms(n, shape.without(kind, 1)) for n, shape in shapes.items())

    def all_of(self, units: Units) -> float:
        """Milliseconds of all layers."""
        return sum(self.layer_ms(number, shape) for number, shape in enumerate(units.shapes))


def check_timed(units: Units) -> None:
    """Refuse a model with layers whose time is not by heads and one width.

    Raises:
        InputError: it has FFNs beside its experts.
    """
    if beside := [pool.name for pool in units.pools if pool.beside]:
        raise InputError(
            f"{beside[0]}: a cost table has times by one FFN width, and these layers have FFNs beside their experts: "
            "ask for --sparsity or --target-params."
        )


class LayerCurves:
    """The times of one kind of layer by any number of heads and channels."""

    def __init__(self, times: LayerTimes) -> None:
        self._largest = max(((one.kv_heads, one.heads) for one in times.heads), default=(0, 0))
        kv_heads, heads = self._largest
        ratio = {one.kv_heads: one.ms for one in times.heads if one.heads * kv_heads == one.kv_heads * heads}
        inside = {one.heads: one.ms for one in times.heads if one.kv_heads in (kv_heads, 0)}
        self._by_kv = Curve(ratio) if len(ratio) > 1 else None
        self._by_heads = Curve(inside) if len(inside) > 1 else None
        channels = {one.channels: one.ms for one in times.channels}
        self._by_channels = Curve(channels) if len(channels) > 1 else None
        self._widest = max(channels, default=0)
        top = [curve.values[-1] for curve in (self._by_channels, self._by_kv, self._by_heads) if curve]
        self._dense = top[0] if top else max([*channels.values(), *(one.ms for one in times.heads)], default=0.0)

    def check(self, units: Units, layers: Sequence[int], name: str) -> None:
        """Whether these are times of such layers: one of them has the sizes that the table begins with.

        Raises:
            InputError: they are not.
        """
        shapes = {shape.key() for layer in layers if not (shape := units.shapes[layer]).gone}
        kv_heads, heads = self._largest
        if shapes and (heads, kv_heads, self._widest) not in shapes:
            own = max(shapes)
            raise InputError(
                f"{name} is of another model: layer {layers[0]} has {own[0]} heads, {own[1]} KV heads and {own[2]} "
                f"channels, and the table's {heads}, {kv_heads} and {self._widest}."
            )

    def ms(self, shape: LayerShape) -> float:
        """Milliseconds of a layer of this shape."""
        if shape.gone:
            return 0.0
        channels = self._by_channels.at(self._widest) - self._by_channels.at(shape.ffn) if self._by_channels else 0.0
        return max(0.0, self._dense - channels - self._heads_saved(shape))

    def _heads_saved(self, shape: LayerShape) -> float:
        kv_heads, heads = self._largest
        grouped = shape.heads * kv_heads == shape.kv_heads * heads
        curve = self._by_kv if grouped and self._by_kv else self._by_heads
        if curve is None:
            curve, grouped = self._by_kv, True
        if curve is None:
            return 0.0
        whole, left = (kv_heads, shape.kv_heads) if curve is self._by_kv else (heads, shape.heads)
        return curve.at(whole) - curve.at(left)


def hull(steps: Sequence[tuple[float, float, int]]) -> list[tuple[float, float, int]]:
    """A pool's steps in their order, joined so that each is worth no less for its cost than the one before it.

    A step that saves little is not worth taking alone, and what follows it cannot be taken without it.

    Args:
        steps: (score that is lost, cost that is saved, units).
    """
    joined: list[tuple[float, float, int]] = []
    for step in steps:
        joined.append(step)
        while len(joined) > 1 and joined[-2][0] * joined[-1][1] > joined[-1][0] * joined[-2][1]:
            (score, cost, units), (more, further, others) = joined.pop(-2), joined.pop()
            joined.append((score + more, cost + further, units + others))
    return joined
