"""Compresso's masks: their size in expectation, what they learn from, what is folded, and that nothing is lost."""

import math

import pytest
import torch

from secateur import Pruner
from secateur.criteria.masks import hard_concrete, open_probability
from secateur.system.errors import InputError
from tests.architecture.rows import tiny
from tests.criteria.test_learned_masks import STEPS, adapted, batches, masks_of, sliced_logits, train

OPTIONS = {
    "criterion": "compresso", "allocation": "global", "sparsity": 0.4, "total_steps": STEPS, "prune_start": 0,
    "prune_end": 12, "frequency": 99,
}  # fmt: skip


def at_random(masks, low=-4.0, high=4.0):
    generator = torch.Generator().manual_seed(5)
    masks._z.data = torch.rand(len(masks._z), generator=generator, dtype=torch.float64) * (high - low) + low
    masks._place()


def test_expected_size_is_what_a_count_of_many_draws_comes_to() -> None:
    pruner = Pruner(adapted(layers=2), **OPTIONS)
    masks = masks_of(pruner)
    at_random(masks)
    params = torch.cat([torch.full((p.size,), float(p.unit_params)) for p in pruner.units.pools]).double()
    generator, draws, found = torch.Generator().manual_seed(0), 4000, []
    for _ in range(draws):
        noise = torch.rand(len(params), generator=generator, dtype=torch.float64)
        found.append(float((hard_concrete(masks._z.detach(), noise) > 0).double() @ params / params.sum()))
    counted = torch.tensor(found)
    assert float(counted.std()) > 0.01
    assert masks.expected_size(0.5) == pytest.approx(float(counted.mean()), abs=4 * float(counted.std()) / draws**0.5)
    # and by hand: m > 0 where logit u > -z - (2/3)·log 11, which is σ(z + (2/3)·log 11) of the draws
    assert float(open_probability(torch.tensor(0.3), 0.1)) == pytest.approx(1 / (1 + math.exp(-0.3) * 11 ** (-2 / 3)))


def test_the_gradient_is_that_of_the_graph_written_out() -> None:
    """Two micro-batches, one draw: masks on what gate and up make and what o reads, beside λ₁ and λ₂ of the size."""
    model, ids, share = adapted(layers=2), batches()[0], 0.3
    pruner = Pruner(model, **OPTIONS)
    masks, base = masks_of(pruner), model.get_base_model()
    at_random(masks)
    masks._multipliers.data += torch.tensor([0.7, 0.3], dtype=torch.float64)
    masks._penalties.data += 5.0
    z, noise = masks._z.detach().clone().requires_grad_(), masks._beside.clone()
    mask = torch.clamp(1.2 / (1 + torch.exp(-(noise.log() - (1 - noise).log() + z) / (2 / 3))) - 0.1, 0, 1)
    params = torch.cat([torch.full((p.size,), float(p.unit_params)) for p in pruner.units.pools]).double()
    size = 1 / (1 + torch.exp(-z + 2 / 3 * math.log(1 / 11))) @ params / params.sum()
    (constraint,) = pruner.budget.constraints()
    over = size - (1 - (1 - constraint.kept) * share / 0.5)
    hooks = []
    for pool, own in zip(pruner.units.pools, mask.split([p.size for p in pruner.units.pools]), strict=True):
        for member in pool.members:
            linear, wide = base.get_submodule(member.linear), own.repeat_interleave(member.index.shape[1])
            if pool.kind == "ffn" and member.dim == 0:
                hooks.append(linear.register_forward_hook(lambda module, args, out, wide=wide: out * wide))
            elif pool.kind != "ffn" and member.dim == 1:
                hooks.append(linear.register_forward_pre_hook(lambda module, args, wide=wide: (args[0] * wide,)))
    with masks.off():
        loss = model(ids, labels=ids).loss
    (loss + 0.7 * over + 5.0 * over**2).backward()
    for hook in hooks:
        hook.remove()
    model.zero_grad()
    for part in ids.split(2):
        (model(part, labels=part).loss / 2).backward()
    caught, step = [], masks._optimizer.step
    masks._optimizer.step = lambda: caught.append(masks._z.grad.clone()) or step()
    masks.observe(share, STEPS)
    torch.testing.assert_close(caught[0], z.grad, rtol=1e-9, atol=1e-12)
    assert (z.grad != 0).all()
    assert not torch.equal(masks._beside, noise), "each step draws its own"
    assert masks._multipliers[0, 0] != 0.7
    assert masks._multipliers[0, 1] == 0.3, "nothing drives masks apart but the size"
    masks._z.data[:2] = torch.tensor([9.0, -9.0])
    model(ids, labels=ids).loss.backward()
    masks.observe(share, STEPS)
    assert masks._z.detach().abs().max() <= math.log(100) + 1e-12


