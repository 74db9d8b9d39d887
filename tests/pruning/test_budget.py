"""A target becomes exact, legal counts, or an error that names what can be reached."""

import math
import re
from statistics import mean, stdev

import pytest
import torch
from tiny import tiny_llama

from secateur.architecture.discovery import find_units
from secateur.architecture.families import FAMILIES, family_of
from secateur.architecture.stock import accepts
from secateur.pruning.allocation import make_budget
from secateur.pruning.budget import BudgetGoal
from secateur.system.errors import InputError


def budget_for(model, attention="kv_group", model_class="keep", **options):
    family = family_of("llama")
    units = find_units(model, family, attention)
    options = BudgetGoal(**options, attention=attention)
    return make_budget(units, options, lambda shape: accepts(model.config, family, shape, model_class))


def select(budget, seed=0, progress=1.0, keep=None):
    generator = torch.Generator().manual_seed(seed)
    scores = {p.name: torch.rand(p.size, generator=generator) for p in budget.units.pools}
    keep = keep or {p.name: torch.ones(p.size, dtype=torch.bool) for p in budget.units.pools}
    return budget.select(scores, keep, progress), scores


@pytest.fixture(scope="module")
def wide():
    return tiny_llama(layers=10, hidden=64, heads=8, kv_heads=4, ffn=384, head_dim=8)


@pytest.mark.parametrize("allocation", ["uniform", "protected", "global"])
@pytest.mark.parametrize("attention", ["kv_group", "query_head", "none"])
@pytest.mark.parametrize("sparsity", [0.1, 0.2, 0.37, 0.5])
def test_the_target_is_reached_within_tolerance(wide, allocation, attention, sparsity) -> None:
    budget = budget_for(wide, attention, sparsity=sparsity, allocation=allocation)
    keep, _ = select(budget)
    reached = budget.units.removed_params(keep) / budget.units.prunable_params
    assert abs(reached - sparsity) <= 0.005
    shapes = {s.key() for s in budget.units.shapes_after(keep)}
    assert (len(shapes) == 1) == (allocation == "uniform")


def test_cuts_are_permanent_and_grow(wide) -> None:
    for allocation in ("uniform", "protected", "global"):
        budget = budget_for(wide, sparsity=0.5, allocation=allocation)
        keep, gone = None, 0
        for n, progress in enumerate((0.0, 0.1, 0.4, 0.41, 0.9, 1.0)):
            after, _ = select(budget, seed=n, progress=progress, keep=keep)  # scores change every time
            if keep is not None:
                assert all((~after[name] | keep[name]).all() for name in after)
            assert budget.units.removed_params(after) >= gone
            keep, gone = after, budget.units.removed_params(after)
        assert abs(gone / budget.units.prunable_params - 0.5) <= 0.005


def test_the_lowest_scores_go_first(wide) -> None:
    budget = budget_for(wide, attention="none", sparsity=0.2)
    keep, scores = select(budget)
    for pool in budget.units.pools:
        assert scores[pool.name][~keep[pool.name]].max() < scores[pool.name][keep[pool.name]].min()


def test_query_heads_go_evenly_from_each_kv_head(wide) -> None:
    for allocation in ("uniform", "global"):
        keep, _ = select(budget_for(wide, "query_head", sparsity=0.5, allocation=allocation))
        for name, mask in keep.items():
            if "query_head" in name:
                assert len(set(mask.view(4, -1).sum(1).tolist())) == 1


def test_attention_gets_the_nearest_legal_count_not_above(wide) -> None:
    # LlamaConfig takes 8, 4, 2 ... query heads at hidden 64 (here 4, 2, 1 KV groups), so 40 % means 1 of 4 -> none.
    assert budget_for(wide, sparsity=0.4).quota["layer.0.kv_group"] == 0
    assert budget_for(wide, sparsity=0.4, model_class="mistral").quota["layer.0.kv_group"] == 1
    assert budget_for(wide, sparsity=0.5).quota["layer.0.kv_group"] == 2
    assert budget_for(wide, sparsity=0.4, attention_sparsity=0.5).quota["layer.0.kv_group"] == 2
    refused = r"--attention-sparsity 0.25: .*Reachable: 0.000, 0.500, 0.750. .*config class refuses 6 query heads, 3 KV"
    with pytest.raises(InputError, match=rf"{refused}.*64.*use --allocation protected .*or --model-class mistral"):
        budget_for(wide, sparsity=0.4, attention_sparsity=0.25)


