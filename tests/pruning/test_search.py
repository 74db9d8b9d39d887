"""The search over layers' shares: its candidates, its fitness, and that it ends where it must."""

import copy
import dataclasses
from random import Random

import pytest
import torch
from tiny import tiny_llama

from secateur import Pruner
from secateur.pruning.search.evolution import Limits, Search
from secateur.pruning.search.fitness import Fitness
from secateur.pruning.search.shares import Field
from secateur.system.errors import InputError
from tests.pruning.test_budget import budget_for
from tests.pruning.test_pruner import adapted, pruner_for, rows, train_bare


def batches(count=4, sequences=2, length=24, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(3, 99, (sequences, length), generator=generator)} for _ in range(count)]


def one_shot(model, **options):
    """A pruner at its only cut, of scores that a seed fixes."""
    defaults = {"criterion": "random", "schedule": "one-shot", "prune_start": 1, "shrink": False, "sparsity": 0.4}
    pruner = Pruner(model, **{**defaults, **options}, total_steps=1)
    pruner.calibrate(batches())
    return pruner


def cut(pruner):
    ids = rows(4)
    pruner.model(ids, labels=ids).loss.backward()
    pruner.observe()
    pruner.step()
    return pruner


def gone(pruner):
    return {name: int((~mask).sum()) for name, mask in pruner.keep.items()}


@pytest.mark.parametrize(("sparsity", "round_to"), [(0.1, 1), (0.37, 1), (0.5, 1), (0.37, 16)])
@pytest.mark.parametrize(
    ("attention", "apart"),
    [("kv_group", False), ("kv_group", True), ("query_head", False), ("query_head", True), ("none", False)],
)
def test_every_candidate_meets_the_budget(attention, sparsity, round_to, apart) -> None:
    """What goes is within half the smallest unit of the target, as with `global`, and what it may not touch stays."""
    model = tiny_llama(layers=8, hidden=64, heads=8, kv_heads=4, ffn=200, head_dim=8)
    more = {"attention_sparsity": 0.25} if apart else {}
    budget = budget_for(model, attention, sparsity=sparsity, round_to=round_to, allocation="search", **more)
    field, random = Field(budget), Random(0)
    generator = torch.Generator().manual_seed(1)
    scores = {pool.name: torch.rand(pool.size, generator=generator) for pool in budget.units.pools}
    everything = {pool.name: torch.ones(pool.size, dtype=torch.bool) for pool in budget.units.pools}
    ranked = budget.select(scores, everything, 1.0)
    start = field.rungs_of({name: int((~mask).sum()) for name, mask in ranked.items()})
    assert field.mutated(start, Random(0), 0.4) == field.mutated(start, Random(0), 0.4)
    assert field.gone(start) == {n: int((~mask).sum()) for n, mask in ranked.items() if n in budget.least}
    slopes = {name: random.random() for name in field.ladders}
    found = [field.mutated(start, random, 0.4) for _ in range(40)] + list(field.guided(start, slopes, 0.3))
    found = [rungs for rungs in found if rungs is not None]
    assert len(found) > 30
    assert len({tuple(rungs.values()) for rungs in found}) > 15
    for rungs in found:
        keep = budget.with_shares(field.gone(rungs)).select(scores, everything, 1.0)
        for kinds, params in budget.pot.items():
            pools = budget.units.of_kind(*kinds)
            taken = sum(int((~keep[pool.name]).sum()) * pool.unit_params for pool in pools)
            unit = min(pool.unit_params * pool.sets for pool in pools)
            step = min(pool.unit_params * (round_to if pool.kind == "ffn" else pool.sets) for pool in pools)
            assert params + unit / 2 - step < taken <= params + unit / 2
        for pool in budget.units.pools:
            left = keep[pool.name].view(pool.sets, -1).sum(1)
            assert len(set(left.tolist())) == 1
            assert left.sum() >= budget.least.get(pool.name, pool.size)
            assert pool.kind != "ffn" or int(left.sum()) % round_to == 0 or left.sum() == pool.size


