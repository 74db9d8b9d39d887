"""The chunked loss is transformers' loss, and its gradient autograd's."""

import torch
from tiny import tiny_llama
from transformers.modeling_outputs import CausalLMOutput

from secateur import loss as loss_module
from secateur.loss import causal_lm_loss


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
