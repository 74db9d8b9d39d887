"""The singular basis of an adapter: the same function, and everything that belongs to a component turned with it."""

import pytest
import torch
from peft import PeftModel
from tiny import tiny_llama

from secateur.models.surgery import lora_factors
from secateur.pruning.taps import some_tokens
from secateur.ranks import RankPruner
from secateur.ranks.basis import singular, turn_, weighted
from secateur.ranks.layers import Averages, second_moment
from secateur.system.errors import InputError
from tests.pruning.test_pruner import rows
from tests.ranks.test_ranks import adapted, delta, lora_layers_of, prune_to, train


def grown(rank=8, working=8):
    """A model whose adapter does something, with gradients and the AdamW moments of one step at rate 0."""
    model = adapted(rank=rank)
    for layer in lora_layers_of(model):
        torch.nn.init.normal_(lora_factors(layer).b, std=0.3)
        lora_factors(layer).b.data[:, working:] = 0
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0, weight_decay=0.0)
    ids = rows(4)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    return model, optimizer, ids


def test_the_function_stays_and_gradients_turn_with_it() -> None:
    """Averages and first moments after a turn are those that the turned factors' own gradients give."""
    model, optimizer, ids = grown()
    expected = model(ids).logits.detach()
    averages = []
    for layer in lora_layers_of(model):
        lora = lora_factors(layer)
        averages.append(Averages(1, facts(lora)))
        turn_(lora, averages[-1], optimizer)
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-9, atol=1e-9)
    optimizer.zero_grad()
    model(ids, labels=ids).loss.backward()
    for layer, known in zip(lora_layers_of(model), averages, strict=True):
        lora = lora_factors(layer)
        for name, value in facts(lora).items():
            torch.testing.assert_close(known.tensors[name], value, rtol=1e-6, atol=1e-10, msg=name)
        torch.testing.assert_close(optimizer.state[lora.b]["exp_avg"], 0.1 * lora.b.grad, rtol=1e-6, atol=1e-10)
        torch.testing.assert_close(optimizer.state[lora.a]["exp_avg"], 0.1 * lora.a.grad, rtol=1e-6, atol=1e-10)


def facts(lora):
    return {
        "curvature_a": second_moment(lora.a.grad.T),
        "curvature_b": second_moment(lora.b.grad),
        "gradient_a": lora.a.grad.T.clone(),
        "gradient_b": lora.b.grad.clone(),
    }


def test_second_moments_keep_each_components_length() -> None:
    """Summed over a component's entries they are what its own gradients give; entry by entry they only estimate it."""
    model, optimizer, ids = grown()
    lora = lora_factors(lora_layers_of(model)[0])
    turn_(lora, Averages(1, facts(lora)), optimizer)
    optimizer.zero_grad()
    model(ids, labels=ids).loss.backward()
    for parameter, dim in ((lora.b, 0), (lora.a, 1)):
        moment = optimizer.state[parameter]["exp_avg_sq"]
        torch.testing.assert_close(moment.sum(dim), 1e-3 * parameter.grad.square().sum(dim), rtol=1e-6, atol=1e-14)
        assert (moment >= 0).all()


def test_components_are_singular_directions() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(6, 20, dtype=torch.float64), torch.randn(30, 6, dtype=torch.float64)
    turn = singular(a, b)
    torch.testing.assert_close(turn.b @ turn.a, b @ a)
    torch.testing.assert_close(turn.forth @ a, turn.a)
    torch.testing.assert_close(b @ turn.back, turn.b)
    values = torch.linalg.svdvals(b @ a)[:6]
    torch.testing.assert_close(turn.b.norm(dim=0) * turn.a.norm(dim=1), values)
    assert float(turn.a.norm()) == pytest.approx(float(a.norm()))


@pytest.mark.parametrize("which", ["a row of A twice", "B is zero"])
def test_factors_without_full_rank(which) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(6, 20, dtype=torch.float64), torch.randn(30, 6, dtype=torch.float64)
    if which == "B is zero":
        b.zero_()
    else:
        a[4] = a[1]
    turn = singular(a, b)
    torch.testing.assert_close(turn.b @ turn.a, b @ a, rtol=1e-9, atol=1e-9)
    assert turn.forth.isfinite().all()
    assert turn.back.isfinite().all()


def test_a_cut_by_magnitude_is_the_best_of_its_rank() -> None:
    """Eckart and Young: what is left is the truncated singular value decomposition."""
    model, optimizer, _ = grown()
    before = [delta(layer) for layer in lora_layers_of(model)]
    pruner = RankPruner(
        model, rank=3, total_steps=1, schedule="one-shot", prune_start=1, criterion="magnitude", recovery="none",
        basis="singular",
    )  # fmt: skip
    pruner.observe()
    pruner.step(optimizer)
    for layer, full in zip(lora_layers_of(model), before, strict=True):
        left, values, right = torch.linalg.svd(full)
        torch.testing.assert_close(delta(layer), left[:, :3] * values[:3] @ right[:3], rtol=1e-8, atol=1e-8)


