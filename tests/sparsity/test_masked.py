"""LoRA masked in training: forward and gradient beside the formula, and nothing is lost in the merge."""

import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_llama
from torch.nn import functional

from secateur.checkpoint.adapter import merged_model
from secateur.models.surgery import lora_factors, lora_layers
from secateur.sparsity import sparsify_
from secateur.sparsity.masked import keep_pattern_


def masked(**options):
    model = tiny_llama(layers=2, hidden=16, ffn=24, bias=True, dtype=torch.float64)
    keep = sparsify_(model, method="magnitude", pattern="2:4")
    lora = LoraConfig(r=3, lora_alpha=6, target_modules=["up_proj", "q_proj"], init_lora_weights=False)
    model = get_peft_model(model, lora, autocast_adapter_dtype=False)
    return model, keep


def test_forward_and_gradient_are_those_of_the_masked_product() -> None:
    model, keep = masked()
    path = "model.layers.1.mlp.up_proj"
    layer, x = lora_layers(model)[path], torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True)
    lora, upstream = lora_factors(layer), torch.randn(2, 5, 24, dtype=torch.float64)
    plain = layer(x)
    keep_pattern_(model, keep)
    found = torch.autograd.grad((layer(x) * upstream).sum(), [x, lora.b, lora.a])
    assert (layer(x) - plain).abs().max() > 0.1
    linear, outer = layer.get_base_layer(), upstream.flatten(0, 1).T @ x.detach().flatten(0, 1)
    weight = linear.weight + 2 * (lora.b @ lora.a) * keep[path]
    torch.testing.assert_close(layer(x), functional.linear(x, weight, linear.bias))
    by_hand = [upstream @ weight, 2 * (outer * keep[path]) @ lora.a.T, 2 * lora.b.T @ (outer * keep[path])]
    for ours, theirs in zip(found, by_hand, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_was_trained_is_what_is_merged() -> None:
    model, keep = masked()
    ids = torch.randint(3, 99, (2, 12), generator=torch.Generator().manual_seed(1))
    unmasked = model(input_ids=ids).logits
    keep_pattern_(model, keep)
    trained = model(input_ids=ids).logits.detach()
    assert (trained - unmasked).abs().max() > 0.1, "what LoRA has where the zeros are shows"
    small = merged_model(model, keep)
    torch.testing.assert_close(small(input_ids=ids).logits, trained, rtol=1e-10, atol=1e-10)
    for path, mask in keep.items():
        assert not small.get_submodule(path).weight[~mask].any()
