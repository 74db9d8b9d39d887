"""In float64 without dropout: masked, shrunk and with layers computed twice, a run goes the same way."""

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from secateur import Pruner, Scoring
from secateur.criteria import CRITERIA
from secateur.models.surgery import lora_factors, merged_weight
from secateur.training.finetune import checkpoint_layers
from secateur.training.loss import causal_lm_loss
from tests.pruning.test_pruner import adapted

STEPS = 50
CLOSE = {"rtol": 1e-8, "atol": 1e-13}  # the masked sums have zeros in other places; Adam amplifies round-off


def trained(criterion, *, shrink, checkpointing, compensate="none", steps=STEPS, layers=3):
    """The pruner, its model, the optimiser and the losses of some steps, with a cut at every tenth of them."""
    every = steps // 10
    model = adapted(torch.float64, layers=layers).train()
    if checkpointing:
        checkpoint_layers(model)
    pruner = Pruner(
        model, sparsity=0.5, total_steps=steps, prune_start=every + 1, prune_end=7 * every + 1, frequency=every,
        criterion=criterion, shrink=shrink, compensate=compensate, scoring=Scoring(),
    )  # fmt: skip
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    schedule = CosineAnnealingLR(optimizer, steps)
    rows = torch.randint(3, 99, (steps, 4, 24), generator=torch.Generator().manual_seed(3))
    losses = []
    for ids in rows:
        loss = causal_lm_loss(model(input_ids=ids, use_cache=False), ids)
        loss.backward()
        pruner.observe()
        optimizer.step()
        pruner.step(optimizer)
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return pruner, model.get_base_model(), optimizer, torch.tensor(losses)


def assert_same(one, other) -> None:
    """Equal losses, cuts and, on what is left, merged weights, factors and both of AdamW's moments."""
    (pruner, model, optimizer, losses), (pruner2, model2, optimizer2, losses2) = one, other
    torch.testing.assert_close(losses, losses2, **CLOSE)
    assert [cut.removed for cut in pruner.cuts] == [cut.removed for cut in pruner2.cuts]
    entries = {}  # linear -> dimension -> what stays, for those that are masked
    for pool in pruner2.units.pools:
        for member in pool.members:
            if not pruner2.options.shrink:
                entries.setdefault(member.linear, {})[member.dim] = member.entries(pruner2.keep[pool.name])
    for path in pruner.units.linears:
        layers = [m.get_submodule(path) for m in (model, model2)]
        weights = [merged_weight(layer) for layer in layers]
        for dim, stay in entries.get(path, {}).items():
            weights[1] = weights[1].index_select(dim, stay)
        torch.testing.assert_close(*weights, **CLOSE)
        for factor, dim in (("a", 1), ("b", 0)):
            pair = [getattr(lora_factors(layer), factor) for layer in layers]
            stay = entries.get(path, {}).get(dim)
            states = [o.state[p] for o, p in zip((optimizer, optimizer2), pair, strict=True)]
            for tensors in (pair, *([s[name] for s in states] for name in ("exp_avg", "exp_avg_sq"))):
                theirs = tensors[1] if stay is None else tensors[1].index_select(dim, stay)
                torch.testing.assert_close(tensors[0], theirs, **CLOSE)


@pytest.mark.parametrize("criterion", ["lora", "gate"])
def test_shrinking_is_masking_over_50_steps(criterion) -> None:
    shrunk, masked = (trained(criterion, shrink=shrink, checkpointing=False) for shrink in (True, False))
    gone = {pool.kind for pool in shrunk[0].units.pools if not shrunk[0].keep[pool.name].all()}
    assert gone == {"kv_group", "ffn"}
    assert len(shrunk[0].cuts) >= 5
    assert sum(len(gone) > 0 for cut in shrunk[0].cuts for gone in cut.removed.values()) >= 5
    assert_same(shrunk, masked)


@pytest.mark.parametrize(
    ("criterion", "shrink", "compensate"),
    [(name, True, "none") for name in CRITERIA if name not in ("random", "magnitude", "influence", "loss")]
    + [("lora", False, "none"), ("gate", True, "lstsq")],
)
def test_layers_computed_twice_count_once(criterion, shrink, compensate) -> None:
    options = {"shrink": shrink, "compensate": compensate, "steps": 20, "layers": 2}
    twice, once = (trained(criterion, checkpointing=c, **options) for c in (True, False))
    assert once[0].removed_params > 0
    for path in once[0].units.linears:  # the same shapes in both, masked or not: nothing to select
        pair = [m.get_submodule(path) for m in (twice[1], once[1])]
        torch.testing.assert_close(*map(merged_weight, pair), **CLOSE)
    torch.testing.assert_close(twice[3], once[3], **CLOSE)
    assert [cut.removed for cut in twice[0].cuts] == [cut.removed for cut in once[0].cuts]