def test_one_candidate_is_global() -> None:
    model = adapted()
    other = copy.deepcopy(model)
    searched = cut(one_shot(model, allocation="search", search_evaluations=1, criterion="gate"))
    ranked = cut(one_shot(other, allocation="global", criterion="gate"))
    assert all(torch.equal(searched.keep[name], mask) for name, mask in ranked.keep.items())
    assert len({int(mask.sum()) for name, mask in ranked.keep.items() if "ffn" in name}) > 1
    assert list(searched.allocator.record.starts) == ["global"]


def test_a_search_ends_below_what_it_started_from() -> None:
    pruner = cut(one_shot(adapted(), allocation="search", search_evaluations=23))
    record = pruner.allocator.record
    assert record.candidates == 23
    assert set(record.starts) == {"global", "protected", "alike"}
    assert record.kl < min(record.starts.values())
    assert [kl for _, kl in record.curve] == sorted((kl for _, kl in record.curve), reverse=True)
    assert {name: units for name, units in gone(pruner).items() if name in record.gone} == record.gone
    assert abs(pruner.sparsity - 0.4) < 0.005


def test_a_layer_that_does_nothing_is_emptied_to_the_floor() -> None:
    model = adapted(layers=5)
    layer = model.get_base_model().model.layers[3]
    with torch.no_grad():
        layer.mlp.down_proj.weight.zero_()
        layer.self_attn.o_proj.weight.zero_()
    pruner = cut(one_shot(model, allocation="search", search_evaluations=50, floor=0.25))
    least = {"layer.3.ffn": 24, "layer.3.kv_group": 1}
    kept = {name: int(pruner.keep[name].sum()) for name in least}
    assert kept == least
    others = [int(mask.sum()) for name, mask in pruner.keep.items() if name.endswith("ffn") and name not in least]
    assert min(others) > 24


def test_the_fitness_is_the_divergence_from_the_model_itself() -> None:
    """In float64, against softmax written out, on a model whose columns are zero; the slope against differences."""
    model = tiny_llama(layers=3, dtype=torch.float64)
    pruner = one_shot(model, allocation="search", criterion="magnitude")
    data = batches()
    data[1]["attention_mask"] = torch.ones(2, 24, dtype=torch.long).index_fill(1, torch.arange(20, 24), 0)
    pruner.calibrate(data)
    fitness = Fitness(model, pruner.live.pools, pruner.modules, pruner.pruned.calibration)
    generator = torch.Generator().manual_seed(0)
    keep = {name: torch.rand(len(mask), generator=generator) > 0.4 for name, mask in pruner.keep.items()}

    def by_hand(switches):
        zeroed = copy.deepcopy(model)
        with torch.no_grad():
            for pool in pruner.live.pools:
                for gate in pool.gates:
                    for unit, switch in enumerate(switches[pool.name].tolist()):
                        zeroed.get_submodule(gate.linear).weight[:, gate.index[unit]] *= switch
            found = []
            for batch in data:
                p, q = (each(**batch).logits.softmax(-1) for each in (model, zeroed))
                found.append(((p * (p / q).log()).sum(-1) * batch.get("attention_mask", 1)).sum().item())
        return found

    switches = {name: mask.double() for name, mask in keep.items()}
    measured = fitness.divergences(keep, range(4))
    assert measured == pytest.approx(by_hand(switches), rel=1e-10)
    assert min(measured) > 1
    assert fitness.tokens == [48, 40, 48, 48]
    slopes = fitness.slopes(keep, [1, 2])
    for name, unit in (("layer.0.ffn", 0), ("layer.1.ffn", 5), ("layer.2.kv_group", 1)):
        values = []
        for change in (1e-2, -1e-2):  # the norms of a Llama compute in float32
            moved = {key: value.clone() for key, value in switches.items()}
            moved[name][unit] += change
            values.append(sum(by_hand(moved)[1:3]))
        assert float(slopes[name][unit]) == pytest.approx((values[0] - values[1]) / 2e-2, rel=0.02, abs=0.01)


