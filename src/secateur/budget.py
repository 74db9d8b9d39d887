"""From a target sparsity to units: how many may go, exactly and legally, and which ones.

Before the run `make_budget` fixes what the target means for this model; at each cut `Budget.select`
turns scores into what stays.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from .errors import InputError
from .layout import LayerShape, common_shape
from .stock import Verdict
from .units import ATTENTION_KINDS, Pool, Units

TOLERANCE = 0.005
"""How far the reached sparsity may be from the target without `round_to`."""

Legal = Callable[[LayerShape], Verdict]


class Unreachable(InputError):
    """A target that these units cannot reach.

    Attributes:
        nearest: the sparsities on both sides of it, or the most that can be reached.
        how: `with ...`, what the limit comes from.
        remedy: what to do, whatever the target was given as.
        bound: a single nearest one is what can be reached `at most` or `at least`.
    """

    def __init__(
        self, sparsity: float, nearest: tuple[float, ...], how: str, remedy: str, bound: str = "at most"
    ) -> None:
        self.nearest, self.how, self.remedy, self.bound = nearest, how, remedy, bound
        digits = [f"{value:.4f}" for value in sorted(nearest)]
        near = f"{' and '.join(digits)} are the nearest" if len(digits) > 1 else f"{bound} {digits[0]}"
        super().__init__(f"--sparsity {sparsity} is not reachable {how}: {near}. {remedy}")


@dataclass(frozen=True)
class BudgetOptions:
    """What may go, and where (`PruneConfig` has the same fields)."""

    sparsity: float
    attention_sparsity: float | None = None
    allocation: str = "uniform"
    protect_first: int | None = None
    protect_last: int | None = None
    floor: float = 0.1
    round_to: int = 1
    across_layers: str = "mean"
    attention: str = "auto"


@dataclass(frozen=True, eq=False)
class Budget:
    """What goes by the end of the run. Exactly one of `quota` and `pot` is filled for a pool.

    Attributes:
        quota: pool name -> units that go (uniform and protected allocation).
        pot: kinds that are ranked across layers -> parameters that go from all their pools together.
        least: pool name -> units that always stay (global allocation).
        across_layers: how scores of different layers compare (global allocation): relative to the layer's `mean`, in
            `standard` deviations from it, or `raw`.
        heads_stay: why no attention unit goes, where a stock checkpoint cannot be without those that were due.
    """

    units: Units
    quota: dict[str, int]
    pot: dict[tuple[str, ...], float] = field(default_factory=dict)
    least: dict[str, int] = field(default_factory=dict)
    round_to: int = 1
    across_layers: str = "mean"
    heads_stay: str = ""

    @property
    def removed_params(self) -> int:
        """Parameters gone at the end of the schedule (for pots: at most, to within one unit)."""
        fixed = sum(self.quota.get(pool.name, 0) * pool.unit_params for pool in self.units.pools)
        return fixed + round(sum(self.pot.values()))

    @property
    def spared(self) -> frozenset[str]:
        """Names of the pools that lose nothing."""
        losing = self.least.keys() | {name for name, units in self.quota.items() if units}
        return frozenset(pool.name for pool in self.units.pools) - losing

    @property
    def sparsity(self) -> float:
        return self.removed_params / self.units.prunable_params

    def select(self, scores: dict[str, Tensor], keep: dict[str, Tensor], progress: float) -> dict[str, Tensor]:
        """What stays when `progress` (0 ... 1) of the target is due. Never brings a unit back.

        Args:
            scores: pool name -> (units,) scores, higher stays.
            keep: pool name -> (units,) bool, what is there now.
        """
        kept = {name: mask.clone() for name, mask in keep.items()}
        for pool in self.units.pools:
            if pool.name in self.quota:
                due = round(progress * self.quota[pool.name] / pool.sets) * pool.sets
                gone = pool.size - int(kept[pool.name].sum())
                _remove_lowest_(kept[pool.name], scores[pool.name], max(0, due - gone), pool.sets)
        for kinds, params in self.pot.items():
            pools = [pool for pool in self.units.of_kind(*kinds) if pool.name in self.least]
            self._select_across_layers_(pools, scores, kept, progress * params)
        return kept

    def _select_across_layers_(
        self, pools: list[Pool], scores: dict[str, Tensor], kept: dict[str, Tensor], params: float
    ) -> None:
        """Cut the lowest-ranked units of all layers until `params` parameters of these pools are gone."""
        gone = sum(int((~kept[pool.name]).sum()) * pool.unit_params for pool in pools)
        finest = min(pool.unit_params * pool.sets for pool in pools)
        ranked = [
            (score, number, count)
            for number, pool in enumerate(pools)
            for score, count in self._candidates(pool, pools, scores, kept[pool.name])
        ]
        take = [0] * len(pools)
        for _, number, count in sorted(ranked):
            cost = count * pools[number].unit_params
            if gone + cost <= params + finest / 2:  # one too large to fit leaves its place to smaller ones
                take[number] += count
                gone += cost
        for pool, count in zip(pools, take, strict=True):
            _remove_lowest_(kept[pool.name], scores[pool.name], count, pool.sets)

    def _candidates(
        self, pool: Pool, pools: list[Pool], scores: dict[str, Tensor], keep: Tensor
    ) -> list[tuple[float, int]]:
        """(rank, units) of what could go next from a pool, lowest first, down to its floor."""
        relative = self._across_layers(pool, [p for p in pools if p.layer == pool.layer], scores)
        alive = int(keep.sum())
        ordered = relative.masked_fill(~keep, torch.inf).view(pool.sets, -1).sort(1).values.mean(0)
        per_set = ordered[: alive // pool.sets].tolist()
        spare = (alive - self.least[pool.name]) // pool.sets
        chunk = self.round_to if pool.kind == "ffn" else 1
        groups, taken = [], 0
        while (size := chunk if alive % chunk == 0 or taken else alive % chunk) and taken + size <= spare:
            groups.append((sum(per_set[taken : taken + size]) / size, size * pool.sets))
            taken += size
        return groups

    def _across_layers(self, pool: Pool, layer: list[Pool], scores: dict[str, Tensor]) -> Tensor:
        """(units,) score per parameter, comparable with that of other layers' units.

        Raw scores differ by orders of magnitude between layers, so by default a unit's score per parameter is
        divided by its layer's mean: layers are compared by what is unimportant *within* them. In `standard`
        deviations (FLAP) heads and channels are each compared with their own kind.
        """
        per_parameter = scores[pool.name].double() / pool.unit_params
        if self.across_layers == "raw":
            return per_parameter
        if self.across_layers == "standard":
            spread = per_parameter.std() if pool.size > 1 else per_parameter.new_ones(())
            return (per_parameter - per_parameter.mean()) / spread.clamp_min(torch.finfo(torch.float64).tiny)
        mean = sum(float(scores[p.name].sum()) for p in layer) / sum(p.size * p.unit_params for p in layer)
        return per_parameter / max(mean, torch.finfo(torch.float32).tiny)


def make_budget(units: Units, options: BudgetOptions, legal: Legal) -> Budget:
    """What a target sparsity means for a model, reached within 0.005 or refused.

    Attention gets the nearest legal count not above the target (or `attention_sparsity`), the FFN the rest.

    Args:
        legal: whether a stock checkpoint can have a shape in every layer (asked for uniform allocation).
    Raises:
        InputError: the target cannot be reached, with the nearest sparsities that can.
    """
    options = replace(options, round_to=math.lcm(options.round_to, units.family.ffn_multiple))
    open_layers = _open_layers(units, options)
    if units.family.alike_only and options.allocation != "uniform":
        raise InputError(
            f"--allocation {options.allocation}: a {units.family.name} has one size in its config for layers of every "
            "kind, so all lose alike: use --allocation uniform."
        )
    if options.allocation == "uniform" and common_shape(units.shapes) is None:
        raise InputError(
            "--allocation uniform: the model's layers differ in size already, so no equal cut makes them "
            "alike: use --allocation global or protected."
        )
    pools = [pool for pool in units.pools if pool.layer in open_layers]
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
    goal = options.sparsity * units.prunable_params
    if options.allocation == "global":
        return _global_budget(units, options, attention, ffn, goal)
    quota, heads_stay = _attention_quota(units, options, attention, goal, legal)
    taken = sum(quota[pool.name] * pool.unit_params for pool in attention)
    quota |= _ffn_quota(ffn, goal - taken, options.round_to)
    if options.allocation == "uniform":
        _check_stock(units, quota, legal)
    budget = Budget(units, quota, round_to=options.round_to, heads_stay=heads_stay)
    _check_reached(budget, options, ffn)
    return budget


def _open_layers(units: Units, options: BudgetOptions) -> range:
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
    units: Units, options: BudgetOptions, attention: list[Pool], goal: float, legal: Legal
) -> tuple[dict[str, int], str]:
    """Attention units to remove from each open layer: the nearest legal count not above the target.

    Returns:
        pool name -> units; `Budget.heads_stay`.
    Raises:
        InputError: what was asked for is not possible, with the reason.
    """
    layers = sorted({layer for pool in attention for layer in pool.layers})
    open_params = sum(units.attention_params[layer] + units.ffn_params[layer] for layer in layers)
    quota: dict[str, int] = {}
    heads_stay = ""
    for pool in attention:
        params = sum(units.attention_params[layer] for layer in pool.layers)
        verdicts = {count: _verdict(units, options, pool, count, legal) for count in range(0, pool.size, pool.sets)}
        reachable = {  # share of the attention's parameters -> units
            min(1.0, count * pool.unit_params / params): count for count, verdict in verdicts.items() if verdict
        }
        refused = {count * pool.unit_params / params: v.refusal for count, v in verdicts.items() if not v}
        wanted = options.attention_sparsity
        if wanted is None:
            share = goal / open_params + 1e-9
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


def _verdict(units: Units, options: BudgetOptions, pool: Pool, count: int, legal: Legal) -> Verdict:
    """Whether `count` units of a pool may go from every layer that may lose some."""
    if count == 0 or options.allocation != "uniform":
        return Verdict()
    return legal(units.shapes[pool.layer].without(pool.kind, count))


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
    shape = common_shape(units.shapes)
    assert shape is not None, "uniform allocation was refused for these"
    for kind, gone in {pool.kind: quota[pool.name] for pool in units.pools}.items():
        shape = shape.without(kind, gone)
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


def _ffn_quota(ffn: list[Pool], params: float, round_to: int) -> dict[str, int]:
    """Channels to remove from each open layer, the same share everywhere, widths snapped to `round_to`."""
    share = params / sum(pool.size * pool.unit_params for pool in ffn)
    quota = {}
    for pool in ffn:
        width = max(round_to, round(pool.size * (1 - share) / round_to) * round_to)
        quota[pool.name] = pool.size - min(width, pool.size // round_to * round_to)
    return quota


def _global_budget(units: Units, options: BudgetOptions, attention: list[Pool], ffn: list[Pool], goal: float) -> Budget:
    """One pot of parameters that all units compete for; two when the attention's share is given."""
    least = {pool.name: _least(pool, options) for pool in attention + ffn}
    spare = {
        kind: sum((p.size - least[p.name]) * p.unit_params for p in pools)
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
                f"--attention-sparsity {options.attention_sparsity}: not reachable with a floor of {options.floor}: at "
                f"most {taken / params:.3f}. Stay within that, or lower --floor."
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
    if goal > most:
        raise Unreachable(
            options.sparsity,
            (most / units.prunable_params,),
            f"with a floor of {options.floor}",
            "Stay within that, or lower --floor.",
        )
    return Budget(units, {}, pot, least, options.round_to, options.across_layers)


def _least(pool: Pool, options: BudgetOptions) -> int:
    """Units of a pool that stay whatever they score: the floor's, in whole sets and (channels) whole steps of width."""
    step = math.lcm(pool.sets, options.round_to if pool.kind == "ffn" else 1)
    floor = max(1, math.ceil(options.floor * pool.size - 1e-9))  # 0.7 x 10 is 7, and a little more in binary
    return min(pool.size, -(-floor // step) * step)


def _remove_lowest_(keep: Tensor, scores: Tensor, count: int, sets: int) -> None:
    """Clear the `count` lowest-scoring units that are still marked, the same number in each set."""
    if count:
        candidates = scores.masked_fill(~keep, torch.inf).view(sets, -1)
        lowest = candidates.argsort(dim=1, stable=True)[:, : count // sets]
        keep.view(sets, -1).scatter_(1, lowest, False)


def _check_reached(budget: Budget, options: BudgetOptions, ffn: list[Pool]) -> None:
    """Refuse a target that is missed by more than the tolerance, or than half a step of `round_to`."""
    step = options.round_to * sum(pool.unit_params for pool in ffn) / budget.units.prunable_params
    allowed = TOLERANCE if options.round_to == 1 else TOLERANCE + step / 2
    if budget.removed_params and abs(budget.sparsity - options.sparsity) <= allowed:
        return
    other = budget.sparsity + (step if budget.sparsity < options.sparsity else -step)
    full = all(pool.size - budget.quota[pool.name] <= options.round_to for pool in ffn)
    raise Unreachable(
        options.sparsity,
        (budget.sparsity,) if full else (budget.sparsity, other),
        f"with --allocation {options.allocation}",
        f"{'Stay within that' if full else 'Ask for one of these'}, or use --allocation global, which counts single "
        "units.",
    )
