"""Layer by layer: each linear is pruned on what the layers before it make once they are pruned."""

import pytest
import torch
from live import LiveBytes
from peft import LoraConfig, get_peft_model
from tiny import tiny_llama
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from secateur.architecture.units import weight_of
from secateur.config.sparsify import parse_pattern
from secateur.sparsity import sparsify_, walk
from secateur.sparsity.choice import by_magnitude, by_sparsegpt, by_wanda
from secateur.sparsity.layers import sparse_layers
from secateur.sparsity.walk import sparsify_layers
from secateur.system.errors import InputError
from tests.architecture.rows import tiny


def sparsified(model, method, text="2:4", **options):
    pattern = parse_pattern(text)
    ids = torch.randint(3, 99, (6, 20), generator=torch.Generator().manual_seed(1))
    batches = [{"input_ids": part} for part in ids.split(2)]
    return sparsify_layers(model, sparse_layers(model, pattern), pattern, method, batches, **options), ids


def by_hand(model, ids, method, pattern):
    """The whole model is run again for every layer, and what goes into its linears is noted."""
    keep = {}
    for number, layer in enumerate(model.model.layers):
        linears = {f"model.layers.{number}.{n}": m for n, m in layer.named_modules() if isinstance(m, nn.Linear)}
        seen = {}
        hooks = [
            m.register_forward_pre_hook(
                lambda m, args, path=path, seen=seen: seen.__setitem__(path, args[0].flatten(0, 1))
            )
            for path, m in linears.items()
        ]
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
        for hook in hooks:
            hook.remove()
        for path, linear in linears.items():
            weight, x = linear.weight.data, seen[path]
            if method == "wanda":
                keep[path] = by_wanda(weight, x.square().sum(0), pattern)
                linear.weight.data = weight * keep[path]
            else:
                linear.weight.data, keep[path] = by_sparsegpt(weight, 2 / len(ids) * x.T @ x, pattern, path)
    return keep


@pytest.mark.parametrize("method", ["sparsegpt", "wanda"])
@pytest.mark.parametrize("text", ["2:4", "0.6"])
def test_what_a_pruned_layer_makes_feeds_the_next(method, text) -> None:
    model, other = (tiny_llama(dtype=torch.float64) for _ in range(2))
    keep, ids = sparsified(model, method, text)
    assert keep.keys() == by_hand(other, ids, method, parse_pattern(text)).keys()
    for (name, found), expected in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9, msg=name)
        path = name.removesuffix(".weight")
        assert torch.equal(found == 0, ~keep[path]) if path in keep else not (found == 0).any()
    if text == "2:4":
        assert all((mask.view(-1, 4).sum(1) == 2).all() for mask in keep.values())
    assert len(keep) == 3 * 7


def test_moments_in_portions_change_nothing(monkeypatch) -> None:
    """A layer's linears have all seen it whole, however many moments fit into memory."""
    whole, portioned = (tiny_llama(layers=2, dtype=torch.float64) for _ in range(2))
    sparsified(whole, "sparsegpt")
    monkeypatch.setattr(walk, "MOST_BYTES", 4 * 64**2)
    sparsified(portioned, "sparsegpt")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), portioned.parameters(), strict=True))


def test_padding_counts_for_nothing() -> None:
    ids = torch.randint(3, 99, (4, 12), generator=torch.Generator().manual_seed(1))
    pattern, kept = parse_pattern("2:4"), []
    for filler in (0, 77):
        model, padded = tiny_llama(layers=2, dtype=torch.float64), ids.clone()
        padded[:2, :4] = filler
        mask = torch.ones_like(ids)
        mask[:2, :4] = 0
        batch = {"input_ids": padded, "attention_mask": mask}
        kept.append(sparsify_layers(model, sparse_layers(model, pattern), pattern, "wanda", [batch]))
    assert all(torch.equal(kept[0][path], kept[1][path]) for path in kept[0])


