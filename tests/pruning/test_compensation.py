"""Compensation: the refit is least squares, LoRA is carried along, and masking = shrinking still holds."""

import pytest
import torch
from product import some_of
from tiny import tiny_llama

from secateur import Pruner
from secateur.criteria import CRITERIA
from secateur.criteria.base import OF_LAYERS
from secateur.criteria.obs import removal_cost
from secateur.models.surgery import merged_weight
from secateur.pruning.compensation.single import RIDGE, refit_coefficients
from secateur.system.errors import InputError, NumericsError
from tests.pruning.test_pruner import STEPS, adapted, pruner_for, rows, train_bare


def test_refit_is_least_squares() -> None:
    torch.manual_seed(0)
    x = torch.randn(300, 10).double() @ torch.randn(10, 10).double()
    stay, go = torch.tensor([0, 2, 3, 5, 6, 9]), torch.tensor([1, 4, 7, 8])
    refit = refit_coefficients(x.T @ x / 300, stay, go, ridge=0.0)
    expected = torch.linalg.lstsq(x[:, stay], x[:, go]).solution
    torch.testing.assert_close(refit, expected, rtol=1e-8, atol=1e-10)


def test_few_tokens_do_no_harm() -> None:
    """Weakly related channels and not many more tokens than channels, as a run has them: other tokens must gain."""
    torch.manual_seed(0)
    x = torch.randn(2000, 8).double() @ torch.randn(8, 64).double() * 0.3 + torch.randn(2000, 64).double()
    seen, other = x[:96], x[96:]
    stay, go = torch.arange(32), torch.arange(32, 64)

    def error(ridge: float) -> float:
        refit = refit_coefficients(seen.T @ seen / len(seen), stay, go, ridge)
        return float((other[:, go] - other[:, stay] @ refit).square().sum() / other[:, go].square().sum())

    assert error(RIDGE) < 0.9
    assert error(RIDGE) < error(0.01)


def test_what_was_never_used_is_left_as_it_is() -> None:
    stay, go = torch.arange(6), torch.tensor([6, 7])
    assert torch.equal(refit_coefficients(torch.zeros(8, 8), stay, go, 0.01), torch.zeros(6, 2, dtype=torch.float64))
    weight = torch.randn(4, 8)
    assert torch.equal(removal_cost(weight, torch.zeros(8, 8), torch.arange(8).view(4, 2)), torch.zeros(4).double())


def test_moments_that_are_nearly_singular_or_not_finite() -> None:
    """Repeated inputs of very different size, as attention sinks make them: float32 factors failed."""
    torch.manual_seed(0)
    x = torch.randn(40, 3).double() @ torch.randn(3, 64).double() * torch.logspace(0, 4, 64, dtype=torch.float64)
    second = (x.T @ x / 40).float()
    stay, go = torch.arange(48), torch.arange(48, 64)
    with pytest.raises(torch.linalg.LinAlgError):
        torch.linalg.cholesky(second + 1e-9 * second.diagonal().mean() * torch.eye(64))
    # Rounding made an eigenvalue negative: ten times the ridge is enough where the ridge is not.
    least = -float(torch.linalg.eigvalsh(second[stay][:, stay].double())[0])
    ridge = least / float(second[stay][:, stay].double().diagonal().mean())
    assert torch.isfinite(refit_coefficients(second, stay, go, ridge / 2)).all()
    assert torch.isfinite(removal_cost(torch.randn(4, 64), second, torch.arange(64).view(32, 2))).all()
    with pytest.raises(NumericsError, match="10 times the damping.*--compensate none"):
        refit_coefficients(second, stay, go, ridge / 1000)
    second[3, 3] = torch.nan
    with pytest.raises(NumericsError, match="second moments of an input of o or down"):
        refit_coefficients(second, stay, go, 0.01)
    with pytest.raises(NumericsError, match="second moments of the input of x"):
        removal_cost(torch.randn(4, 64), second, torch.arange(64).view(32, 2), what="the input of x")


def lora_with_values(model):
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_a_duplicated_channel_goes_without_a_trace(monkeypatch) -> None:
    """Channel 5 does what channel 2 does, LoRA included; with ridge -> 0 the other one takes over all of it."""
    monkeypatch.setattr("secateur.pruning.compensation.single.RIDGE", 1e-13)
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
        pruner.scores.update(marked)
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


@pytest.mark.parametrize("shrink", [True, False])
def test_the_bias_keeps_the_mean_output(shrink) -> None:
    """On stored activations, each o and down by itself: what goes is replaced by its mean, exactly."""
    model = lora_with_values(adapted(dtype=torch.float64, layers=2, bias=True))
    ids = rows(5)[:1]  # few enough to be taken whole
    options = {"criterion": "flap", "compensate": "bias", "sparsity": 0.5, "schedule": "one-shot", "prune_start": 1}
    pruner = pruner_for(model, total_steps=4, shrink=shrink, **options)
    inputs: dict[str, torch.Tensor] = {}
    gates = [gate.linear for pool in pruner.units.pools for gate in pool.gates]
    handles = [
        pruner.modules[path].register_forward_pre_hook(lambda _, args, path=path: inputs.update({path: args[0]}))
        for path in gates
    ]
    with torch.no_grad():
        model.eval()(ids)
        for handle in handles:
            handle.remove()
        before = {path: pruner.modules[path](inputs[path]) for path in gates}
    model.train()(ids, labels=ids).loss.backward()
    pruner.observe()
    pruner.step(torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]))
    model.eval()
    for pool in pruner.units.pools:
        keep = pruner.keep[pool.name]
        assert not keep.all()
        for gate in pool.gates:
            x = inputs[gate.linear][..., gate.entries(keep)] if shrink else inputs[gate.linear]
            with torch.no_grad():
                after = pruner.modules[gate.linear](x)
            torch.testing.assert_close(after.mean((0, 1)), before[gate.linear].mean((0, 1)), rtol=1e-9, atol=1e-9)
            assert float((after - before[gate.linear]).abs().max()) > 1e-2


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
    for path, moments in pruner.scorer.statistics.moments.items():
        assert torch.equal(restored.scorer.statistics.moments[path].second, moments.second)


OF_UNITS = [name for name in CRITERIA if not CRITERIA[name].needs & set(OF_LAYERS)]
ORDERS = [(name, schedule) for name in OF_UNITS for schedule in ("cubic", "one-shot")]


@pytest.mark.parametrize(
    ("criterion", "schedule"), some_of(ORDERS, [(name, ORDERS[i % 2][1]) for i, name in enumerate(OF_UNITS)])
)
def test_every_criterion_in_every_order(criterion, schedule) -> None:
    model = adapted(layers=2)
    compensate = "none" if criterion == "compresso" else "lstsq"  # which is refused with inputs scaled at random
    pruner = pruner_for(model, criterion=criterion, schedule=schedule, total_steps=STEPS, compensate=compensate)
    losses, _ = train_bare(model, pruner)
    assert pruner.sparsity == pytest.approx(0.4, abs=0.01)
    assert len(pruner.cuts) == (1 if schedule == "one-shot" else len(pruner.schedule.cuts()))
    assert all(loss == loss for loss in losses)
    assert not pruner.scorer.statistics._handles  # nothing is collected after the last cut


def test_bias_needs_biases() -> None:
    with pytest.raises(InputError, match=r'down_proj has no bias|o_proj has no bias.*use compensate="lstsq"'):
        Pruner(tiny_llama(), sparsity=0.3, criterion="magnitude", compensate="bias")
