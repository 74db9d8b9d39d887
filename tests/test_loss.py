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
