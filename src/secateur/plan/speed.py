"""What a target in time would take, by the cost table."""

from collections.abc import Sequence
from typing import Any

from ..architecture.layout import LayerShape
from ..pruning.allocation.target import Target
from ..pruning.budget import Budget
from ..speed.costs import Costs
from ..training.prepare import PlannedBudget


def planned_time(planned: PlannedBudget) -> dict[str, Any]:
    """`speed`: times before and after, and the layers' sizes; nothing where no time is asked for.

    Where layers compete it is not known yet which lose most: the sizes are then those of layers that all lose alike.
    """
    asked, costs = planned.target.time, planned.budget.account
    if asked is None or not isinstance(costs, Costs):
        return {}
    exact, pruned = not planned.budget.pot, expected_ms(planned.target, planned.budget)
    return {
        "speed": {
            "at": asked.at,
            "asked": asked.speedup,
            "dense_ms": costs.dense_ms,
            "pruned_ms": pruned,
            "speedup": costs.dense_ms / pruned,
            "table": planned.note or asked.table,
            "layers": _layers(planned.budget, exact),
        }
    }


def expected_ms(target: Target, budget: Budget) -> float:
    """What a model shall take at the end, by its cost table; 0 where no time is asked for."""
    if target.time is None or not isinstance(budget.account, Costs):
        return 0.0
    return target.time.ms if budget.pot else budget.account.ms(shapes_left(budget))


def shapes_left(budget: Budget) -> Sequence[LayerShape]:
    """The layers' shapes at the end, as far as they are known; of a whole layer or block nothing is."""
    gone = {**budget.quota, **budget.expected_gone()}
    shapes = list(budget.units.shapes)
    for pool in budget.units.pools:
        if pool.size > 1 and pool.name in gone and pool.part in ("", "expert0"):
            for layer in pool.layers:
                shapes[layer] = shapes[layer].without(pool.kind, round(gone[pool.name] / pool.sets) * pool.sets)
    return shapes


def _layers(budget: Budget, exact: bool) -> list[str]:
    """A line for each size that layers come to."""
    sizes: dict[tuple[LayerShape, LayerShape], list[int]] = {}
    for number, (before, after) in enumerate(zip(budget.units.shapes, shapes_left(budget), strict=True)):
        sizes.setdefault((before, after), []).append(number)
    about = "" if exact else "about, before units are ranked across layers: "
    return [
        f"{about}{_numbers(numbers)}: {after.heads} of {before.heads} heads, {after.ffn:,} of {before.ffn:,} channels"
        for (before, after), numbers in sizes.items()
        if budget.units.of_kind("ffn", "kv_group", "query_head")
    ]


def _numbers(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"layer {numbers[0]}"
    whole = numbers[-1] - numbers[0] + 1 == len(numbers)
    return f"layers {numbers[0]} to {numbers[-1]}" if whole else f"layers {', '.join(map(str, numbers))}"
