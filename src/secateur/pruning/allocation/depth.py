"""How many whole layers or blocks go: as many as come nearest to the target."""

from collections.abc import Collection
from dataclasses import replace

from ...architecture.layout import LAYER, WHOLE_KINDS
from ...architecture.units import Pool, Units
from ...speed.costs import PARAMETERS, Costs, Parameters
from ..budget import Budget, BudgetGoal
from .reach import Unreachable


def whole_budget(
    units: Units, options: BudgetGoal, losing: Collection[int], account: Parameters | Costs = PARAMETERS
) -> Budget:
    """One pot of parameters, or of time, that the layers, or the blocks of all layers, compete for; one of them stays.

    Args:
        losing: numbers of the layers that may go.
    Raises:
        InputError: less than half a layer is to go, or more than may.
    """
    pools = [pool for pool in units.of_kind(*WHOLE_KINDS) if pool.layer in losing]
    how = f"with --units {options.units}"
    sizes = sorted(account.saved(pool, 1) for pool in pools)
    goal, everything = options.sparsity * account.all_of(units), account.all_of(units)
    most = sum(sizes) - (sizes[0] if len(losing) == len(units.shapes) else 0)
    alike = sizes[0] == sizes[-1]
    params = round(goal / sizes[0]) * sizes[0] if alike else goal
    if goal < sizes[0] / 2:
        least = sizes[0] / everything
        raise Unreachable(
            options.sparsity, (least,), how, "Ask for at least that, or prune heads and channels.", "at least"
        )
    if params > most:
        kept = "protect fewer" if len(losing) < len(units.shapes) else "one has to stay"
        raise Unreachable(options.sparsity, (most / everything,), how, f"Stay within that: {kept}.")
    least_units = {pool.name: 0 for pool in pools}
    return Budget(units, {}, {WHOLE_KINDS: params}, least_units, across_layers="raw", account=account)


def with_blocks(budget: Budget, blocks: list[Pool]) -> Budget:
    """A budget in which whole blocks compete with the heads and channels in them, which have a floor by themselves.

    Args:
        blocks: that may go.
    """
    if not blocks:
        return budget
    pot = {(*kinds, *WHOLE_KINDS): params for kinds, params in budget.pot.items()}
    return replace(budget, pot=pot, least=budget.least | {pool.name: 0 for pool in blocks})


def layers_to_go(budget: Budget) -> int:
    """How many layers go, where all are alike; 0 where that is not known before it is scored, or no layers go."""
    pools = [pool for pool in budget.units.of_kind(LAYER) if pool.name in budget.least]
    sizes = {budget.account.saved(pool, 1) for pool in pools}
    return round(sum(budget.pot.values()) / sizes.pop()) if len(sizes) == 1 else 0


def layer_words(budget: Budget) -> str:
    """What goes, where whole layers do."""
    if blocks := len(budget.units.of_kind(*WHOLE_KINDS)) - len(budget.units.of_kind(LAYER)):
        others = ", heads and channels" if len(budget.units.pools) > blocks else ""
        return f"{blocks} attention and FFN blocks{others} compete, and as much goes as comes nearest to the target"
    if not budget.units.of_kind(LAYER):
        return ""
    count = layers_to_go(budget) or "some"
    return f"{count} of {len(budget.units.shapes)} layers go"
