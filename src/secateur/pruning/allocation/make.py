"""From a target sparsity to a budget: how many units may go from each layer, exactly and legally."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

from ...architecture.layout import WHOLE_KINDS, LayerShape, common_shape
from ...architecture.stock import Verdict
from ...architecture.units import ATTENTION_KINDS, Pool, Units
from ...speed.costs import PARAMETERS, Costs, Parameters
from ...system.errors import InputError
from ..budget import Budget, BudgetGoal
from .depth import whole_budget, with_blocks
from .reach import TOLERANCE, Unreachable, check_reached, check_something_goes, nearest_quota, worth_of

Legal = Callable[[LayerShape], Verdict]
Account = Parameters | Costs


def make_budget(units: Units, options: BudgetGoal, legal: Legal, account: Account = PARAMETERS) -> Budget:
    """What a target sparsity means for a model, reached within 0.005 or refused.

    Attention gets the nearest legal count not above the target (or `attention_sparsity`), the FFN the rest.

    Args:
        legal: whether a stock checkpoint can have a shape in every layer (asked for uniform allocation).
        account: what the target is a share of: parameters, or the time of all layers. By time, FFN widths are those
            that the table calls fast, and the nearest of them is within half a step.
    Raises:
        InputError: the target cannot be reached, with the nearest sparsities that can.
    """
    if options.takes_whole:
        return whole_budget(units, options, open_layers(units, options), account)
    fast = account.width_step if isinstance(account, Costs) else 1
    options = replace(options, round_to=math.lcm(options.round_to, units.family.ffn_multiple, fast))
    losing, legal = open_layers(units, options), cache(legal)
    if units.family.alike_only and options.allocation != "uniform":
        raise InputError(
            f"--allocation {options.allocation}: a {units.family.name} has one size in its config for layers of every "
            "kind, so all lose alike: use --allocation uniform."
        )
    listed = units.family.ffn_listed
    if options.allocation == "uniform" and not listed and common_shape(units.shapes, units.family) is None:
        raise InputError(
            "--allocation uniform: the model's layers differ in size already, so no equal cut makes them "
            "alike: use --allocation global or protected."
        )
    pools = [pool for pool in units.pools if pool.layer in losing]
    if (heads := units.of_kind("query_head")) and all(pool.size == pool.sets for pool in heads):
        raise InputError(
            f"--attention query_head: the model has as many KV heads as query heads ({heads[0].size}), so a query "
            "head cannot go alone: use --attention kv_group."
        )
    attention = [pool for pool in pools if pool.kind in ATTENTION_KINDS]
    ffn = [pool for pool in pools if pool.kind == "ffn"]
    if options.round_to > (width := min((pool.size for pool in ffn), default=options.round_to)):
        raise InputError(
            f"--round-to: widths of whole {options.round_to} channels are asked for, and the FFN has {width}: "
            "use a smaller multiple."
        )
    goal = options.sparsity * account.all_of(units)
    if options.allocation in ("global", "search"):
        budget = _global_budget(units, options, attention, ffn, goal, account)
        return with_blocks(budget, [pool for pool in pools if pool.kind in WHOLE_KINDS])
    quota, heads_stay = _attention_quota(units, options, attention, goal, legal, account)
    taken = sum(account.saved(pool, quota[pool.name]) for pool in attention)
    quota |= nearest_quota(ffn, goal - taken, options.round_to, account)
    if options.allocation == "uniform" and not listed:
        _check_stock(units, quota, legal)
    budget = Budget(units, quota, round_to=options.round_to, heads_stay=heads_stay, account=account)
    check_reached(budget, options, ffn)
    return budget


def open_layers(units: Units, options: BudgetGoal) -> range:
    """The layers that may lose units."""
    count = len(units.shapes)
    protected = options.allocation == "protected"
    first = options.protect_first if options.protect_first is not None else max(1, count // 10) * protected
    last = options.protect_last if options.protect_last is not None else int(protected)
    if first + last >= count:
        raise InputError(
            f"--protect-first {first} and --protect-last {last} leave none of the {count} layers to prune: "
            "protect fewer."
        )
    return range(first, count - last)


def _attention_quota(
    units: Units, options: BudgetGoal, attention: list[Pool], goal: float, legal: Legal, account: Account
) -> tuple[dict[str, int], str]:
    """Attention units to remove from each open layer: the nearest legal count not above the target.

    Returns:
        pool name -> units; `Budget.heads_stay`.
    Raises:
        InputError: what was asked for is not possible, with the reason.
    """
    layers = open_layers(units, options)
    whole = account.attention(units, layers) + account.ffn(units, layers)
    quota: dict[str, int] = {}
    heads_stay = ""
    by = account if options.attention_sparsity is None else PARAMETERS
    for pool in attention:
        worth = by.attention(units, pool.layers)
        verdicts = {count: _verdict(units, options, pool, count, legal) for count in range(0, pool.size, pool.sets)}
        reachable = {  # share of the attention's parameters or time -> units
            min(1.0, by.saved(pool, count) / worth): count for count, verdict in verdicts.items() if verdict
        }
        refused = {by.saved(pool, count) / worth: v.refusal for count, v in verdicts.items() if not v}
        wanted = options.attention_sparsity
        if wanted is None:
            share = goal / whole + 1e-9
            quota[pool.name] = max(count for reached, count in reachable.items() if reached <= share)
            if not quota[pool.name] and (len(reachable) == 1 or min(refused, default=1.0) <= share):
                heads_stay = _with_remedy(units, next(iter(refused.values()))) if refused else _last_head(units, pool)
                if options.attention != "auto" and len(reachable) == 1:
                    raise InputError(f"--attention {options.attention}: {heads_stay}")
            continue
        nearest = min(reachable, key=partial(_distance, wanted))
        if _distance(wanted, nearest) > TOLERANCE:
            why = f" That is so as {_last_head(units, pool)}" if pool.size == pool.sets else ""
            if refused:
                why = f" {_with_remedy(units, refused[min(refused, key=partial(_distance, wanted))])}"
            raise InputError(
                f"--attention-sparsity {wanted}: not reachable with {pool.kind} units in "
                f"layer {pool.layer}. Reachable: {', '.join(f'{share:.3f}' for share in reachable)}.{why}"
            )
        quota[pool.name] = reachable[nearest]
    return quota, heads_stay


def _verdict(units: Units, options: BudgetGoal, pool: Pool, count: int, legal: Legal) -> Verdict:
    """Whether `count` units of a pool may go from every layer that may lose some."""
    if count == 0 or options.allocation != "uniform":
        return Verdict()
    shape = common_shape(units.shapes, units.family)
    assert shape is not None, "uniform allocation was refused for these"
    return legal(shape.without(pool.kind, count))


def _last_head(units: Units, pool: Pool) -> str:
    """Why nothing can go where every set has one unit."""
    heads = units.shapes[pool.layer].heads
    other = ": --attention query_head takes query heads" if "query_head" in units.family.kinds and heads > 1 else ""
    return f"the only KV head of a layer has to stay{other}."


def _with_remedy(units: Units, refusal: str) -> str:
    """Why a stock checkpoint cannot have some shape, and what can."""
    if units.family.alike_only:
        return f"{refusal.rstrip('.')}."
    twin = f", or --model-class {units.family.twin}" if units.family.twin else ""
    return (
        f"{refusal.rstrip('.')}: use --allocation protected or global, which come with a modelling file (with "
        f"--protect-first 0 --protect-last 0 all layers lose alike){twin}."
    )


def shape_by_quota(units: Units, quota: dict[str, int]) -> LayerShape:
    """What layers that are alike come to when each pool loses its quota."""
    shape = common_shape(units.shapes, units.family)
    assert shape is not None, "uniform allocation was refused for these"
    kinds = {(pool.kind, pool.part if pool.beside else ""): quota[pool.name] for pool in units.pools}
    for (kind, part), gone in kinds.items():
        shape = shape.without(kind, gone, part)
    return shape


def _check_stock(units: Units, quota: dict[str, int], legal: Legal) -> None:
    """All layers alike must be a stock checkpoint's."""
    shape = shape_by_quota(units, quota)
    if not (verdict := legal(shape)):
        why = _with_remedy(units, verdict.refusal)
        raise InputError(
            f"--allocation uniform: no stock {units.family.name} checkpoint can have {shape.heads} heads and an FFN of "
            f"{shape.ffn} channels: {why}"
        )