def test_where_no_head_can_go_it_is_said() -> None:
    eight = tiny_llama(layers=2, hidden=64, heads=8, kv_heads=8, head_dim=8, ffn=384)
    for attention in ("auto", "kv_group"):  # 7 of 8 heads, 6 of 8 ...: 4 would do, but are too few for the target
        heads_stay = budget_for(eight, sparsity=0.3, attention=attention).heads_stay
        assert re.search("refuses 7 query heads.*: use --allocation protected.*or --model-class mistral", heads_stay)
    assert budget_for(eight, sparsity=0.3, model_class="mistral").heads_stay == ""
    assert budget_for(eight, sparsity=0.5).heads_stay == ""
    one = tiny_llama(layers=2, hidden=64, heads=4, kv_heads=1, ffn=384)
    with pytest.raises(InputError, match="--attention kv_group: the only KV head of a layer has to stay: .*query_head"):
        budget_for(one, sparsity=0.2, attention="kv_group")
    with pytest.raises(InputError, match="Reachable: 0.000. That is so as the only KV head of a layer has to stay"):
        budget_for(one, sparsity=0.2, attention_sparsity=0.5)


def test_protected_layers_are_left_alone_and_made_up_for(wide) -> None:
    budget = budget_for(wide, sparsity=0.3, allocation="protected", protect_first=2, protect_last=1)
    keep, _ = select(budget)
    for name, mask in keep.items():
        layer = int(name.split(".")[1])
        assert mask.all() == (layer in (0, 1, 9) or ("kv_group" in name and budget.quota[name] == 0))
    assert abs(budget.units.removed_params(keep) / budget.units.prunable_params - 0.3) <= 0.005


def test_global_keeps_the_floor(wide) -> None:
    budget = budget_for(wide, "none", sparsity=0.5, allocation="global", floor=0.25)
    scores = {p.name: torch.ones(p.size) for p in budget.units.pools}
    scores["layer.3.ffn"][:380] = 1e-6  # nearly everything in layer 3 looks useless
    keep = budget.select(scores, {p.name: torch.ones(p.size, dtype=torch.bool) for p in budget.units.pools}, 1.0)
    assert int(keep["layer.3.ffn"].sum()) == 96


@pytest.mark.parametrize(("sparsity", "share"), [(0.2, 0.3), (0.5, 0.3), (0.75, 0.15), (0.8, 0.12)])
def test_the_floor_leaves_room_to_choose(wide, sparsity, share) -> None:
    """At most 0.3, and 0.6 of what stays on average: the target is reached, and layers can differ."""
    budget = budget_for(wide, sparsity=sparsity, allocation="global")
    assert {budget.least[pool.name] for pool in budget.units.of_kind("ffn")} == {math.ceil(share * 384)}


@pytest.mark.parametrize("mode", ["mean", "standard", "raw"])
def test_global_order_is_by_score_per_parameter(wide, mode) -> None:
    """Written out: every unit's rank, lowest first, until the budget is spent."""
    budget = budget_for(wide, sparsity=0.3, allocation="global", floor=0.05, across_layers=mode)
    pools = budget.units.pools
    generator = torch.Generator().manual_seed(1)
    scores = {
        p.name: (torch.rand(p.size, generator=generator) + 0.1) * 1.5**p.layer * p.unit_params**0.9 for p in pools
    }
    ranked = []
    for pool in pools:
        own = [float(score) / pool.unit_params for score in scores[pool.name]]
        layer = [p for p in pools if p.layer == pool.layer]
        if mode == "mean":  # heads and channels of a layer have one level
            level = sum(float(scores[p.name].sum()) for p in layer) / sum(p.size * p.unit_params for p in layer)
            own = [value / level for value in own]
        elif mode == "standard":  # each has its own
            own = [(value - mean(own)) / stdev(own) for value in own]
        ranked += sorted((value, pool.name, unit) for unit, value in enumerate(own))[
            : pool.size - budget.least[pool.name]
        ]
    params = {pool.name: pool.unit_params for pool in pools}
    expected = {pool.name: torch.ones(pool.size, dtype=torch.bool) for pool in pools}
    goal, gone = 0.3 * budget.units.prunable_params, 0
    for _, name, unit in sorted(ranked):
        if gone + params[name] <= goal + min(params.values()) / 2:
            expected[name][unit] = False
            gone += params[name]
    keep = budget.select(scores, {n: torch.ones_like(mask) for n, mask in expected.items()}, 1.0)
    assert all(torch.equal(keep[name], expected[name]) for name in keep)
    kinds = {name.rpartition(".")[2] for name, mask in keep.items() if not mask.all()}
    assert kinds == {"kv_group", "ffn"}


