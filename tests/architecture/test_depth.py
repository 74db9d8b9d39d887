"""Whole layers that go: of every registered model type the stock class, told so by its config, computes what the model
computes with those layers skipped (one process without secateur reads all)."""

import pytest
import torch
from tiny import tiny_llama
from transformers import AutoConfig, GPT2Config, GPT2LMHeadModel

from secateur.architecture.depth import Skipped, without_layers
from secateur.architecture.discovery import find_units
from secateur.architecture.families import FAMILIES
from secateur.checkpoint.comparing import logits_of
from secateur.checkpoint.export import build_small, save_model
from secateur.checkpoint.verify import Check, verify, weights_checksum
from secateur.models.benchmark import parameter_count
from secateur.models.surgery import merged_and_sliced, shrink_
from secateur.pruning.masks import Masks
from secateur.system.errors import InputError
from tests.architecture.rows import IDS, basic, tiny

NAMES = [*basic.TYPES, "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "codegen", "gpt_neox_japanese", "mpt"]
"""The last three return tuples, as some of the first do."""
FIRST = ("qwen2/layer_types", "qwen3/layer_types", "qwen2_moe")
"""Of these the first layer goes, of the others the second: a config that said the rest by a period, a first number or
old numbers would then say it wrongly."""


def layer_units(model, name):
    return find_units(model, FAMILIES[name.split("/")[0]], kinds=("layers",))


def without(units, *gone):
    return {pool.name: torch.tensor([pool.layer not in gone]) for pool in units.pools}


def skipping(model, path):
    """From now on what comes out of a layer is what came in; by hand."""

    def hook(module, args, kwargs, output):
        states = args[0] if args else kwargs["hidden_states"]
        return (states, *output[1:]) if isinstance(output, tuple) else states

    return model.get_submodule(path).register_forward_hook(hook, with_kwargs=True)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Type -> logits with a layer skipped, the whole model's, those of masks and of the shrunk model, what one fresh
    process read back."""
    found, checks = {}, {}
    for name in NAMES:
        model, folder = tiny(name), tmp_path_factory.mktemp("depth")
        units, whole = layer_units(model, name), logits_of(model, IDS)
        keep = without(units, 0 if name in FIRST else 1)
        (path,) = (pool.path for pool in units.pools if not keep[pool.name])
        handle = skipping(model, path)
        wanted = logits_of(model, IDS)
        handle.remove()
        masks = Masks(units, {}, {pool.path: model.get_submodule(pool.path) for pool in units.pools})
        masks.update(keep)
        masked = logits_of(model, IDS)
        tensors = merged_and_sliced(model, units, keep)  # of the masked model, whose layers are all there
        small = build_small(model.config, units.family, units.shapes_after(keep), tensors, torch.float32, "keep")
        masks.remove()
        shrink_(model, units, keep)
        save_model(small, folder, None)
        lost = parameter_count(tiny(name)) - parameter_count(small)
        found[name] = wanted, whole, masked, logits_of(model, IDS), lost == units.removed_params(keep)
        checks[name] = Check(folder, IDS, wanted, parameter_count(small), checksum=weights_checksum(small))
        again = layer_units(model, name)  # the shrunk model's own
        last = build_small(
            model.config, again.family, again.shapes, merged_and_sliced(model, again, without(again)), torch.float32,
            "keep",
        )  # fmt: skip
        assert weights_checksum(last) == weights_checksum(small)
    return found, dict(zip(checks, verify(list(checks.values())), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_stock_class_computes_the_model_with_the_layer_skipped(written, name) -> None:
    wanted, whole, masked, shrunk, counted = written[0][name]
    assert torch.equal(masked, wanted)
    assert torch.equal(shrunk, wanted)
    scale = wanted.abs().max()
    assert (whole - wanted).abs().max() > 0.1 * scale, "the layer does next to nothing"
    assert written[1][name].difference <= 1e-5 * scale
    assert written[1][name].class_name == type(tiny(name)).__name__
    assert counted


def test_what_a_config_says_of_each_layer() -> None:
    given = {"num_hidden_layers": 5, "num_experts": 2, "decoder_sparse_step": 2, "mlp_only_layers": [3]}
    config = AutoConfig.for_model("qwen2_moe", **given, max_window_layers=3, use_sliding_window=True, sliding_window=8)
    config.eos_token_id = [1, 2, 3, 4, 5]  # as many as layers, and not of them
    small = without_layers(config, [1, 3, 4])
    assert small.layer_types == [config.layer_types[number] for number in (1, 3, 4)]
    assert (small.num_hidden_layers, small.max_window_layers) == (3, 1)
    assert (small.decoder_sparse_step, small.mlp_only_layers) == (1, [1, 2])  # a mixture stood in layer 1 alone
    assert small.eos_token_id == [1, 2, 3, 4, 5]
    gemma = AutoConfig.for_model("gemma3_text", num_hidden_layers=4, sliding_window_pattern=2)
    kept = without_layers(gemma, [0, 2, 3])
    assert kept.layer_types == ["sliding_attention", "sliding_attention", "full_attention"]
    assert "sliding_window_pattern" not in kept.to_dict()


def test_generation_with_the_cache_knows_how_long_it_is() -> None:
    """A model asks its first layer, which has gone, for the cache's length."""
    model, other = tiny_llama(), tiny_llama()
    units = layer_units(model, "llama")
    shrink_(model, units, without(units, 0))
    assert isinstance(model.model.layers[0], Skipped)
    skipping(other, "model.layers.0")
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(model.generate(IDS, **options), other.generate(IDS, **options))


def test_layers_that_depend_on_their_number_stay() -> None:
    config = GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=64, scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(InputError, match="scale_attn_by_inverse_layer_idx = True each layer divides"):
        find_units(GPT2LMHeadModel(config), FAMILIES["gpt2"], kinds=("layers",))
    with pytest.raises(InputError, match="the decoder's read the encoder's"):
        find_units(tiny("t5"), FAMILIES["t5"], kinds=("layers",))
