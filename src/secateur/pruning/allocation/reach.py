"""Which sparsities a budget can come to, and the error for one that it cannot."""

from ...architecture.units import ATTENTION_KINDS, Pool, Units
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


def ffn_quota(ffn: list[Pool], params: float, round_to: int) -> dict[str, int]:
    """Channels to remove from each open layer, the same share everywhere, widths snapped to `round_to`."""
    share = params / params_of(ffn) if ffn else 0.0
    quota = {}
    for pool in ffn:
        size = pool.size // pool.together
        width = max(round_to, round(size * (1 - share) / round_to) * round_to)
        quota[pool.name] = pool.together * (size - min(width, size // round_to * round_to))
    return quota


def params_of(pools: list[Pool]) -> int:
    return sum(pool.size * pool.unit_params for pool in pools)


def check_reached(budget: Budget, options: BudgetGoal, ffn: list[Pool]) -> None:
    """Refuse a target that is missed by more than the tolerance, or than half a step of `round_to`."""
    step = options.round_to * sum(pool.together * pool.unit_params for pool in ffn) / budget.units.prunable_params
    allowed = TOLERANCE if options.round_to == 1 else TOLERANCE + step / 2
    if budget.removed_params and abs(budget.sparsity - options.sparsity) <= allowed:
        return
    reachable = _reachable(budget, options.round_to, ffn)
    below = [value for value in reachable if value < options.sparsity][-1:]
    above = [value for value in reachable if value >= options.sparsity][:1]
    what = "Ask for one of these" if below and above else "Ask for at least that" if above else "Stay within that"
    global_ = "--allocation global, which counts single units" if options.round_to == 1 else "a smaller --round-to"
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
    units = budget.units
    heads = sum(budget.quota.get(p.name, 0) * p.unit_params for p in units.pools if p.kind in ATTENTION_KINDS)
    found = {heads}
    if ffn:
        widest, params = max(pool.size for pool in ffn), params_of(ffn)
        for width in range(round_to, widest + 1, round_to):
            quota = ffn_quota(ffn, params * (1 - width / widest), round_to)
            found.add(heads + sum(quota[pool.name] * pool.unit_params for pool in ffn))
    return [params / units.prunable_params for params in sorted(found - {0})]


def check_something_goes(
    units: Units, options: BudgetGoal, pools: list[Pool], least: dict[str, int], goal: float
) -> None:
    """Refuse a target below the smallest step that `Budget.select` takes."""
    steps = []
    for pool in pools:
        size = pool.size % options.round_to or options.round_to if pool.kind == "ffn" else pool.sets
        if size <= pool.size - least[pool.name]:
            steps.append(size * pool.unit_params)
    finest = min((pool.unit_params * pool.sets for pool in pools), default=0)
    how = f"with --allocation {options.allocation}{_rounded(options)}"
    if not steps:
        raise InputError(f"{how.removeprefix('with ')}: no layer can lose a step: lower --floor or --round-to.")
    if min(steps) > goal + finest / 2:
        remedy = "Ask for at least that" + (", or use a smaller --round-to." if options.round_to > 1 else ".")
        raise Unreachable(options.sparsity, (min(steps) / units.prunable_params,), how, remedy, "at least")