@pytest.mark.parametrize(("per_parameter", "first"), [(0.9, "kv_group"), (1.1, "ffn")])
def test_heads_and_channels_compete_by_what_a_parameter_is_worth(wide, per_parameter, first) -> None:
    for mode in ("mean", "raw"):
        budget = budget_for(wide, sparsity=0.1, allocation="global", across_layers=mode, floor=0.1)
        scores = {
            p.name: torch.full((p.size,), float(p.unit_params) * (per_parameter if p.kind == "kv_group" else 1.0))
            for p in budget.units.pools
        }
        keep = budget.select(scores, {n: torch.ones_like(score, dtype=torch.bool) for n, score in scores.items()}, 1.0)
        # what is left over by units that are too large goes to small ones: under one head's worth
        others = [p for p in budget.units.pools if p.kind != first]
        assert sum(int((~keep[p.name]).sum()) * p.unit_params for p in others) < 3072
        assert any(not keep[p.name].all() for p in budget.units.of_kind(first))


def test_round_to_snaps(wide) -> None:
    for allocation in ("uniform", "protected", "global"):
        budget = budget_for(wide, sparsity=0.2, round_to=64, allocation=allocation)
        keep, _ = select(budget)
        assert all(s.ffn % 64 == 0 for s in budget.units.shapes_after(keep))
        assert abs(budget.units.removed_params(keep) / budget.units.prunable_params - 0.2) < 0.08


def test_unreachable_targets_name_the_nearest() -> None:
    coarse = tiny_llama(layers=2, hidden=64, heads=4, kv_heads=2, ffn=24)
    with pytest.raises(InputError, match=r"--sparsity 0.21 is not reachable.*0.2\d+ and 0.2\d+ are the nearest"):
        budget_for(coarse, "none", sparsity=0.21)
    with pytest.raises(InputError, match=r"--sparsity 0.9 is not reachable.*at most 0.2"):
        budget_for(coarse, "none", sparsity=0.9)
    with pytest.raises(InputError, match=r"--sparsity 0.9 is not reachable with a floor of 0.1: at most 0.2"):
        budget_for(coarse, "none", sparsity=0.9, allocation="global", floor=0.1)
    with pytest.raises(InputError, match=r"--attention-sparsity 0.3: not reachable.*Reachable: 0.000, 0.500"):
        budget_for(coarse, sparsity=0.5, attention_sparsity=0.3)


@pytest.mark.parametrize("allocation", ["uniform", "protected", "global"])
def test_what_removes_nothing_is_refused_with_the_least_that_goes(allocation) -> None:
    """Widths of 176 in steps of 64 begin at 128: 48 channels of each layer, or of one."""
    model = tiny_llama(layers=4, hidden=64, heads=4, kv_heads=2, ffn=176)
    layers = {"uniform": 4, "protected": 2, "global": 1}[allocation]
    units = find_units(model, FAMILIES["llama"], "none")
    least = layers * 48 * 3 * 64 / units.prunable_params
    for sparsity in (1e-9, 0.002):
        with pytest.raises(InputError, match=rf"in steps of 64: at least {least:.4f}. Ask for at least that, or use a"):
            budget_for(model, "none", sparsity=sparsity, round_to=64, allocation=allocation)
    budget = budget_for(model, "none", sparsity=least, round_to=64, allocation=allocation)
    keep, _ = select(budget)
    assert units.removed_params(keep) == layers * 48 * 3 * 64
    with pytest.raises(InputError, match=r"not reachable with .*: at (most|least) 0\.\d*[1-9]"):
        budget_for(model, "none", sparsity=1e-9, allocation=allocation)


