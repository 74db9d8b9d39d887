"""Which files and tensors a checkpoint consists of: the index's, or the one; no codes without their scales."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_tiny

from secateur.models.files import (
    INDEX,
    SINGLE,
    check_checkpoint,
    checkpoint_bytes,
    source_bytes,
    tensor_places,
    weight_files,
)
from secateur.models.loading import load_config, load_model
from secateur.models.sharded_loading import load_sharded
from secateur.models.source import resolve_model
from secateur.system.errors import InputError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("whole") / "model", layers=1)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("parts") / "model", layers=1, max_shard_size="50KB")


@pytest.fixture
def single(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


@pytest.fixture
def sharded(parts, tmp_path):
    return shutil.copytree(parts, tmp_path / "model")


def source_of(folder):
    return resolve_model(str(folder))


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change(folder, changed):
    """Write the weights again as `changed` makes them."""
    save_file(changed(load_file(folder / SINGLE)), folder / SINGLE, {"format": "pt"})


def refused(folder, message, *readers):
    for read in readers or (check_checkpoint, load_model):
        with pytest.raises(InputError, match=message):
            read(source_of(folder))


STRAYS = ("consolidated.safetensors", "adapter_model.safetensors", "model-00009-of-00009.safetensors", "a.safetensors")


@pytest.mark.parametrize("layout", ["single", "sharded"])
def test_what_else_lies_in_the_folder_is_not_the_checkpoint(layout, request):
    folder = request.getfixturevalue(layout)
    files, size, places = weight_files(folder), checkpoint_bytes(folder), tensor_places(folder)
    for name in STRAYS:
        save_file({"model.norm.weight": torch.zeros(64)}, folder / name)
    assert (weight_files(folder), checkpoint_bytes(folder), tensor_places(folder)) == (files, size, places)
    assert source_bytes(source_of(folder)) == size == sum(path.stat().st_size for path in files)


def test_the_single_file_comes_before_the_index_as_in_transformers(sharded):
    state = {name: load_file(path)[name] + 1 for name, path in tensor_places(sharded).items()}
    save_file(state, sharded / SINGLE, {"format": "pt"})
    assert weight_files(sharded) == [sharded / SINGLE]
    assert torch.equal(load_model(source_of(sharded)).model.norm.weight, state["model.norm.weight"])


def test_the_file_that_the_config_names(single):
    (single / SINGLE).rename(single / "other.safetensors")
    edit(single / "config.json", transformers_weights="other.safetensors")
    assert weight_files(single) == [single / "other.safetensors"]
    assert load_model(source_of(single)).model.norm.weight.shape == (64,)
    for name in ("../other.safetensors", "other.bin", 3):
        edit(single / "config.json", transformers_weights=name)
        refused(single, r"transformers_weights is .*take the key out", check_checkpoint)


@pytest.mark.parametrize("weight_map", [None, [], {}, 3, "x", {"model.norm.weight": None}, {"model.norm.weight": 7}])
def test_an_index_that_is_none(sharded, weight_map):
    edit(sharded / INDEX, weight_map=weight_map)
    refused(sharded, rf"{INDEX} is corrupt: .*copy or download it again")


@pytest.mark.parametrize("text", ["null", "[]", "3", '{"weight_map": ' * 3, "[" * 99999])
def test_an_index_of_another_form(sharded, text):
    (sharded / INDEX).write_text(text)
    refused(sharded, rf"{INDEX} is corrupt")


def test_an_index_that_points_elsewhere(sharded):
    places = json.loads((sharded / INDEX).read_text())["weight_map"]
    shutil.copy(sharded / places["model.norm.weight"], sharded.parent / "x.safetensors")
    for outside in ("../x.safetensors", str(sharded.parent / "x.safetensors")):
        edit(sharded / INDEX, weight_map={**places, "model.norm.weight": outside})
        refused(sharded, r"x\.safetensors, which is not in its folder: put the file beside the index")
    other = next(file for file in places.values() if file != places["model.norm.weight"])
    edit(sharded / INDEX, weight_map={**places, "model.norm.weight": other})
    refused(sharded, rf"has model\.norm\.weight in {other}, which does not hold it")
    edit(sharded / INDEX, weight_map={**places, "model.gone.weight": other})
    refused(sharded, rf"has model\.gone\.weight in {other}, which does not hold it")
    edit(sharded / INDEX, weight_map=places, metadata=None)
    refused(sharded, r"has no `metadata`, which transformers needs")


def test_a_tensor_in_two_files(sharded):
    places = tensor_places(sharded)
    name, path = next((n, p) for n, p in places.items() if n != "model.norm.weight")
    other = next(p for p in places.values() if p != path)
    save_file({**load_file(other), name: load_file(path)[name] + 1}, other, {"format": "pt"})
    refused(sharded, rf"{re.escape(name)} is in .* and in .*: copy or download all of them again")


def in_fp8(state):
    return {n: t.to(torch.float8_e4m3fn) if "_proj" in n else t for n, t in state.items()}


def with_scales(suffix, kind):
    def changed(state):
        scales = {n.removesuffix(".weight") + suffix: torch.ones(1) for n in state if "_proj" in n}
        return {n: t.to(kind) if "_proj" in n and kind else t for n, t in state.items()} | scales

    return changed


NUMBERS = {
    "fp8 alone": (in_fp8, r"are numbers of one byte or less \(F8_E4M3\)"),
    "fp8 of the other kind": (lambda s: {n: t.to(torch.float8_e5m2) for n, t in s.items()}, r"\(F8_E5M2\)"),
    "fp8 with scales": (with_scales(".weight_scale", torch.float8_e4m3fn), r"\(F8_E4M3\)"),
    "bytes": (with_scales(".weight_scale_inv", torch.uint8), r"whole numbers \(U8\)"),
    "int8": (with_scales(".weight_scale", torch.int8), r"whole numbers \(I8\)"),
    "floats with scales": (with_scales(".weight_scale", None), r"weight_scale and 6 other scales"),
    "packed under another name": (
        lambda s: {**s, "model.layers.0.mlp.experts.gate_up_proj": torch.zeros(4, 4, dtype=torch.uint8)},
        r"whole numbers \(U8\)",
    ),
    "GPTQ": (
        lambda s: {**s, "model.layers.0.mlp.up_proj.qweight": torch.zeros(4, 4, dtype=torch.int32)},
        r"up_proj\.qweight and 0 other scales",
    ),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_codes_without_a_known_quantisation(single, case):
    changed, message = NUMBERS[case]
    change(single, changed)
    refused(
        single, rf"{message}.*config\.json names no quantization: .*Give the original", check_checkpoint, load_config
    )
    (single / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')
    refused(single, rf"{message}.*only hf_quant_config\.json names", load_model, load_config)
    with pytest.raises(InputError, match=message):
        load_sharded(str(single))


@pytest.mark.parametrize("method", ["modelopt", "w8a8", None, 3])
def test_a_method_that_transformers_does_not_know(single, method):
    edit(single / "config.json", quantization_config={"quant_method": method, "bits": 8})
    said = "no quant_method" if method is None else f"the quant_method {json.dumps(method)}"
    refused(single, rf"quantization_config has {said}, which transformers does not know", load_config, load_model)
    edit(single / "config.json", quantization_config=[1])
    refused(single, r"quantization_config is \[1\], and must be an object", load_config)


def test_a_leftover_record_of_a_quantisation_is_no_reason(single):
    """Plain weights without scales are what they say, whatever an old file beside them is about."""
    for name in ("quantize_config.json", "hf_quant_config.json"):
        (single / name).write_text('{"bits": 4}')
    edit(single / "config.json", quantization_config=None)
    assert load_model(source_of(single)).dtype == torch.float32


def test_tensors_that_the_model_does_not_take(single, caplog):
    plain = load_file(single / SINGLE)
    others = (
        "model.layers.0.self_attn.q_norm.weight", "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.mlp.up_proj.lora_A.weight", "model.layers.0.self_attn.sinks", "rope_freqs.weight",
    )  # fmt: skip
    for name in others:
        save_file({**plain, name: torch.zeros(2)}, single / SINGLE, {"format": "pt"})
        with pytest.raises(InputError, match=rf"1 tensors .* have no place in a Llama.*{re.escape(name)}"):
            load_model(source_of(single))
        with pytest.raises(InputError, match="have no place"):
            load_sharded(str(single))
    harmless = (
        "vision_tower.x.weight", "model.visual.x.weight", "v_head.summary.weight", "mtp.fc.weight",
        "model.layers.0.self_attn.k_scale", "model.layers.0.self_attn.rotary_emb.inv_freq",
    )  # fmt: skip
    save_file({**plain, **{name: torch.zeros(2) for name in harmless}}, single / SINGLE, {"format": "pt"})
    assert torch.equal(load_model(source_of(single)).model.norm.weight, plain["model.norm.weight"])
    assert "left out (images or sound), such as model.visual.x.weight" in caplog.text
    assert "left out (a head for another task), such as v_head.summary.weight" in caplog.text
    load_sharded(str(single))


def test_layers_for_multi_token_prediction_are_left_out(single, caplog):
    plain = load_file(single / SINGLE)
    further = {n.replace("layers.0", "layers.1"): t.clone() for n, t in plain.items() if "layers.0" in n}
    save_file({**plain, **further, "model.layers.1.eh_proj.weight": torch.zeros(2)}, single / SINGLE, {"format": "pt"})
    refused(single, r"weights of layers that config\.json does not know", load_model)
    edit(single / "config.json", num_nextn_predict_layers=1)
    load_model(source_of(single))
    assert "10 weights of the checkpoint are no part" in caplog.text
    assert "left out (layers for multi-token prediction), such as model.layers.1." in caplog.text


def test_numbers_of_one_byte_whose_scale_is_missing(single):
    """transformers, which knows the method, takes the codes of such a weight for its values."""

    def changed(state):
        scales = {f"{n}_scale_inv": torch.ones(1, 1) for n in state if "_proj" in n}
        return in_fp8(state) | scales

    method = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    edit(single / "config.json", quantization_config=method)
    change(single, changed)
    codes = load_file(single / SINGLE)["model.layers.0.mlp.up_proj.weight"].float()
    assert torch.equal(load_model(source_of(single)).model.layers[0].mlp.up_proj.weight.float(), codes)
    change(single, lambda s: {n: t for n, t in s.items() if n != "model.layers.0.mlp.up_proj.weight_scale_inv"})
    refused(
        single, r"mlp\.up_proj and 0 other weights are numbers of one byte without a scale", load_config, load_model
    )
