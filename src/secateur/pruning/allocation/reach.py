"""Which sparsities a budget can come to, and the error for one that it cannot."""

from collections import Counter

from ...architecture.units import ATTENTION_KINDS, Pool, Units
from ...speed.costs import PARAMETERS, Costs, Parameters
from ...system.errors import InputError
from ..budget import Budget, BudgetGoal

TOLERANCE = 0.005
"""How far the reached sparsity may be from the target without `round_to`."""


class Unreachable(InputError):
    """A target that these units cannot reach.

    Attributes:
        nearest: the sparsities on both sides of it, or the most that can be reached; none where no unit can go.
        how: `with ...`, what the limit comes from.
        remedy: what to do, whatever the target was given as.
        bound: a single nearest one is what can be reached `at most` or `at least`.
    """

    def __init__(
        self, sparsity: float, nearest: tuple[float, ...], how: str, remedy: str, bound: str = "at most"
    ) -> None:
        self.nearest, self.how, self.remedy, self.bound = nearest, how, remedy, bound
        digits = [f"{value:.4f}" for value in sorted(nearest)]
        near = f"{bound} {digits[0]}" if len(digits) == 1 else f"{' and '.join(digits)} are the nearest"
        near = near if digits else "nothing can go"
        super().__init__(f"--sparsity {sparsity} is not reachable {how}: {near}. {remedy}")


def nearest_quota(
    ffn: list[Pool], worth: float, round_to: int, account: Parameters | Costs = PARAMETERS
) -> dict[str, int]:
    """Channels to remove from each open layer, the same share everywhere, that come nearest to `worth`."""
    if not isinstance(account, Costs):
        return ffn_quota(ffn, worth / worth_of(ffn) if ffn else 0.0, round_to)
    found = _quotas(ffn, round_to)
    return min(found, key=lambda quota: abs(_worth(ffn, quota, account) - worth), default={})


def ffn_quota(ffn: list[Pool], share: float, round_to: int) -> dict[str, int]:
    """Channels to remove from each open layer, the same share everywhere, widths snapped to `round_to`."""
    quota = {}
    for pool in ffn:
        size = pool.size // pool.together
        width = max(round_to, round(size * (1 - share) / round_to) * round_to)
        quota[pool.name] = pool.together * (size - min(width, size // round_to * round_to))
    return quota


def _quotas(ffn: list[Pool], round_to: int) -> list[dict[str, int]]:
    """What each width of the widest layer comes to in all of them, the smallest width first."""
    widest = max((pool.size for pool in ffn), default=0)
    return [ffn_quota(ffn, 1 - width / widest, round_to) for width in range(round_to, widest + 1, round_to)]


def _worth(pools: list[Pool], quota: dict[str, int], account: Parameters | Costs) -> float:
    return sum(account.saved(pool, quota.get(pool.name, 0)) for pool in pools)


def worth_of(pools: list[Pool], account: Parameters | Costs = PARAMETERS) -> float:
    """All of some pools, in parameters or milliseconds."""
    return sum(account.saved(pool, pool.size) for pool in pools)


def check_reached(budget: Budget, options: BudgetGoal, ffn: list[Pool]) -> None:
    """Refuse a target that is missed by more than the tolerance, or than half a step of `round_to`."""
    account = budget.account
    step = options.round_to * sum(pool.together * pool.unit_params for pool in ffn) / budget.units.prunable_params
    allowed = TOLERANCE if options.round_to == 1 else TOLERANCE + step / 2
    reached = abs(budget.sparsity - options.sparsity) <= allowed
    if budget.removed_params and reached and not isinstance(account, Costs):
        return
    reachable = _reachable(budget, options.round_to, ffn)
    if isinstance(account, Costs):  # the nearest was taken, however far its neighbours are apart
        reached = bool(reachable) and reachable[0] / 2 <= options.sparsity <= reachable[-1] + TOLERANCE
    if budget.removed_params and reached:
        return
    below = [value for value in reachable if value < options.sparsity][-1:]
    above = [value for value in reachable if value >= options.sparsity][:1]
    what = "Ask for one of these" if below and above else "Ask for at least that" if above else "Stay within that"
    global_ = "--allocation global, which counts single units" if options.round_to == 1 else "a smaller --round-to"
    global_ = "--allocation global" if isinstance(account, Costs) else global_
    remedy = f"{what}, or use {global_}." if reachable else f"Use {global_}."
    raise Unreachable(
        options.sparsity,
        tuple(below + above),
        f"with --allocation {options.allocation}{_rounded(options)}",
        remedy,
        "at most" if below else "at least",
    )


def _rounded(options: BudgetGoal) -> str:
    return f" and widths in steps of {options.round_to}" if options.round_to > 1 else ""


def _reachable(budget: Budget, round_to: int, ffn: list[Pool]) -> list[float]:
    """The sparsities that this budget's heads and every width of the FFN come to, ascending; those of nothing left out.

    The widest layer's widths are tried, and with each the share that it stands for in the others.
    """
    units, account = budget.units, budget.account
    heads = _worth([pool for pool in units.pools if pool.kind in ATTENTION_KINDS], budget.quota, account)
    some = _alike(ffn, account)
    quotas = _quotas([pool for pool, _ in some], round_to)
    worths = (sum(times * account.saved(pool, quota[pool.name]) for pool, times in some) for quota in quotas)
    found = {heads} | {heads + worth for worth in worths}
    return [worth / account.all_of(units) for worth in sorted(found - {0})]


def _alike(pools: list[Pool], account: Parameters | Costs) -> list[tuple[Pool, int]]:
    """One pool for all that count alike, and how many they are: a mixture has thousands."""
    if isinstance(account, Costs):  # where a pool is says what it saves
        return [(pool, 1) for pool in pools]
    kinds = [(pool.size, pool.together, pool.unit_params) for pool in pools]
    counts = Counter(kinds)
    return [(pool, counts[kind]) for kind, pool in dict(zip(kinds, pools, strict=True)).items()]


def check_something_goes(
    units: Units,
    options: BudgetGoal,
    pools: list[Pool],
    least: dict[str, int],
    goal: float,
    account: Parameters | Costs = PARAMETERS,
) -> None:
    """Refuse a target below the smallest step that `Budget.select` takes."""
    steps = []
    for pool in pools:
        size = pool.size % options.round_to or options.round_to if pool.kind == "ffn" else pool.sets
        if size <= pool.size - least[pool.name]:
            steps.append(account.saved(pool, size))
    finest = min((account.saved(pool, min(pool.sets, pool.size)) for pool in pools), default=0)
    how = f"with --allocation {options.allocation}{_rounded(options)}"
    if not steps:
        raise InputError(f"{how.removeprefix('with ')}: no layer can lose a step: lower --floor or --round-to.")
    smallest = min(steps)
    if smallest > goal + (smallest if isinstance(account, Costs) else finest) / 2:
        remedy = "Ask for at least that" + (", or use a smaller --round-to." if options.round_to > 1 else ".")
        remedy = "Ask for at least that." if isinstance(account, Costs) else remedy
        raise Unreachable(options.sparsity, (smallest / account.all_of(units),), how, remedy, "at least")