def test_impossible_shapes_are_refused(wide) -> None:
    with pytest.raises(InputError, match="leave none of the 10 layers"):
        budget_for(wide, sparsity=0.2, allocation="protected", protect_first=8, protect_last=2)
    with pytest.raises(InputError, match="as many KV heads as query heads .* use --attention kv_group"):
        budget_for(tiny_llama(heads=4, kv_heads=4), "query_head", sparsity=0.2)


def test_a_given_share_of_attention_is_held_to_the_target(wide) -> None:
    """Of 4 groups in 10 layers 0.6 is 24; at a target of 0.05 they alone are too much."""
    with pytest.raises(
        InputError, match=r"0\.05 is not reachable with --attention-sparsity 0\.6, which .*: at least 0\.08\d+\. Ask"
    ):
        budget_for(wide, sparsity=0.05, attention_sparsity=0.6, allocation="global")
    budget = budget_for(wide, sparsity=0.3, attention_sparsity=0.6, allocation="global")
    keep, _ = select(budget)
    assert sum(int((~mask).sum()) for name, mask in keep.items() if "kv_group" in name) == 24
    assert abs(budget.units.removed_params(keep) / budget.units.prunable_params - 0.3) <= 0.005
    with pytest.raises(
        InputError, match=r"--attention-sparsity 0\.9: not reachable with a floor of 0\.5: at most 0\.5"
    ):
        budget_for(wide, sparsity=0.5, attention_sparsity=0.9, allocation="global", floor=0.5)


def test_a_floor_is_rounded_up_and_in_whole_steps(wide) -> None:
    three = tiny_llama(layers=4, hidden=48, heads=6, kv_heads=3, ffn=96, head_dim=8)
    for floor, least in ((0.4, 2), (0.3, 1), (0.7, 3), (1 / 3, 1)):
        assert budget_for(three, sparsity=0.1, allocation="global", floor=floor).least["layer.0.kv_group"] == least
    budget = budget_for(wide, "none", sparsity=0.5, allocation="global", floor=0.25, round_to=64)
    assert budget.least["layer.0.ffn"] == 128  # of 384, 96 would do, but for whole 64
    scores = {p.name: torch.ones(p.size) for p in budget.units.pools}
    scores["layer.3.ffn"][:380] = 1e-6
    keep = budget.select(scores, {p.name: torch.ones(p.size, dtype=torch.bool) for p in budget.units.pools}, 1.0)
    assert int(keep["layer.3.ffn"].sum()) == 128
    with pytest.raises(InputError, match=r"--sparsity 0\.6 is not reachable with a floor of 0\.25: at most 0\.5\d+"):
        budget_for(wide, "none", sparsity=0.6, allocation="global", floor=0.25, round_to=64)
    assert budget_for(wide, "none", sparsity=0.6, allocation="global", floor=0.25)  # reachable without the steps


@pytest.mark.parametrize("allocation", ["uniform", "protected", "global"])
def test_widths_that_no_multiple_fits_are_refused(wide, allocation) -> None:
    with pytest.raises(InputError, match=r"--round-to: widths of whole 400 channels .* the FFN has 384"):
        budget_for(wide, "none", sparsity=0.2, round_to=400, allocation=allocation)


def test_a_width_is_never_above_what_is_there(wide) -> None:
    """0.8 of 384 is 307: with 200 the nearest multiple would be 400; 0.95 rounds to no cut at all with 128."""
    with pytest.raises(InputError, match="not reachable"):
        budget_for(wide, "none", sparsity=0.15, round_to=200)
    with pytest.raises(InputError, match="not reachable"):
        budget_for(wide, "none", sparsity=0.04, round_to=128)