def test_what_is_written_is_the_masked_model_with_its_scale() -> None:
    """σ(0.8·z/β) at gate and up (bias, too) and at o of the units that stay; the others are gone."""
    model, ids = adapted(layers=2, bias=True), batches()[0]
    pruner = Pruner(model, shrink=False, **OPTIONS)
    masks = masks_of(pruner)
    at_random(masks)
    assert not torch.equal(model(ids).logits, dense := logits_without(model, masks, ids))
    keep = pruner.budget.select({n: torch.rand(len(m)) for n, m in pruner.keep.items()}, pruner.keep, 1.0)
    pruner.pruned.cut_(keep, None)
    pruner.scorer.follow_cut(pruner.live.pools, keep, keep)
    masks.settle()
    masked = model(ids).logits
    assert (masked - dense).abs().max() > 0.1
    scale = torch.sigmoid(0.8 * masks._z.detach() / (2 / 3))
    parts = dict(zip(keep, scale.split([len(m) for m in keep.values()]), strict=True))
    path = "model.layers.1.mlp.up_proj"
    expected = torch.where(keep["layer.1.ffn"], parts["layer.1.ffn"], torch.ones(()).double())
    torch.testing.assert_close(masks._held[path, 0], expected)
    torch.testing.assert_close(sliced_logits(model, pruner, ids), masked, rtol=1e-10, atol=1e-10)


def logits_without(model, masks, ids):
    with masks.off():
        return model(ids).logits


def test_what_is_evaluated_has_no_noise() -> None:
    model, ids = adapted(layers=1), batches()[0]
    pruner = Pruner(model, **OPTIONS)
    at_random(masks_of(pruner))
    model.eval()
    with torch.no_grad():
        still = model(ids).logits
        masks_of(pruner)._beside = 1 - masks_of(pruner)._beside
        masks_of(pruner)._place()
        assert torch.equal(model(ids).logits, still)
    assert not torch.equal(model(ids).logits, still), "a loop may train in evaluation mode"


def test_shrinking_is_masking_and_a_run_goes_on_as_if_never_stopped(tmp_path) -> None:
    found = {}
    for shrink in (True, False):
        pruner = Pruner(model := adapted(), shrink=shrink, **OPTIONS)
        train(model, pruner)
        assert pruner.sparsity == pytest.approx(0.4, abs=0.01)
        found[shrink] = model(batches()[0]).logits, pruner.keep, pruner
    assert all(torch.equal(found[True][1][name], mask) for name, mask in found[False][1].items())
    torch.testing.assert_close(found[True][0], found[False][0], rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(sliced_logits(found[True][2].model, found[True][2], batches()[0]), found[True][0])
    for stop in (7, 14):
        halted = Pruner(first := adapted(), **OPTIONS)
        train(first, halted, last=stop)
        halted.save(tmp_path)
        fresh = Pruner(adapted(), **OPTIONS)
        fresh.load(tmp_path)
        lora = {name: p for name, p in first.named_parameters() if p.requires_grad}
        for name, parameter in fresh.model.named_parameters():
            if parameter.requires_grad:
                parameter.data = lora[name].data.clone()
        train(fresh.model, fresh, first=stop)
        assert torch.equal(fresh.model(batches()[0]).logits, found[True][0])


def test_the_size_reaches_the_target_and_what_does_nothing_goes() -> None:
    model = adapted(layers=2)
    empty = torch.arange(0, 20)
    for layer in model.get_base_model().model.layers:
        layer.mlp.down_proj.base_layer.weight.data[:, empty] = 0
        layer.mlp.down_proj.lora_A["default"].weight.data[:, empty] = 0
    options = OPTIONS | {"attention": "none", "sparsity": 0.2, "prune_end": 60, "total_steps": 60, "shrink": False}
    pruner = Pruner(model, **options)
    for ids in (batches() * 4)[:59]:
        model(ids, labels=ids).loss.backward()
        pruner.observe()
        pruner.step()
        model.zero_grad()
    (constraint,) = pruner.budget.constraints()
    assert masks_of(pruner).expected_size(1.0) == pytest.approx(constraint.kept, abs=0.05)
    for pool in pruner.units.of_kind("ffn"):
        z = masks_of(pruner).latents(pruner.units.pools)[pool.name]
        assert z[empty].mean() < z[20:].mean() - 1


def test_a_family_without_gate_is_refused() -> None:
    with pytest.raises(InputError, match=r"FFN of a gpt2 has no gate \(transformer\.h\.0\.mlp\.c_fc alone\)"):
        Pruner(tiny("gpt2"), **OPTIONS)
    with pytest.raises(InputError, match="compensate=.lstsq. fits to inputs that criterion=.compresso"):
        Pruner(adapted(), compensate="lstsq", **OPTIONS)
