"""Masks that are learned: what they compute, what they learn from, where they end, and that nothing is lost."""

from itertools import combinations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_llama

from secateur import Pruner
from secateur.architecture.units import gain_of
from secateur.checkpoint.export import build_small
from secateur.criteria import CRITERIA, Criterion, MaskRule
from secateur.criteria.masks import lagrangian, probability, retention_score, sharpness
from secateur.models.surgery import merged_and_sliced
from secateur.system.errors import InputError, NumericsError

STEPS, BATCH, LENGTH = 16, 4, 24
OPTIONS = {"sparsity": 0.4, "prune_start": 2, "prune_end": 14, "frequency": 4}


def adapted(**options):
    torch.manual_seed(0)
    model = tiny_llama(dtype=torch.float64, **options)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(model, lora, autocast_adapter_dtype=False)


def batches(count=STEPS):
    return torch.randint(3, 99, (count * BATCH, LENGTH), generator=torch.Generator().manual_seed(7)).split(BATCH)


def train(model, pruner, optimizer=None, first=0, last=STEPS):
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = optimizer or torch.optim.SGD(trained, lr=1e-2)
    for ids in batches()[first:last]:
        model(ids, labels=ids).loss.backward()
        pruner.observe()
        optimizer.step()
        pruner.step(optimizer)
        optimizer.zero_grad()
    return optimizer


def masks_of(pruner):
    return pruner.scorer.masks


def sliced_logits(model, pruner, ids):
    tensors = merged_and_sliced(model, pruner.live, pruner.live_keep)
    shapes = pruner.live.shapes_after(pruner.live_keep)
    base = model.get_base_model()
    return build_small(base.config, pruner.units.family, shapes, tensors, torch.float64, "keep")(ids).logits


def test_masks_of_zeros_and_ones_are_the_sliced_model_and_others_fold() -> None:
    model, ids = adapted(), batches()[0]
    pruner = Pruner(model, criterion="learned", shrink=False, total_steps=STEPS, **OPTIONS)
    masks = masks_of(pruner)
    keep = pruner.budget.select({n: torch.rand(len(m)) for n, m in pruner.keep.items()}, pruner.keep, 1.0)
    dense = model(ids).logits
    ones_and_zeros = torch.cat([keep[name] for name in masks._sizes]).double()
    for scale in (torch.ones_like(ones_and_zeros), torch.rand(len(ones_and_zeros), dtype=torch.float64) + 0.5):
        masks._z.data = ones_and_zeros * scale
        masks._place()
        masked = model(ids).logits
        assert (masked - dense).abs().max() > 0.1
        pruner.pruned.keep = keep  # what stays of the model that is written
        torch.testing.assert_close(sliced_logits(model, pruner, ids), masked, rtol=1e-10, atol=1e-10)
    with masks.off():
        assert torch.equal(model(ids).logits, dense)


@pytest.mark.parametrize("criterion", ["learned", "projected"])
def test_the_gradient_is_that_of_the_graph_written_out(criterion) -> None:
    """z in the forward pass itself, its clips straight-through, beside the size's Lagrangian, in one autograd graph."""
    model, ids = adapted(layers=2), batches()[0]
    pruner = Pruner(model, criterion=criterion, attention="none", total_steps=STEPS, **OPTIONS)
    masks, pool = masks_of(pruner), pruner.units.pools[0]
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(len(masks._z), generator=generator, dtype=torch.float64) * 0.4 + 0.3
    hidden = (torch.rand(len(start), generator=generator) < 0.5).double()
    masks._z.data, masks._beside = start.clone(), hidden
    masks._multipliers.data += torch.tensor([0.7, 0.3], dtype=torch.float64)
    masks._penalties.data += 5.0
    masks._place()
    share = 0.4

    z = start.clone().requires_grad_()
    down = [model.get_base_model().model.layers[n].mlp.down_proj for n in range(2)]
    if criterion == "learned":
        mask = z + (z.clamp_min(0) - z).detach()
        mu = 0.5 - 0.45 * share**0.5
        stretched = 1.2 / (1 + torch.exp(-2.4 * (mask - mu) / mu)) - 0.1
        s = stretched + (stretched.clamp(0, 1) - stretched).detach()
        kept = 1 - pruner.budget.quota[pool.name] / pool.size
        over = s.view(2, -1).mean(1) - kept
        rest = (0.7 * over + 5.0 * over**2 + 0.3 * (s * (1 - s)).view(2, -1).mean(1)).mean()
    else:
        soft = 1 / (1 + torch.exp(-z / 1.5))
        mask, rest = hidden + soft - soft.detach(), 0.0
    hooks = [
        each.register_forward_pre_hook(lambda module, args, own=own: (args[0] * own,))
        for each, own in zip(down, mask.view(2, -1), strict=True)
    ]
    with masks.off():
        (model(ids, labels=ids).loss + rest).backward()
    for hook in hooks:
        hook.remove()
    model.zero_grad()
    for part in ids.split(2):  # in two micro-batches, as Trainer accumulates
        (model(part, labels=part).loss / 2).backward()
    caught = []
    masks._optimizer.step = lambda: caught.append(masks._z.grad.clone())
    masks.observe(share, STEPS)
    torch.testing.assert_close(caught[0], z.grad, rtol=1e-9, atol=1e-12)
    assert z.grad.abs().min() > 0 or criterion == "projected"


