"""Compensation: the refit is least squares, LoRA is carried along, and masking = shrinking still holds."""

import pytest
import torch
from test_pruner import STEPS, adapted, pruner_for, rows, train_bare
from tiny import tiny_llama

from secateur import Pruner
from secateur.compensation import refit_coefficients
from secateur.criteria import CRITERIA
from secateur.errors import InputError
from secateur.surgery import merged_weight


def test_refit_is_least_squares() -> None:
    torch.manual_seed(0)
    x = torch.randn(300, 10).double() @ torch.randn(10, 10).double()
    stay, go = torch.tensor([0, 2, 3, 5, 6, 9]), torch.tensor([1, 4, 7, 8])
    refit = refit_coefficients(x.T @ x / 300, stay, go, ridge=0.0)
    expected = torch.linalg.lstsq(x[:, stay], x[:, go]).solution
    torch.testing.assert_close(refit, expected, rtol=1e-8, atol=1e-10)


def lora_with_values(model):
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_a_duplicated_channel_goes_without_a_trace(monkeypatch) -> None:
    """Channel 5 does what channel 2 does, LoRA included; with ridge -> 0 the other one takes over all of it."""
    monkeypatch.setattr("secateur.compensation.RIDGE", 1e-13)
    model = lora_with_values(adapted(dtype=torch.float64, layers=2, ffn=24))
    with torch.no_grad():
        for layer in model.get_base_model().model.layers:
            for linear in (layer.mlp.gate_proj, layer.mlp.up_proj):
                linear.base_layer.weight[5] = linear.base_layer.weight[2]
                linear.lora_B["default"].weight[5] = linear.lora_B["default"].weight[2]
    ids = rows(40)
    model.eval()
    before = model(ids).logits.detach()
    for compensate in ("none", "lstsq"):  # in this order: the second rewrites the weights
        pruner = Pruner(
            model, sparsity=0.0114, attention="none", criterion="random", compensate=compensate, schedule="one-shot",
            prune_start=1, total_steps=2, shrink=False,
        )  # fmt: skip
        model.train()
        model(ids, labels=ids).loss.backward()
        pruner.observe()
        marked = {p.name: torch.ones(p.size).index_fill(0, torch.tensor([5]), -1.0) for p in pruner.units.pools}
        pruner.scores = marked
        pruner.step()
        assert [cut.removed for cut in pruner.cuts] == [{p.name: [5] for p in pruner.units.pools}]
        model.eval()
        change = float((model(ids).logits.detach() - before).abs().max())
        if compensate == "lstsq":
            assert change < 1e-6, "float32 inside transformers bounds it"
        else:
            assert change > 0.1
        pruner.close()


@pytest.mark.parametrize(("criterion", "compensate"), [("gate", "lstsq"), ("obs", "lstsq"), ("flap", "bias")])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_shrinking_is_masking_with_compensation(criterion, compensate, allocation) -> None:
    runs = {}
    for shrink in (True, False):
        model = adapted(dtype=torch.float64, bias=compensate == "bias")
        pruner = pruner_for(
            model, criterion=criterion, compensate=compensate, allocation=allocation, shrink=shrink, total_steps=STEPS
        )
        losses, _ = train_bare(model, pruner)
        runs[shrink] = losses, pruner
    (losses, shrunk), (masked_losses, masked) = runs[True], runs[False]
    assert [cut.removed for cut in shrunk.cuts] == [cut.removed for cut in masked.cuts]
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(masked_losses), rtol=1e-6, atol=0.0)
    for path, module in shrunk.modules.items():
        expected = merged_weight(masked.modules[path])
        for pool in masked.units.pools:
            for member in pool.members:
                if member.linear == path:
                    expected = expected.index_select(member.dim, member.entries(masked.keep[pool.name]))
        torch.testing.assert_close(merged_weight(module), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("compensate", ["lstsq", "bias"])
@pytest.mark.parametrize("shrink", [True, False])
def test_saved_state_holds_what_compensation_rewrote(tmp_path, compensate, shrink) -> None:
    options = {"criterion": "obs", "compensate": compensate, "shrink": shrink, "total_steps": STEPS}
    model = adapted(bias=True)
    pruner = pruner_for(model, **options)
    train_bare(model, pruner)
    pruner.save(tmp_path)
    again = adapted(bias=True)
    restored = pruner_for(again, **options)
    restored.load(tmp_path)
    trained = {n: p for n, p in model.named_parameters() if "lora" in n}
    for name, parameter in again.named_parameters():
        if "lora" in name:
            parameter.data.copy_(trained[name])
    ids = rows(2)
    assert torch.equal(model.eval()(ids).logits, again.eval()(ids).logits)
    for path, moments in pruner.statistics.moments.items():
        assert torch.equal(restored.statistics.moments[path].second, moments.second)


@pytest.mark.parametrize("criterion", list(CRITERIA))
@pytest.mark.parametrize("schedule", ["cubic", "one-shot"])
def test_every_criterion_in_every_order(criterion, schedule) -> None:
    model = adapted(layers=2)
    pruner = pruner_for(model, criterion=criterion, schedule=schedule, total_steps=STEPS, compensate="lstsq")
    losses, _ = train_bare(model, pruner)
    assert pruner.sparsity == pytest.approx(0.4, abs=0.01)
    assert len(pruner.cuts) == (1 if schedule == "one-shot" else len(pruner.schedule.cuts()))
    assert all(loss == loss for loss in losses)
    assert not pruner.statistics._handles  # nothing is collected after the last cut


def test_bias_needs_biases() -> None:
    with pytest.raises(InputError, match=r"down_proj has no bias|o_proj has no bias.*use --compensate lstsq"):
        Pruner(tiny_llama(), sparsity=0.3, criterion="magnitude", compensate="bias")