def _distance(a: float, b: float) -> float:
    return abs(a - b)


def _global_budget(
    units: Units, options: BudgetGoal, attention: list[Pool], ffn: list[Pool], goal: float, account: Account
) -> Budget:
    """One pot of parameters, or of time, that all units compete for; two when the attention's share is given."""
    floors = _floors(options, attention, ffn, goal, account)
    least = {pool.name: _least(pool, floors[pool.kind], options) for pool in attention + ffn}
    spare = {
        kind: sum(account.saved(p, p.size - least[p.name]) for p in pools)
        for kind, pools in (("attention", attention), ("ffn", ffn))
    }
    pot: dict[tuple[str, ...], float] = {(*ATTENTION_KINDS, "ffn"): goal}
    most = spare["attention"] + spare["ffn"]
    if options.attention_sparsity is not None and attention:
        unit = attention[0].unit_params * attention[0].sets
        params = sum(units.attention_params[pool.layer] for pool in attention)
        wanted = int(options.attention_sparsity * params / unit + 0.5) * unit
        taken = min(wanted, spare["attention"])
        if wanted - taken > unit:
            raise InputError(
                f"--attention-sparsity {options.attention_sparsity}: not reachable with a floor of "
                f"{floors[attention[0].kind]:.3g}: at most {taken / params:.3f}. Stay within that, or lower --floor."
            )
        if taken > goal:
            raise Unreachable(
                options.sparsity,
                (taken / units.prunable_params,),
                f"with --attention-sparsity {options.attention_sparsity}, which alone takes more",
                "Ask for that, or lower --attention-sparsity.",
                "at least",
            )
        pot = {ATTENTION_KINDS: taken, ("ffn",): goal - taken}
        most = taken + spare["ffn"]
    if len(pot) == 1 or not pot[ATTENTION_KINDS]:
        check_something_goes(units, options, ffn if len(pot) > 1 else attention + ffn, least, goal, account)
    if goal > most and not units.of_kind(*WHOLE_KINDS):  # blocks go below the floor
        how = f"with a floor of {floors['ffn']:.3g}"
        raise Unreachable(options.sparsity, (most / account.all_of(units),), how, "Stay within that, or lower --floor.")
    return Budget(units, {}, pot, least, options.round_to, options.across_layers, account=account)


