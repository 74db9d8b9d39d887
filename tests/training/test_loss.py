"""The chunked loss is transformers' loss, and its gradient autograd's."""

import pytest
import torch
from tiny import tiny_llama
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    TrainingArguments,
)
from transformers.modeling_outputs import CausalLMOutput

from secateur.training import loss as loss_module
from secateur.training.loss import causal_lm_loss
from secateur.training.trainer import AutocastTrainer, Distillation


def test_equals_the_models_own_loss_and_gradient(monkeypatch) -> None:
    monkeypatch.setattr(loss_module, "ROWS", 7)  # several blocks, the last one short
    model = tiny_llama(dtype=torch.float64)
    ids = torch.randint(0, 128, (3, 21), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[0, :9] = -100
    labels[2, 20] = -100
    gradients = []
    for mine in (True, False):
        model.zero_grad()
        outputs = model(ids, labels=labels)
        value = causal_lm_loss(outputs, labels) if mine else outputs.loss
        (2 * value).backward()
        gradients.append((value.item(), [p.grad.clone() for p in model.parameters()]))
    assert abs(gradients[0][0] - gradients[1][0]) < 1e-6  # transformers' loss works in float32, whatever the model
    for ours, theirs in zip(gradients[0][1], gradients[1][1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_divides_by_the_steps_labels() -> None:
    logits = torch.randn(2, 5, 11)
    labels = torch.randint(0, 11, (2, 5))
    whole = causal_lm_loss(CausalLMOutput(logits=logits), labels)
    torch.testing.assert_close(causal_lm_loss(CausalLMOutput(logits=logits), labels, 16), whole * 8 / 16)


def test_distillation_is_autograd_on_the_formula(monkeypatch) -> None:
    monkeypatch.setattr(loss_module, "ROWS", 4)
    torch.manual_seed(0)
    alpha, temperature = 0.3, 2.0
    logits = torch.randn(2, 6, 11, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 6, 11, dtype=torch.float64)
    labels = torch.randint(0, 11, (2, 6))
    labels[0, :3] = -100
    outputs = CausalLMOutput(logits=logits)
    ours = causal_lm_loss(outputs, labels, teacher=teacher, alpha=alpha, temperature=temperature)
    (gradient,) = torch.autograd.grad(ours, logits)
    student, wanted, targets = logits[:, :-1].flatten(0, 1), teacher[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    counted = targets != -100
    hard = torch.nn.functional.cross_entropy(student[counted], targets[counted])
    soft = torch.nn.functional.kl_div(
        (student[counted] / temperature).log_softmax(1),
        (wanted[counted] / temperature).log_softmax(1),
        log_target=True,
        reduction="batchmean",
    )
    expected = (1 - alpha) * hard + alpha * temperature**2 * soft
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0], rtol=1e-10, atol=1e-14)


SMALL = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0}  # fmt: skip


@pytest.mark.parametrize("model_type", ["gemma2", "granite"])
def test_soft_caps_and_logit_scales_are_the_models(model_type) -> None:
    torch.manual_seed(0)
    if model_type == "gemma2":
        model = Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=2.0, initializer_range=0.5))
    else:
        model = GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=0.2, initializer_range=0.5))
    ids = torch.randint(1, 64, (2, 9))
    found = []
    for mine in (True, False):
        model.zero_grad()
        outputs = model(ids, labels=ids, use_cache=False)
        loss = causal_lm_loss(outputs, ids) if mine else outputs.loss
        loss.backward()
        found.append((loss, [p.grad.clone() for p in model.parameters()]))
    uncapped = model.lm_head(model.model(ids, use_cache=False).last_hidden_state)
    plain = causal_lm_loss(CausalLMOutput(logits=uncapped), ids)
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])
    assert (plain - found[0][0]).abs() > 0.01, "the cap or the scale makes no difference here"


@pytest.mark.parametrize("distilled", [False, True])
def test_logits_are_made_only_where_there_are_labels(tmp_path, distilled) -> None:
    model = tiny_llama(layers=1)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    trainer = AutocastTrainer(model=model, args=arguments, compute_loss_func=causal_lm_loss)
    if distilled:
        trainer.distillation = Distillation(torch.no_grad, 0.5, 2.0)
    ids = torch.randint(3, 99, (3, 12), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[0, :7] = labels[1, :9] = labels[2] = -100  # prompts
    labels[1, 10] = -100
    made, found = [], []
    model.lm_head.register_forward_hook(lambda module, args, output: made.append(output.shape[1]))
    for picks in (True, False):
        trainer._picks_positions = picks
        model.zero_grad()
        loss = trainer.compute_loss(model, {"input_ids": ids, "labels": labels}, num_items_in_batch=torch.tensor(9))
        loss.backward()
        found.append((loss, [p.grad.clone() for p in model.parameters()]))
    per_pass = 2 if distilled else 1
    assert made == [6] * per_pass + [12] * per_pass  # labels 7 to 11 are said by positions 6 to 10; 11 says nothing
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-7)
    trainer.compute_loss(model, {"input_ids": ids, "labels": ids})
    assert made[-1] == 12  # labels everywhere


def test_a_model_that_picks_no_positions_makes_all(tmp_path) -> None:
    model = tiny_llama(layers=1)
    trainer = AutocastTrainer(model=model, args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[]))
    assert trainer._picks_positions
    model.forward = lambda input_ids: None
    del trainer._picks_positions
    assert not trainer._picks_positions
