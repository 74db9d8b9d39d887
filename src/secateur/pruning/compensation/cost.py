"""What compensation takes, from sizes alone: `plan` counts it."""

from collections.abc import Collection, Iterable

from ...architecture.units import Pool, Units

PASSES = 2.4
"""Forward passes over the layers that a token goes through: the whole model, the cut one as far as o, and all of it."""


def refit_bytes(units: Units, outputs: int, tokens: int, itemsize: int) -> int:
    """Bytes that it holds beside the weights: two streams, the sums of one linear and its solution, down's inputs.

    Args:
        outputs: of an o or down, which is the model's width.
        tokens: that it is fitted to, in this process.
        itemsize: bytes of a hidden state.
    """
    inputs = _inputs(units)
    widest = max(inputs, default=0)
    sums = 2 * (widest**2 + outputs * widest)  # to fit to, and to choose the ridge by
    solving = 4 * widest**2 + 2 * outputs * widest
    return 4 * (sums + solving) + itemsize * tokens * (2 * outputs + widest)


def refit_flops(units: Units, outputs: int, tokens: int) -> float:
    """FLOPs of one: forward passes, sums over tokens, and the solutions for each ridge that is tried and the last one.

    The arguments are those of `refit_bytes`.
    """
    inputs = _inputs(units)
    forward = PASSES * 2.0 * tokens * units.prunable_params
    sums = sum(2.0 * tokens * (width**2 + outputs * width) for width in inputs)
    solving = sum(5 * width**3 / 3 + 2.0 * outputs * width**2 for width in inputs)
    return forward + sums + solving


def _inputs(units: Units) -> Collection[int]:
    """Columns of each o and down."""
    return list({end.linear: end.size for pool in units.pools for end in pool.ends}.values())


def second_moment_bytes(pools: Iterable[Pool]) -> int:
    """Bytes of the second moments of these pools' inputs: width² floats each."""
    return sum(4 * gate.size**2 for pool in pools for gate in pool.gates)