def test_magnitude_needs_no_text_and_bfloat16_keeps_the_zeros() -> None:
    model = tiny_llama(dtype=torch.bfloat16)
    before = {name: p.clone() for name, p in model.named_parameters()}
    pattern = parse_pattern("4:8")
    keep = sparsify_layers(model, sparse_layers(model, pattern), pattern, "magnitude")
    for path, mask in keep.items():
        weight = before[f"{path}.weight"]
        assert torch.equal(mask, by_magnitude(weight.float(), pattern))
        assert torch.equal(model.get_submodule(path).weight, weight * mask)
    narrow = tiny_llama(dtype=torch.bfloat16)
    masks, _ = sparsified(narrow, "sparsegpt", dtype=torch.bfloat16)
    assert all(torch.equal(narrow.get_submodule(path).weight == 0, ~mask) for path, mask in masks.items())
    assert not narrow.training


def test_weights_that_lie_the_other_way_round() -> None:
    """GPT-2's: inputs are what a pattern runs along."""
    config = GPT2Config(vocab_size=128, n_embd=32, n_layer=2, n_head=4, n_positions=64, attn_implementation="eager")
    model = GPT2LMHeadModel(config).eval()
    keep, _ = sparsified(model, "sparsegpt")
    assert len(keep) == 2 * 4
    for path, mask in keep.items():
        assert torch.equal(weight_of(model.get_submodule(path)) == 0, ~mask)
        assert (mask.view(len(mask), -1, 4).sum(2) == 2).all()


def test_models_that_are_refused() -> None:
    with pytest.raises(InputError, match="is a mixture of experts"):
        sparse_layers(tiny("mixtral"), parse_pattern("2:4"))
    with pytest.raises(InputError, match="layers of a zamba share a block, which reads other inputs in each"):
        sparse_layers(tiny("zamba"), parse_pattern("2:4"))
    with pytest.raises(InputError, match="--pattern 5:7: model.layers.0.self_attn.q_proj has 64 inputs, .*multiple of"):
        sparse_layers(tiny_llama(), parse_pattern("5:7"))
    model, pattern = tiny_llama(), parse_pattern("2:4")
    with pytest.raises(InputError, match="nothing to calibrate on"):
        sparsify_layers(model, sparse_layers(model, pattern), pattern, "wanda")


def test_a_model_in_memory() -> None:
    model, other = tiny_llama(layers=2), tiny_llama(layers=2)
    ids = torch.randint(3, 99, (2, 20), generator=torch.Generator().manual_seed(1))
    keep = sparsify_(model, [{"input_ids": ids}], pattern=0.5, method="wanda")
    pattern = parse_pattern("0.5")
    by_steps = sparsify_layers(other, sparse_layers(other, pattern), pattern, "wanda", [{"input_ids": ids}])
    assert all(torch.equal(keep[path], mask) for path, mask in by_steps.items())
    for changes, words in (
        ({"method": "wandda"}, "method is 'wandda'. Did you mean 'wanda'"),
        ({"pattern": "4:4"}, "pattern is '4:4'"),
    ):
        with pytest.raises(InputError, match=words):
            sparsify_(model, [{"input_ids": ids}], **changes)
    with pytest.raises(InputError, match="merge an adapter first"):
        sparsify_(get_peft_model(model, LoraConfig(target_modules="all-linear")), [{"input_ids": ids}])


@pytest.mark.parametrize("method", ["sparsegpt", "wanda", "magnitude"])
def test_memory_that_is_said_is_enough(method) -> None:
    model, pattern = tiny_llama(layers=2, hidden=128, ffn=256), parse_pattern("2:4")
    layers = sparse_layers(model, pattern)
    ids = torch.randint(3, 99, (16, 32), generator=torch.Generator().manual_seed(1))
    batches = [{"input_ids": part} for part in ids.split(2)]
    with LiveBytes(model.parameters()) as live:
        before = live.now
        sparsify_layers(model, layers, pattern, method, batches)
    most = live.peak - before
    said = walk.walk_bytes(model, layers, method, ids.numel())
    assert 0.25 * said < most < 1.02 * said