def search(model, note=None, told=lambda done, of: None, seed=0, most=25):
    pruner = one_shot(model, allocation="search", seed=seed)
    generator = torch.Generator().manual_seed(2)
    scores = {pool.name: torch.rand(pool.size, generator=generator) for pool in pruner.units.pools}
    fitness = Fitness(model, pruner.live.pools, pruner.modules, pruner.pruned.calibration)
    starts = pruner.allocator.starts(scores)
    found = Search(pruner.budget, starts, scores, fitness, Limits(most), seed=seed, told=told, note=note).run()
    pruner.close()
    return dataclasses.asdict(found) | {"seconds": 0}


def test_the_same_seed_finds_the_same_also_when_interrupted(tmp_path) -> None:
    model, note = tiny_llama(layers=4), tmp_path / "search.json"
    whole = search(model)
    assert search(model) == whole

    def stop(done, of):
        assert of == 25
        if done >= 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(model, note, stop)
    began = []
    assert search(model, note, lambda done, of: began.append(done)) == whole
    assert min(began) > 13
    assert search(model, note, stop) == whole, "what is done is not done again"
    other = search(tiny_llama(layers=4, seed=5), note)
    assert other == search(tiny_llama(layers=4, seed=5)) != whole, "another search's state is none of its own"


@pytest.mark.parametrize("shrink", [True, False])
def test_while_training_the_shares_are_fixed_at_the_first_cut_and_kept(shrink, tmp_path) -> None:
    model = adapted()
    options = {"allocation": "search", "criterion": "gate", "shrink": shrink, "total_steps": 24}
    pruner = pruner_for(model, search_evaluations=5, **options)
    pruner.calibrate(batches())
    train_bare(model, pruner)
    record = pruner.allocator.record
    assert {name: n for name, n in gone(pruner).items() if n} == {name: n for name, n in record.gone.items() if n}
    assert len(pruner.cuts) == 3
    assert model.training
    pruner.save(tmp_path)
    again = pruner_for(adapted(), **options)
    again.load(tmp_path)
    assert again.allocator.record == record
    assert again.budget.quota == record.gone


def test_a_search_leaves_no_trace_in_training(monkeypatch) -> None:
    """Where it finds what `global` has, the run goes on as with that, to the bit: scores, moments and weights."""

    def nothing_better(self):
        self._slopes([0, 1])
        self.state.candidates = 10

    monkeypatch.setattr(Search, "_generation", nothing_better)
    found = []
    for allocation in ("search", "global"):
        model = adapted()
        options = {"criterion": "gate", "compensate": "lstsq", "shrink": False, "total_steps": 24}
        pruner = pruner_for(model, allocation=allocation, prune_start=4, prune_end=5, **options)
        starts = pruner.allocator.starts
        monkeypatch.setattr(pruner.allocator, "starts", lambda scores: {"global": starts(scores)["global"]})  # noqa: B023
        pruner.calibrate(batches())
        train_bare(model, pruner)
        moments = {name: each.second for name, each in pruner.scorer.statistics.moments.items()}
        found.append([pruner.scores, moments, dict(model.named_parameters())])
    for one, other in zip(*found, strict=True):
        assert one
        assert all(torch.equal(one[name], value) for name, value in other.items())


def test_a_search_has_something_to_search_on() -> None:
    pruner = Pruner(adapted(), allocation="search", sparsity=0.4, total_steps=9)
    ids = rows(4)
    pruner.model(ids, labels=ids).loss.backward()
    with pytest.raises(InputError, match=r"allocation='search' has nothing to go by: call pruner.calibrate\(batches\)"):
        pruner.observe()