def _floors(
    options: BudgetGoal, attention: list[Pool], ffn: list[Pool], goal: float, account: Account
) -> dict[str, float]:
    """Kind of unit -> fraction of a layer's that always stays: what was asked for, or what leaves room to choose."""
    if options.floor is None and options.attention_sparsity is not None and attention:
        heads = options.attention_sparsity * worth_of(attention, account)
        return dict.fromkeys(ATTENTION_KINDS, _room(attention, heads, account)) | {
            "ffn": _room(ffn, goal - heads, account)
        }
    floor = options.floor if options.floor is not None else _room(attention + ffn, goal, account)
    return dict.fromkeys((*ATTENTION_KINDS, "ffn"), floor)


def _room(pools: list[Pool], gone: float, account: Account) -> float:
    """A floor under the average that stays, so that layers can differ: at most 0.3 of a layer."""
    return min(0.3, 0.6 * max(0.0, 1 - gone / worth_of(pools, account))) if pools else 0.0


def _least(pool: Pool, floor: float, options: BudgetGoal) -> int:
    """Units of a pool that stay whatever they score: the floor's, in whole sets and (channels) whole steps of width."""
    step = math.lcm(pool.sets, options.round_to if pool.kind == "ffn" else 1)
    units = max(1, math.ceil(floor * pool.size - 1e-9))  # 0.7 x 10 is 7, and a little more in binary
    return min(pool.size, -(-units // step) * step)
