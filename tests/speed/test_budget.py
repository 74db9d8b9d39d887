"""A target in time becomes the cut that brute force finds, and with times by parameters that of the parameters."""

from functools import partial
from itertools import product

import pytest
import torch
from tiny import tiny_llama

from secateur.architecture.families import family_of
from secateur.architecture.layout import LayerShape
from secateur.architecture.stock import accepts
from secateur.pruning.allocation import make_budget
from secateur.pruning.allocation.reach import Unreachable
from secateur.pruning.budget import BudgetGoal
from secateur.speed.costs import PARAMETERS, hull, monotone
from tests.speed.made_up import by_parameters, costs, table, units_of


@pytest.fixture(scope="module")
def wide():
    return tiny_llama(layers=6, hidden=64, heads=8, kv_heads=4, ffn=96, head_dim=8)


def random_scores(units, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {p.name: torch.rand(p.size, generator=generator) * (1 + p.layer) * p.unit_params for p in units.pools}


def everything(units) -> dict[str, torch.Tensor]:
    return {p.name: torch.ones(p.size, dtype=torch.bool) for p in units.pools}


def budget(model, found, share, account=PARAMETERS, **options):
    legal = partial(accepts, model.config, family_of("llama"))
    return make_budget(found, BudgetGoal(sparsity=share, **options), legal, account)


@pytest.mark.parametrize(
    ("allocation", "more"),
    [
        ("uniform", {}),
        ("protected", {}),
        ("global", {}),
        ("global", {"across_layers": "raw"}),
        ("global", {"across_layers": "standard"}),
        ("global", {"round_to": 8}),
    ],
)
@pytest.mark.parametrize("share", [0.2, 0.37, 0.5])
def test_times_by_parameters_give_the_cut_of_the_parameters(wide, allocation, more, share) -> None:
    """Of every cut of a run, not of the last alone."""
    units = units_of(wide)
    by_time = budget(wide, units, share, costs(by_parameters(wide), units), allocation=allocation, **more)
    by_size = budget(wide, units, share, allocation=allocation, **more)
    assert by_time.sparsity == pytest.approx(by_size.sparsity, abs=0.005)
    here = there = everything(units)
    for number, progress in enumerate((0.3, 0.7, 1.0)):
        scores = random_scores(units, number)
        here, there = by_time.select(scores, here, progress), by_size.select(scores, there, progress)
        gone = [(~here[name]).sum().item() for name in here]
        assert all(torch.equal(here[name], there[name]) for name in here), gone
    assert sum(gone) > 0


STAIRS = {0: 0.0, 16: 3.0, 32: 3.1, 48: 7.0, 64: 8.0, 80: 8.2, 96: 12.0}
"""Times of widths, as of a device that does 32 or 48 channels at once."""


def stairs(model):
    heads = (0.0, 1.0, 1.5, 3.0, 3.5)
    return table(model, lambda layer, kv: heads[kv] * (1 + layer), lambda width: STAIRS[width], step=16, base_ms=0.5)


def choices(units, account, scores):
    """Every choice of numbers that stay: (time saved, score lost, number of each pool that goes)."""
    rungs = []
    for pool in units.pools:
        step = 16 if pool.kind == "ffn" else 1
        order = scores[pool.name].double().sort().values.cumsum(0)
        gone = range(0, pool.size, step)
        rungs.append([(account.saved(pool, n), float(order[n - 1]) if n else 0.0, n) for n in gone])
    for combination in product(*rungs):
        saved, lost, gone = zip(*combination, strict=True)
        yield sum(saved), sum(lost), dict(zip((pool.name for pool in units.pools), gone, strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_global_is_the_best_of_all_choices(seed) -> None:
    """At each corner of what all choices come to (time saved, score lost), no other choice is better: ours is it."""
    model = tiny_llama(layers=2, hidden=64, heads=8, kv_heads=4, ffn=96, head_dim=8)
    units = units_of(model)
    account, scores = costs(stairs(model), units), random_scores(units, seed)
    corners: list[tuple[float, float, dict[str, int]]] = []
    for choice in sorted(choices(units, account, scores), key=lambda choice: choice[:2]):
        while len(corners) > 1 and (choice[0] - corners[-2][0]) * (corners[-1][1] - corners[-2][1]) >= (
            choice[1] - corners[-2][1]
        ) * (corners[-1][0] - corners[-2][0]):
            corners.pop()
        corners.append(choice)
    assert len(corners) > 5
    for saved, _, gone in corners[1:-2]:
        share = saved / account.all_of(units)
        found = budget(model, units, share, account, allocation="global", floor=0.01, across_layers="raw")
        kept = found.select(scores, everything(units), 1.0)
        assert {name: int((~mask).sum()) for name, mask in kept.items()} == gone
        for pool in units.pools:  # in each layer the lowest go
            lost, stays = scores[pool.name][~kept[pool.name]], scores[pool.name][kept[pool.name]]
            assert not len(lost) or lost.max() <= stays.min()


@pytest.mark.parametrize("share", [0.15, 0.3, 0.44, 0.6, 0.7])
def test_uniform_is_the_nearest_width_of_all(share) -> None:
    model = tiny_llama(layers=3, hidden=64, heads=8, kv_heads=4, ffn=96, head_dim=8)
    units = units_of(model)
    account = costs(stairs(model), units)
    found = budget(model, units, share, account)
    shapes = units.shapes_after(found.select(random_scores(units), everything(units), 1.0))
    assert len(set(shapes)) == 1
    assert shapes[0].ffn in STAIRS
    assert shapes[0].heads in (8, 4, 2)  # what LlamaConfig takes
    goal = account.dense_ms - share * account.all_of(units)
    every = [account.ms([LayerShape(shapes[0].heads, shapes[0].kv_heads, width, 8)] * 3) for width in STAIRS if width]
    assert abs(account.ms(shapes) - goal) == pytest.approx(min(abs(ms - goal) for ms in every))
    attention = account.attention(units, range(3))
    heads = [sum(account.saved(pool, gone) for pool in units.of_kind("kv_group")) / attention for gone in (0, 2, 3)]
    part = share * account.all_of(units) / (attention + account.ffn(units, range(3)))
    assert shapes[0].kv_heads == {0: 4, 1: 2, 2: 1}[max(n for n, reached in enumerate(heads) if reached <= part + 1e-9)]


def test_what_cannot_be_reached_says_what_can() -> None:
    model = tiny_llama(layers=3, hidden=64, heads=8, kv_heads=4, ffn=96, head_dim=8)
    units = units_of(model)
    account = costs(stairs(model), units)
    with pytest.raises(Unreachable) as caught:
        budget(model, units, 0.97, account)
    # 1 of 4 KV heads and 16 of 96 channels stay in each layer: 2.5 + 5 + 7.5 ms of heads go, and 9 of channels
    assert caught.value.nearest == pytest.approx((42.0 / (0.5 * 3 + 3.5 * 6 + 12 * 3),))
    with pytest.raises(Unreachable, match="with a floor of 0.6"):
        budget(model, units, 0.7, account, allocation="global", floor=0.6)


@pytest.mark.parametrize(("kinds", "gone"), [("layers", 2), ("blocks", 4)])
def test_whole_layers_and_blocks_go_by_their_time(kinds, gone) -> None:
    model = tiny_llama(layers=6, hidden=64, heads=8, kv_heads=4, ffn=96, head_dim=8)
    units = units_of(model, "none", (kinds,))
    found = table(model, lambda layer, kv: 2.0 * kv, lambda width: width / 12)
    account = costs(found, units)
    assert account.dense_ms == 10 + 6 * 16
    by_time = budget(model, units, 1 / 3, account, units=kinds)
    kept = by_time.select(random_scores(units), everything(units), 1.0)
    assert sum(int((~mask).sum()) for mask in kept.values()) == gone
    assert account.ms(units.shapes_after(kept)) == pytest.approx(10 + 4 * 16)


def test_blocks_compete_with_what_is_in_them(wide) -> None:
    """Where a block is worth nothing and its heads and channels much, it goes, and saves all of theirs."""
    units = units_of(wide, "kv_group", ("heads", "channels", "blocks"))
    account = costs(table(wide, lambda layer, kv: 2.0 * kv, lambda width: width / 12, step=8), units)
    scores = {name: torch.full_like(values, 1e3) for name, values in random_scores(units).items()}
    scores["layer.2.ffn_block"].zero_()
    found = budget(
        wide, units, 8 / account.all_of(units), account,
        units="heads,channels,blocks", allocation="global", across_layers="raw",
    )  # fmt: skip
    kept = found.select(scores, everything(units), 1.0)
    assert {name for name, mask in kept.items() if not mask.all()} == {"layer.2.ffn_block", "layer.2.ffn"}
    assert account.dense_ms - account.ms(units.shapes_after(kept)) == pytest.approx(8)


def test_monotone_is_the_nearest_that_never_falls() -> None:
    values = [3.0, 1.0, 2.0, 2.0, 5.0, 4.0]
    assert monotone(values) == [2.0, 2.0, 2.0, 2.0, 4.5, 4.5]


def test_steps_are_joined_until_each_is_worth_no_less_than_the_one_before() -> None:
    steps = [(1.0, 0.0, 1), (1.0, 4.0, 1), (6.0, 1.0, 1), (1.0, 6.0, 1), (9.0, 1.0, 1)]
    assert hull(steps) == [(2.0, 4.0, 2), (7.0, 7.0, 2), (9.0, 1.0, 1)]
