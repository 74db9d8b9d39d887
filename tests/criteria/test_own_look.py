"""A criterion with a look of its own at the backward pass: one file, and all else follows."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_llama

from secateur import CRITERIA, Pruner
from secateur.criteria import Criterion, switch
from secateur.system.errors import InputError

STEPS = 8


def sizes(h, gradient, columns, scoring):
    """(units, 2): Σ|h·∂L/∂h|, and Σ h²."""
    both = torch.stack([(h * gradient).abs().sum((0, 1)), h.square().sum((0, 1))], 1)
    return both[columns].sum(1)


def first(pool, evidence, scoring):
    return evidence.gates[pool.name][:, 0]


def ratio(pool, evidence, scoring):
    seen = evidence.gates[pool.name]
    return seen[:, 0] / seen[:, 1].sqrt()


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    needs = {"gate_grad"}
    monkeypatch.setitem(CRITERIA._entries, "sizes", Criterion(first, "", needs, look=sizes))
    monkeypatch.setitem(CRITERIA._entries, "ratio", Criterion(ratio, "", needs, look=sizes, changes=False))


def adapted():
    torch.manual_seed(0)
    base = tiny_llama(layers=2, dtype=torch.float64)
    return get_peft_model(base, LoraConfig(r=4, target_modules="all-linear"), autocast_adapter_dtype=False)


def pruner_for(model, **options):
    times = {"total_steps": STEPS, "prune_start": 1, "prune_end": 7, "frequency": 3}
    return Pruner(model, sparsity=0.4, **times, **options)


def train(model, pruner, steps=range(STEPS), state=None):
    ids = torch.randint(3, 99, (STEPS * 4, 16), generator=torch.Generator().manual_seed(7)).split(4)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for step in steps:
        for part in ids[step].split(2):
            (model(input_ids=part, labels=part).loss / 2).backward()
        pruner.observe()
        optimizer.step()
        pruner.step(optimizer)
        optimizer.zero_grad()
    return pruner


def test_its_score_is_the_formula() -> None:
    model = adapted()
    pruner = pruner_for(model, criterion="sizes", ema=0.0)
    path, seen = "model.layers.1.mlp.down_proj", {}

    def hook(module, args):
        seen["h"] = args[0]
        args[0].retain_grad()

    handle = pruner.modules[path].register_forward_pre_hook(hook)
    ids = torch.arange(3, 43).view(2, 20)
    model.train()
    model(input_ids=ids, labels=ids).loss.backward()
    pruner.observe()
    handle.remove()
    expected = (seen["h"] * seen["h"].grad).abs().sum((0, 1)) / 2  # a mean over sequences
    torch.testing.assert_close(pruner.scores["layer.1.ffn"], expected)


@pytest.mark.parametrize("criterion", ["sizes", "ratio"])
def test_shrinking_is_masking_and_a_run_goes_on_as_if_never_stopped(criterion, tmp_path) -> None:
    runs = {
        shrink: train(model := adapted(), pruner_for(model, criterion=criterion, shrink=shrink)) for shrink in (1, 0)
    }
    assert [cut.step for cut in runs[1].cuts] == [4, 7]
    for name, scores in runs[1].scores.items():
        assert torch.equal(runs[1].keep[name], runs[0].keep[name]), name
        torch.testing.assert_close(scores, runs[0].scores[name], rtol=1e-9, atol=1e-12)
    for shrink in (True, False):
        model = adapted()
        half = train(model, pruner_for(model, criterion=criterion, shrink=shrink), range(5))  # between the cuts
        half.save(tmp_path)
        other = adapted()
        resumed = pruner_for(other, criterion=criterion, shrink=shrink)
        resumed.load(tmp_path)
        other.load_state_dict(model.state_dict())
        train(other, resumed, range(5, STEPS))
        for name, scores in resumed.scores.items():
            torch.testing.assert_close(scores, runs[shrink].scores[name], rtol=1e-9, atol=1e-12, msg=name)
            assert torch.equal(resumed.keep[name], runs[shrink].keep[name]), name


def test_a_score_at_cuts_is_of_the_average_over_steps() -> None:
    model = adapted()
    pruner = train(model, pruner_for(model, criterion="ratio", schedule="one-shot"), range(0))
    looks = []
    ids = torch.arange(3, 67).view(4, 16)
    model.train()
    for number in range(2):
        part = ids + number
        model(input_ids=part, labels=part).loss.backward()
        pruner.scorer.statistics.fold()
        looks.append(pruner.scorer.statistics._gates["layer.0.ffn"] / 4)
        pruner.scorer.statistics.forget_step()
    kept = pruner.scorer.statistics.evidence({}).gates["layer.0.ffn"]
    torch.testing.assert_close(kept, torch.stack(looks).mean(0))
    assert pruner.scorer.statistics.state_tensors()["layer.0.ffn.look"].shape == (96, 2)


def test_a_look_that_is_none(monkeypatch) -> None:
    with pytest.raises(InputError, match="look is never asked: name 'gate_grad'"):
        Criterion(first, "", look=sizes)
    with pytest.raises(InputError, match="look is 1: give a function"):
        Criterion(first, "", {"gate_grad"}, look=1)
    assert CRITERIA["gate"].look is switch
    wrong = Criterion(first, "", {"gate_grad"}, look=lambda h, gradient, columns, scoring: h.sum())
    monkeypatch.setitem(CRITERIA._entries, "wrong", wrong)
    model = adapted()
    with pytest.raises(InputError, match=r"look gave a tensor \(\) for \d+ units: return a tensor"):
        train(model, pruner_for(model, criterion="wrong"))