def test_retention_scores_are_zero_at_zero_and_one_at_twice_mu() -> None:
    z = torch.tensor([-1.0, 0.0, 0.05, 0.1, 1.0], dtype=torch.float64)
    assert sharpness(0.0) == 0.5
    assert sharpness(1.0) == pytest.approx(0.05)
    torch.testing.assert_close(retention_score(z, 1.0), torch.tensor([0, 0, 0.5, 1, 1.0]).double(), atol=1e-3, rtol=0)
    assert float(retention_score(torch.ones(1), 0.0)) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("allocation", ["uniform", "global", "protected"])
def test_expected_size_counts_parameters_unit_by_unit(allocation) -> None:
    """Σ over units of s times what it has, over all; constraints are those of the budget."""
    pruner = Pruner(adapted(layers=5), criterion="learned", allocation=allocation, sparsity=0.4, total_steps=STEPS)
    masks, budget = masks_of(pruner), pruner.budget
    masks._z.data = torch.rand(len(masks._z), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    kept = whole = lost = 0.0
    for pool in pruner.units.pools:
        if pool.name in budget.spared:
            continue
        for z in masks.latents(pruner.units.pools)[pool.name].tolist():
            kept += float(retention_score(torch.tensor(z, dtype=torch.float64), 0.5)) * pool.unit_params
            whole += pool.unit_params
    assert masks.expected_size(0.5) == pytest.approx(kept / whole, rel=1e-12)
    for constraint in budget.constraints():
        pools = [pool for pool in pruner.units.pools if pool.name in constraint.pools]
        lost += sum(pool.size * pool.unit_params for pool in pools) * (1 - constraint.kept)
    assert lost == pytest.approx(budget.removed_params, abs=1)
    # one constraint of two pools, by hand: 3 of 4 parameters where 2 are to be
    scores, params = torch.tensor([1.0, 0.5, 1.0]), torch.tensor([1.0, 2.0, 1.0])
    value = lagrangian([scores], [params], torch.tensor([0.5]), torch.tensor([[2.0, 4.0]]), torch.tensor([8.0]))
    assert float(value) == pytest.approx(2 * 0.25 + 8 * 0.25**2 + 4 * 0.25 * 2 / 4)


def test_the_lagrangian_reaches_the_target_and_drives_out_what_does_nothing() -> None:
    """Masks alone, on a frozen model, of which some channels have no column in down."""
    model = adapted(layers=2)
    empty = torch.arange(0, 20)
    for layer in model.get_base_model().model.layers:
        layer.mlp.down_proj.base_layer.weight.data[:, empty] = 0
        layer.mlp.down_proj.lora_A["default"].weight.data[:, empty] = 0
    pruner = Pruner(
        model, criterion="learned", allocation="global", attention="none", sparsity=0.2, schedule="one-shot",
        prune_start=40, total_steps=40, shrink=False,
    )  # fmt: skip
    for ids in (batches() * 3)[:39]:
        model(ids, labels=ids).loss.backward()
        pruner.observe()
        pruner.step()
        model.zero_grad()
    masks = masks_of(pruner)
    (constraint,) = pruner.budget.constraints()
    assert constraint.kept == pytest.approx(2 / 3)
    assert masks.expected_size(1.0) == pytest.approx(constraint.kept, abs=0.05), "all of it at the start"
    for pool in pruner.units.of_kind("ffn"):
        z = masks.latents(pruner.units.pools)[pool.name]
        assert z[empty].max() < 0.1, "nothing speaks for a unit without columns"
        assert z[20:].mean() > 0.5


def test_a_projection_is_what_the_budget_allows_and_the_best_of_all_that_are() -> None:
    model = adapted(layers=1, hidden=16, heads=2, kv_heads=1, ffn=10)
    pruner = Pruner(model, criterion="projected", attention="none", total_steps=4, prune_start=0, prune_end=1.0,
                    frequency=9, sparsity=0.2692, shrink=False)  # fmt: skip
    (pool,) = pruner.units.of_kind("ffn")
    masks = masks_of(pruner)
    model(ids := batches()[0], labels=ids).loss.backward()
    masks._z.data = torch.randn(10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    pruner.schedule = type(pruner.schedule)("linear", 0, 1)  # all is due after the step
    masks.began = True
    pruner.scorer.observe(1, pruner.schedule)
    shown = masks._beside.bool()
    p = probability(masks._z.detach())
    stays = pool.size - pruner.budget.quota[pool.name]
    best = max(combinations(range(10), stays), key=lambda chosen: float(p[list(chosen)].sum()))
    assert shown.nonzero().flatten().tolist() == list(best)
    assert torch.equal(gain_of(pruner.modules[pool.gates[0].linear]), shown.double())


@pytest.mark.parametrize("compensate", ["none", "lstsq"])
@pytest.mark.parametrize("criterion", ["learned", "projected"])
def test_shrinking_is_masking_and_a_run_goes_on_as_if_never_stopped(criterion, compensate, tmp_path) -> None:
    options = {**OPTIONS, "criterion": criterion, "compensate": compensate, "allocation": "global"}
    found = {}
    for shrink in (True, False):
        model = adapted()
        pruner = Pruner(model, total_steps=STEPS, shrink=shrink, **options)
        train(model, pruner)
        assert pruner.sparsity == pytest.approx(0.4, abs=0.01)
        found[shrink] = model(batches()[0]).logits, pruner.keep, model, pruner
    assert all(torch.equal(found[True][1][name], mask) for name, mask in found[False][1].items())
    torch.testing.assert_close(found[True][0], found[False][0], rtol=1e-7, atol=1e-7)
    _, _, model, pruner = found[True]
    torch.testing.assert_close(sliced_logits(model, pruner, batches()[0]), found[True][0], rtol=1e-9, atol=1e-9)
    if compensate == "none":  # whose weights a whole run keeps
        for stop in (7, 15):
            first = adapted()
            halted = Pruner(first, total_steps=STEPS, **options)
            optimizer = train(first, halted, last=stop)
            halted.save(tmp_path)
            fresh = Pruner(adapted(), total_steps=STEPS, **options)
            fresh.load(tmp_path)
            lora = {name: p for name, p in first.named_parameters() if p.requires_grad}
            for name, parameter in fresh.model.named_parameters():
                if parameter.requires_grad:
                    parameter.data = lora[name].data.clone()
            train(fresh.model, fresh, first=stop)
            assert torch.equal(fresh.model(batches()[0]).logits, found[True][0])
            assert optimizer is not None
    pruner.close()
    assert all(gain_of(module) is None for module in pruner.modules.values())


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(InputError, match="mask_lr=0.1 is for criteria that learn masks: gate has none"):
        Pruner(adapted(), criterion="gate", mask_lr=0.1, sparsity=0.4, total_steps=4)
    with pytest.raises(InputError, match="mask_lr.*-1"):
        Pruner(adapted(), criterion="learned", mask_lr=-1, sparsity=0.4, total_steps=4)
    with pytest.raises(InputError, match="both or neither"):
        Criterion(CRITERIA["learned"].score, "masks without a rule", needs=frozenset({"masks"}))
    assert isinstance(CRITERIA["projected"].masks, MaskRule)
    pruner = Pruner(model := adapted(), criterion="projected", total_steps=STEPS, **OPTIONS)
    with pytest.raises(InputError, match="another pruner's masks hide units"):
        Pruner(model, criterion="gate", sparsity=0.4, total_steps=STEPS)
    model(ids := batches()[0], labels=ids).loss.backward()
    column = masks_of(pruner)._held[pruner.units.of_kind("ffn")[0].gates[0].linear, 1]
    column.grad[0] = torch.nan
    before = masks_of(pruner)._z.detach().clone()
    with pytest.raises(NumericsError, match=r"step 1: the gradient of the masks of layer\.0\.\w+ is not finite"):
        pruner.observe()
    assert torch.equal(masks_of(pruner)._z, before)


def test_projected_scores_begin_in_the_order_of_gate() -> None:
    """When the first units are hidden nothing else is known: what is hidden is what `gate` would cut."""
    options = {**OPTIONS, "allocation": "global", "ema": 0.0, "shrink": False, "total_steps": STEPS}
    gate, projected = (Pruner(adapted(), criterion=name, **options) for name in ("gate", "projected"))
    for pruner in (gate, projected):
        for ids in batches()[:3]:  # units are due after the third step, by what the second one has shown
            pruner.model(ids, labels=ids).loss.backward()
            pruner.observe()
            if pruner is gate and pruner.steps_done == 1:
                break
            pruner.step()
            pruner.model.zero_grad()
    masks, hidden = masks_of(projected), 1 - projected.schedule.due(3)
    shown = gate.budget.select(gate.scores, gate.keep, 1 - hidden)
    assert torch.equal(masks._beside.bool(), torch.cat([shown[name] for name in masks._sizes]))
    assert not masks._beside.all()
    assert float(masks._z.detach().std()) == pytest.approx(1.0)
