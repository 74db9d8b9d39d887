"""Attention and FFN blocks that go, each as a whole: masked is shrunk is what a process without secateur reads back."""

import pytest
import torch

from secateur import Pruner
from secateur.architecture.discovery import find_units
from secateur.architecture.families import FAMILIES
from secateur.architecture.layered import layered_shapes
from secateur.checkpoint.comparing import logits_of
from secateur.checkpoint.export import build_small, save_model
from secateur.checkpoint.padding import padded_shape, padded_state
from secateur.checkpoint.serving.layouts import check_period
from secateur.checkpoint.verify import Check, verify, weights_checksum
from secateur.models.benchmark import parameter_count
from secateur.models.surgery import merged_and_sliced, shrink_
from secateur.pruning.masks import Masks
from secateur.system.errors import InputError
from tests.architecture.rows import IDS, tiny

NAMES = ["llama", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt_neox", "gpt2", "opt", "gptj", "granite", "olmo"]
GONE = {(0, "attention_block"), (1, "ffn_block"), (2, "attention_block"), (2, "ffn_block")}


def block_units(model, name):
    return find_units(model, FAMILIES[name], kinds=("blocks",))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Type -> logits by hand, whole, of masks and of the shrunk model; what one fresh process read back."""
    found, checks = {}, {}
    for name in NAMES:
        model, folder = tiny(name), tmp_path_factory.mktemp("blocks")
        units, whole = block_units(model, name), logits_of(model, IDS)
        keep = {pool.name: torch.tensor([(pool.layer, pool.kind) not in GONE]) for pool in units.pools}
        lasts = [pool.gates[0].linear for pool in units.pools if not keep[pool.name]]
        handles = [
            model.get_submodule(path).register_forward_pre_hook(lambda m, args: (args[0] * 0, *args[1:]))
            for path in lasts
        ]
        wanted = logits_of(model, IDS)
        for handle in handles:
            handle.remove()
        masks = Masks(units, {path: model.get_submodule(path) for path in units.linears}, {})
        masks.update(keep)
        masked = logits_of(model, IDS)
        tensors = merged_and_sliced(model, units, keep)
        small = build_small(model.config, units.family, units.shapes_after(keep), tensors, torch.float32, "keep")
        masks.remove()
        shrink_(model, units, keep)
        save_model(small, folder, units.family)
        counted = parameter_count(tiny(name)) - parameter_count(small) == units.removed_params(keep)
        again = block_units(model, name)
        assert [(pool.layer, pool.kind) for pool in again.pools] == [(0, "ffn_block"), (1, "attention_block")]
        assert layered_shapes(small.config) == again.shapes
        assert find_units(small, units.family, "none").shapes == again.shapes
        shapes = layered_shapes(small.config)
        wide = (padded_shape(small.config, units.family, shapes, "keep"),) * len(shapes)
        tensors = padded_state(small.state_dict(), units.family, shapes, wide)
        padded = build_small(small.config, units.family, wide, tensors, torch.float32, "keep")
        stock = type(padded) is type(tiny(name))
        found[name] = wanted, whole, masked, logits_of(model, IDS), counted, logits_of(padded, IDS), stock
        parameters = parameter_count(small)
        checks[name] = Check(folder, IDS, wanted, parameters, remote_code=True, checksum=weights_checksum(small))
    return found, dict(zip(checks, verify(list(checks.values())), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_process_computes_the_model_without_the_blocks(written, name) -> None:
    """Its greedy text with the cache is that without, though the first layer has no keys to count."""
    wanted, whole, masked, shrunk, counted, padded, stock = written[0][name]
    scale = wanted.abs().max()
    torch.testing.assert_close(masked, wanted, rtol=0.0, atol=float(1e-5 * scale))
    torch.testing.assert_close(shrunk, wanted, rtol=0.0, atol=float(1e-5 * scale))
    torch.testing.assert_close(padded, wanted, rtol=0.0, atol=float(1e-5 * scale))
    assert stock
    assert (whole - wanted).abs().max() > 0.1 * scale
    assert written[1][name].difference <= 1e-5 * scale
    assert counted


def test_where_no_block_can_go() -> None:
    for name in ("mixtral", "olmo2", "bloom"):
        with pytest.raises(InputError, match=rf"a {name}'s attention cannot go alone: .* Use .*layers"):
            block_units(tiny(name), name)


def test_llama_cpp_takes_layers_by_a_period() -> None:
    config = tiny("gemma2").config
    check_period(config, "it")
    config.layer_types = ["sliding_attention", "sliding_attention", "full_attention"]
    with pytest.raises(InputError, match="by its layer_types the kinds come otherwise"):
        check_period(config, "it")


def test_a_model_without_blocks_is_not_pruned_again() -> None:
    model = tiny("llama")
    units = block_units(model, "llama")
    keep = {pool.name: torch.tensor([(pool.layer, pool.kind) not in GONE]) for pool in units.pools}
    tensors = merged_and_sliced(model, units, keep)
    small = build_small(model.config, units.family, units.shapes_after(keep), tensors, torch.float32, "keep")
    with pytest.raises(InputError, match="some layers have no attention or no FFN"):
        Pruner(small, sparsity=0.2, criterion="magnitude")
