"""The teacher is the dense model at every step, whatever pruning, compensation and LoRA's start did to the weights."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_llama

from secateur.models.surgery import lora_factors, lora_layers
from secateur.ranks import RankPruner
from secateur.system.errors import InputError
from secateur.training.loss import causal_lm_loss
from secateur.training.recovery.teacher import Teacher
from tests.pruning.test_pruner import STEPS, pruner_for, rows, train_bare


def setting(init=True, **options):
    torch.manual_seed(0)
    dense = tiny_llama(layers=2, bias=options.get("compensate") == "bias")
    dense_logits = dense(rows(2)).logits.detach()
    model = get_peft_model(dense, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=init))
    pruner = pruner_for(model, shrink=False, total_steps=STEPS, **options)
    return model, pruner, dense_logits


@pytest.mark.parametrize("init", [True, "pissa"])
@pytest.mark.parametrize("compensate", ["none", "lstsq", "bias"])
def test_teacher_stays_the_dense_model(init, compensate) -> None:
    model, pruner, dense = setting(init, compensate=compensate, criterion="gate")
    teacher = Teacher(model, pruner)
    train_bare(model, pruner)
    assert pruner.sparsity > 0.39
    ids = rows(2)
    before = model.eval()(ids).logits.detach()
    assert (before - dense).abs().max() > 0.5
    with teacher():
        torch.testing.assert_close(model(ids).logits, dense, rtol=0.0, atol=1e-4)  # PiSSA moves float32 weights about
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("init", [True, "pissa"])
def test_teacher_stays_the_dense_model_while_the_rank_falls(init) -> None:
    model, pruner, dense = setting(init, criterion="gate")
    teacher = Teacher(model, pruner)
    ranks = RankPruner(model, rank=2, total_steps=STEPS, prune_start=2, prune_end=11, frequency=3, merges=True)
    ids = rows(2)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(STEPS):
        model(ids, labels=ids).loss.backward()
        ranks.observe()
        optimizer.step()
        ranks.step(optimizer)
        optimizer.zero_grad()
    assert {len(factors.a) for factors in map(lora_factors, lora_layers(model).values())} == {2}
    before = model.eval()(ids).logits.detach()
    assert (before - dense).abs().max() > 0.5
    with teacher():
        torch.testing.assert_close(model(ids).logits, dense, rtol=0.0, atol=1e-4)
    assert torch.equal(model(ids).logits, before)


def test_teacher_has_the_adapter_that_was_given() -> None:
    model, pruner, dense = setting(criterion="gate")
    for factors in map(lora_factors, lora_layers(model).values()):
        torch.nn.init.normal_(factors.b.data, std=0.1)
    ids = rows(2)
    given = model.eval()(ids).logits.detach()
    assert (given - dense).abs().max() > 0.1
    teacher = Teacher(model, pruner)
    train_bare(model, pruner)
    with teacher():
        torch.testing.assert_close(model(ids).logits, given, rtol=0.0, atol=1e-5)


def test_teachers_pass_leaves_gradients_and_statistics_alone() -> None:
    """bfloat16 autocast, PiSSA: the teacher's casts of LoRA's factors must not stand in for the student's."""
    gradients, scores = [], []
    for ask in (False, True):
        model, pruner, _ = setting("pissa", criterion="gate")
        teacher = Teacher(model, pruner)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.mul_(1.5)  # training has moved on from where the teacher is
        ids = rows(4)
        model.train()
        with torch.autocast("cpu", torch.bfloat16):
            if ask:
                with teacher():
                    model(input_ids=ids)
            outputs = model(input_ids=ids)
        causal_lm_loss(outputs, ids).backward()
        pruner.observe()
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
        scores.append(pruner.scores)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert any(g.abs().sum() > 0 for g in gradients[0])
    assert all(torch.equal(scores[0][name], scores[1][name]) for name in scores[0])


def test_a_shrinking_model_cannot_teach() -> None:
    model = get_peft_model(tiny_llama(layers=2), LoraConfig(r=4, target_modules="all-linear"))
    with pytest.raises(InputError, match="shrink=False"):
        Teacher(model, pruner_for(model, total_steps=STEPS))
