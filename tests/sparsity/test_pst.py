"""PST: scores, masks and their straight-through gradient beside the formulas, written out in float64."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_llama
from torch.nn import functional

from secateur.models.surgery import lora_factors
from secateur.sparsity.pst import PARTS, PREFIX, Pst, masked_weight, scores_of, share_at


def learning(share=0.4, bias=True):
    model = tiny_llama(layers=1, hidden=16, ffn=24, bias=bias, dtype=torch.float64)
    lora = LoraConfig(r=3, lora_alpha=3, target_modules="all-linear")
    model = get_peft_model(model, lora, autocast_adapter_dtype=False)
    torch.manual_seed(0)
    pst = Pst(model, share)
    return model, pst


def parameters(layer):
    lora = lora_factors(layer)
    return {"u": lora.b, "v": lora.a} | {part: layer.get_submodule(PREFIX + part)["default"] for part in PARTS}


def test_the_start_is_that_of_the_authors() -> None:
    """U and P from N(0, 1), the others zero: the model computes what it did, and the smallest weights would go."""
    model, pst = learning()
    for layer in pst.layers.values():
        found = parameters(layer)
        assert all(not found[name].any() for name in "vqrc")
        assert all(0.5 < float(found[name].detach().std()) < 1.5 for name in "up")
    ids = torch.randint(3, 99, (1, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), model.disable_adapter():
        plain = tiny_llama(layers=1, hidden=16, ffn=24, bias=True, dtype=torch.float64)(input_ids=ids).logits
    torch.testing.assert_close(model(input_ids=ids).logits, plain)
    assert sum(parameter.numel() for parameter in pst.parameters()) > 0
    layer = pst.layers["model.layers.0.mlp.up_proj"]
    gone = ~pst.keep()["model.layers.0.mlp.up_proj"]
    weight = layer.get_base_layer().weight.abs()
    assert int(gone.sum()) == int(0.4 * gone.numel())
    assert weight[gone].max() < weight[~gone].min()
    pst.now = 0.4
    assert not torch.equal(model(input_ids=ids).logits, plain)
    pst.close()
    torch.testing.assert_close(model(input_ids=ids).logits, plain)
    assert not any(PREFIX in name for name, _ in model.named_parameters())


def test_the_gradient_is_that_of_the_written_out_graph() -> None:
    _, pst = learning()
    pst.now = 0.4
    layer = pst.layers["model.layers.0.mlp.gate_proj"]
    own = parameters(layer)
    for parameter in own.values():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, 5, 24, dtype=torch.float64)
    found = torch.autograd.grad((layer(x) * upstream).sum(), [x, *own.values()])

    free = {name: value.detach().clone().requires_grad_() for name, value in own.items()}
    weight = layer.get_base_layer().weight.detach() + free["u"] @ free["v"]
    scores = weight.abs() + free["p"] @ free["q"] + free["r"][:, None] + free["c"][None]
    gone = sorted((float(s), place) for place, s in enumerate(scores.detach().flatten()))[: int(0.4 * scores.numel())]
    mask = torch.ones(scores.numel(), dtype=torch.float64)
    mask[[place for _, place in gone]] = 0
    mask = mask.view_as(scores) + scores - scores.detach()  # the gradient of a mask is its score's
    output = functional.linear(x, mask * weight, layer.get_base_layer().bias)
    expected = torch.autograd.grad((output * upstream).sum(), [x, *free.values()])
    torch.testing.assert_close(layer(x), output)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)

    outer = upstream.flatten(0, 1).T @ x.detach().flatten(0, 1)  # and by hand: ∂L/∂(M ⊙ W_e)
    to_scores = outer * weight.detach()
    to_weight = outer * mask.detach() + to_scores * weight.detach().sign()
    by_hand = [to_weight @ own["v"].T, own["u"].T @ to_weight, to_scores @ own["q"].T, own["p"].T @ to_scores]
    for ours, theirs in zip(found[1:], [*by_hand, to_scores.sum(1), to_scores.sum(0)], strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.77])
def test_each_matrix_has_its_share_to_the_entry(share) -> None:
    _, pst = learning(share)
    for layer in pst.layers.values():
        for parameter in parameters(layer).values():
            torch.nn.init.normal_(parameter, std=0.3)
    for path, mask in pst.keep().items():
        assert int((~mask).sum()) == int(share * mask.numel())
        weight = masked_weight(pst.layers[path], share)
        assert torch.equal(weight != 0, mask)
        scores = scores_of(pst.layers[path], weight.new_zeros(weight.shape)).shape
        assert scores == mask.shape


def test_the_share_grows_along_the_cubic() -> None:
    """The paper's schedule, with nothing in the first tenth and nothing new in the last three."""
    found = [share_at(step, 20, 0.5) for step in range(21)]
    assert found[:3] == [0, 0, 0]
    assert found[15:] == [0.5] * 6
    assert found[14] == pytest.approx(0.5)
    assert found[8] == pytest.approx(0.5 - 0.5 * (1 - (8 - 2) / (20 - 8)) ** 3)
    assert sorted(found) == found