def test_a_weighted_truncation_is_the_closed_form() -> None:
    """No matrix of rank k misses less of E‖B·A·x‖² than U_k·U_kᵀ·B·A, U of B·A·C^½; nor does one near it."""
    torch.manual_seed(0)
    a, b = torch.randn(6, 20, dtype=torch.float64), torch.randn(30, 6, dtype=torch.float64)
    x = torch.randn(500, 20, dtype=torch.float64) * torch.logspace(-2, 1, 20, dtype=torch.float64)
    moment = x.T @ x / len(x)
    turn = weighted(a, b, a @ moment @ a.T)
    torch.testing.assert_close(turn.b @ turn.a, b @ a)
    torch.testing.assert_close(turn.forth @ a, turn.a)
    torch.testing.assert_close(b @ turn.back, turn.b)
    assert float(turn.a.norm()) == pytest.approx(float(a.norm()))
    root = torch.linalg.cholesky(moment)
    left, values, right = torch.linalg.svd(b @ a @ root)
    best = left[:, :2] * values[:2] @ right[:2] @ torch.linalg.inv(root)
    found = turn.b[:, :2] @ turn.a[:2]
    torch.testing.assert_close(found, best, rtol=1e-7, atol=1e-7)

    def missed(delta):
        return float(((b @ a - delta) @ root).square().sum())

    assert missed(found) == pytest.approx(float(values[2:].square().sum()))
    plain, strengths, directions = torch.linalg.svd(b @ a)
    assert missed(found) < 0.9 * missed(plain[:, :2] * strengths[:2] @ directions[:2]), "the weights matter"
    for _ in range(20):
        near = (turn.b[:, :2] + 1e-3 * torch.randn(30, 2).double()) @ (turn.a[:2] + 1e-3 * torch.randn(2, 20).double())
        assert missed(near) > missed(found)


def test_a_cut_of_the_weighted_basis_by_wanda_is_that_truncation() -> None:
    model, optimizer, ids = grown()
    layers = lora_layers_of(model)
    before, inputs = [delta(layer) for layer in layers], {}
    hooks = [
        layer.register_forward_pre_hook(lambda module, args, at=at: inputs.update({at: args[0].flatten(0, 1).detach()}))
        for at, layer in enumerate(layers)
    ]
    pruner = RankPruner(
        model, rank=3, total_steps=1, schedule="one-shot", prune_start=1, criterion="wanda", recovery="none",
        basis="weighted",
    )  # fmt: skip
    optimizer.zero_grad()
    model(ids, labels=ids).loss.backward()
    pruner.observe()
    pruner.step(optimizer)
    for hook in hooks:
        hook.remove()
    for at, (layer, full) in enumerate(zip(layers, before, strict=True)):
        looked_at, _ = some_tokens(len(inputs[at]), ids.shape[1], 0)
        left, _, _ = torch.linalg.svd(full @ inputs[at][looked_at].T, full_matrices=False)
        torch.testing.assert_close(delta(layer), left[:, :3] @ left[:, :3].T @ full, rtol=1e-6, atol=1e-7)
    assert not pruner._activations.watching


@pytest.mark.parametrize("criterion", ["gradient", "sparsegpt", "magnitude"])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_a_run(criterion, allocation) -> None:
    """All cuts of a run, in float32: the target is reached, and moments fit."""
    model = adapted(dtype=torch.float32)
    pruner = prune_to(model, criterion=criterion, allocation=allocation, basis="singular")
    optimizer = train(model, pruner)
    assert sum(pruner.ranks.values()) == 3 * len(pruner.ranks)
    for layer in lora_layers_of(model):
        for parameter in (lora_factors(layer).a, lora_factors(layer).b):
            assert optimizer.state[parameter]["exp_avg_sq"].shape == parameter.shape
            assert parameter.isfinite().all()


@pytest.mark.parametrize("basis", ["given", "singular"])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_scaling_may_follow_the_rank(tmp_path, basis, allocation) -> None:
    """At a cut that removes components that do nothing, the function stays; the rest is as if all had been rescaled."""
    model, optimizer, ids = grown(working=3)
    pruner = RankPruner(
        model, rank=3, total_steps=1, schedule="one-shot", prune_start=1, criterion="magnitude",
        basis=basis, allocation=allocation, scaling="rank",
    )  # fmt: skip
    expected = model(ids).logits.detach()
    optimizer.zero_grad()
    model(ids, labels=ids).loss.backward()
    pruner.observe()
    pruner.step(optimizer)
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-8, atol=1e-8)
    optimizer.zero_grad()
    model(ids, labels=ids).loss.backward()
    assert sum(pruner.ranks.values()) == 3 * len(pruner.ranks)
    for path, layer in pruner.layers.items():
        lora = lora_factors(layer)
        assert lora.scaling == pytest.approx((8 / len(lora.a)) ** 0.5)
        curvature = pruner._averages[path].tensors["curvature_b"]
        torch.testing.assert_close(curvature, second_moment(lora.b.grad), rtol=1e-6, atol=1e-12)
        # The only step so far was on the same rows, at the same function.
        torch.testing.assert_close(optimizer.state[lora.b]["exp_avg"], 0.1 * lora.b.grad, rtol=1e-6, atol=1e-10)
        length = optimizer.state[lora.b]["exp_avg_sq"].sum(0)
        torch.testing.assert_close(length, 1e-3 * lora.b.grad.square().sum(0), rtol=1e-6, atol=1e-14)
    model.save_pretrained(tmp_path)
    base = tiny_llama(layers=2, dtype=torch.float64)
    again = PeftModel.from_pretrained(base, tmp_path, autocast_adapter_dtype=False)
    torch.testing.assert_close(again(ids).logits, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"basis": "svd"}, "given, singular"),
        ({"criterion": "taylor"}, 'basis="given"'),
        ({"scaling": "sqrt"}, "Choose from: fixed, rank"),
    ],
)
def test_bad_input(options, words) -> None:
    with pytest.raises(InputError, match=words):
        prune_to(adapted(), **{"basis": "singular"} | options)
