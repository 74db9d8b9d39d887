"""What a checkpoint's files hold is what the configuration says, whatever config.json says."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_tiny, tiny_llama
from tiny_gguf import save_gguf
from transformers import GPT2Config, GPT2LMHeadModel

from secateur.cli import main
from secateur.models.benchmark import parameter_count
from secateur.models.loading import load_config, load_model
from secateur.models.source import ModelSource, resolve_model
from secateur.models.stored import stored_bytes, untie_
from secateur.system.errors import InputError

WORDS = "the quick brown fox jumps over the lazy dog while seven wizards box and quarrel about nothing at all. "


def edit_config(folder, **changes):
    path = folder / "config.json"
    config = {key: value for key, value in {**json.loads(path.read_text()), **changes}.items() if value is not None}
    path.write_text(json.dumps(config))
    return folder


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def opened(folder):
    source = resolve_model(str(folder))
    return load_config(source), load_model(source)


@pytest.mark.parametrize("shards", ["5GB", "60KB"])
def test_two_tensors_that_differ_are_not_tied(tmp_path, shards, caplog) -> None:
    folder = edit_config(save_tiny(tmp_path / "m", layers=1, max_shard_size=shards), tie_word_embeddings=True)
    config, model = opened(folder)
    assert config.tie_word_embeddings is model.config.tie_word_embeddings is False
    assert parameter_count(model) == parameter_count(tiny_llama(layers=1, tied=False))
    assert torch.equal(model.lm_head.weight, tiny_llama(layers=1).lm_head.weight)
    assert caplog.text.count("lm_head.weight and model.embed_tokens.weight differ in the file") == 1


def test_two_that_are_equal_are(tmp_path) -> None:
    def twice(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    config, model = opened(rewrite(save_tiny(tmp_path / "m", layers=1, tied=True), twice))
    assert config.tie_word_embeddings is True
    assert model.lm_head.weight is model.model.embed_tokens.weight
    apart = edit_config(tmp_path / "m", tie_word_embeddings=False)
    config, model = opened(apart)  # two tensors, and nothing says that they are one
    assert config.tie_word_embeddings is False
    assert model.lm_head.weight is not model.model.embed_tokens.weight


def test_only_the_head_is_there(tmp_path) -> None:
    def renamed(tensors):
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")

    config, model = opened(rewrite(save_tiny(tmp_path / "m", layers=1, tied=True), renamed))
    assert config.tie_word_embeddings is True
    assert torch.equal(model.model.embed_tokens.weight, tiny_llama(layers=1, tied=True).model.embed_tokens.weight)


def test_no_head_and_not_tied_names_the_remedy(tmp_path) -> None:
    folder = edit_config(save_tiny(tmp_path / "m", layers=1, tied=True), tie_word_embeddings=False)
    with pytest.raises(InputError, match=r"such as lm_head\.weight; .*tie_word_embeddings: true"):
        opened(folder)


def test_names_without_the_models_prefix(tmp_path) -> None:
    """The first GPT-2 checkpoints are named so."""
    GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2)).save_pretrained(tmp_path)

    def bare(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["lm_head.weight"] = tensors["wte.weight"] + 1

    config, model = opened(rewrite(tmp_path, bare))
    assert config.tie_word_embeddings is False
    assert torch.equal(model.lm_head.weight, model.transformer.wte.weight + 1)


def test_a_model_that_was_loaded_elsewhere(tmp_path) -> None:
    model = tiny_llama(layers=1)
    model.config.tie_word_embeddings = True  # as transformers leaves it
    untie_(model)
    assert model.config.tie_word_embeddings is False
    tied = tiny_llama(layers=1, tied=True)
    untie_(tied)
    assert tied.config.tie_word_embeddings is True


F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@pytest.mark.parametrize(
    ("held", "named", "read", "told"),
    [
        (BF16, None, BF16, ""),
        (F16, None, F16, ""),
        (F32, None, F32, ""),
        (BF16, "bfloat16", BF16, ""),
        (BF16, "float32", BF16, "the weights are bfloat16 and config.json says float32: they stay bfloat16"),
        (F16, "bfloat16", F16, "they stay float16"),
        (F32, "bfloat16", BF16, "the weights are float32 and config.json says bfloat16: read, and a result is written"),
    ],
)
def test_precision_is_that_of_the_weights(tmp_path, held, named, read, told, caplog) -> None:
    folder = edit_config(save_tiny(tmp_path / "m", layers=1, dtype=held), dtype=named)
    config, model = opened(folder)
    assert (config.dtype, model.dtype) == (read, read)
    assert caplog.text.count(told) == (1 if told else caplog.text.count(""))
    assert told or not caplog.text
    assert stored_bytes(resolve_model(str(folder))) == parameter_count(model) * held.itemsize


@pytest.mark.parametrize("named", [None, "bfloat16"])
def test_some_tensors_are_in_another_precision(tmp_path, named, caplog) -> None:
    folder = edit_config(save_tiny(tmp_path / "m", layers=1, dtype=BF16), dtype=named)

    def widen(tensors):
        tensors |= {name: value.float() for name, value in tensors.items() if "norm" in name}

    config, model = opened(rewrite(folder, widen))
    assert config.dtype == BF16
    assert {parameter.dtype for parameter in model.parameters()} == {BF16}
    assert "3 of 12 tensors (0.8% of the bytes) are float32, the others bfloat16: all are read" in caplog.text


@pytest.mark.parametrize(("kind", "read"), [("F32", F32), ("F16", F16), ("BF16", BF16)])
def test_precision_of_a_gguf(tmp_path, kind, read) -> None:
    save_gguf(tmp_path / "m.gguf", layers=1, kind=kind)
    config, model = opened(tmp_path / "m.gguf")
    assert (config.dtype, model.dtype) == (read, read)
    assert config.tie_word_embeddings is False  # it has an `output.weight`


def test_no_files_yet() -> None:
    """Of a hub model that was not downloaded nothing is known, and nothing is said."""
    assert stored_bytes(ModelSource("org/none", "org/none-that-is-cached")) is None


def test_a_run_follows_the_files(tmp_path, capsys) -> None:
    """Two embeddings that differ and bfloat16 weights, of which config.json says one and nothing."""
    folder = edit_config(save_tiny(tmp_path / "m", layers=2, dtype=BF16), tie_word_embeddings=True, dtype=None)
    (tmp_path / "t.txt").write_text(WORDS * 20)
    out = tmp_path / "out"
    argv = [
        "prune", "--model", str(folder), "--data", str(tmp_path / "t.txt"), "--output", str(out), "--steps", "2",
        "--frequency", "1", "--prune-start", "0", "--prune-end", "1", "--batch-size", "2", "--seq-len", "32",
        "--dtype", "float32", "--target-bytes", "130kB", "--stream-export",
    ]  # fmt: skip
    assert main(argv) == 0
    written, dense = load_file(out / "model.safetensors"), load_file(folder / "model.safetensors")
    assert {value.dtype for value in written.values()} == {BF16}
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        assert torch.equal(written[name], dense[name])
    config, result = (json.loads((out / name).read_text()) for name in ("config.json", "result.json"))
    assert (config["tie_word_embeddings"], config["dtype"]) == (False, "bfloat16")
    assert result["dense"]["parameters"] == parameter_count(tiny_llama(layers=2))
    assert 125_000 < 2 * result["pruned"]["parameters"] <= 130_500
    assert "stored_bytes" not in result["dense"]


def test_halving_is_not_credited_to_pruning(tmp_path, capsys) -> None:
    folder = edit_config(save_tiny(tmp_path / "m", layers=2), dtype="bfloat16")
    (tmp_path / "t.txt").write_text(WORDS * 20)
    out = tmp_path / "out"
    argv = [
        "prune", "--model", str(folder), "--data", str(tmp_path / "t.txt"), "--output", str(out), "--steps", "2",
        "--frequency", "1", "--prune-start", "0", "--prune-end", "1", "--batch-size", "2", "--seq-len", "32",
        "--dtype", "float32", "--sparsity", "0.25",
    ]  # fmt: skip
    assert main(argv) == 0
    result = json.loads((out / "result.json").read_text())
    dense, pruned = result["dense"], result["pruned"]
    assert pruned["bytes"] / dense["bytes"] == pytest.approx(pruned["parameters"] / dense["parameters"], rel=0.01)
    assert dense["stored_bytes"] > 1.9 * dense["bytes"]
    assert "weights on disk: both in bfloat16; the files of the model that was pruned take 314.7 kB" in (
        capsys.readouterr().out
    )
    assert "both in bfloat16 (the base model's files have 314,712)" in (out / "README.md").read_text()
    assert "both in bfloat16 (dense files: 314.7 kB)" in (out / "report.html").read_text()


def test_a_quantisation_that_the_file_has_not_got_is_left_out(tmp_path, caplog) -> None:
    folder = save_tiny(tmp_path / "m", layers=1)
    expected = load_model(resolve_model(str(folder))).state_dict()
    for given in ({"quant_method": "bitsandbytes", "load_in_4bit": True}, {"load_in_8bit": True},
                  {"quant_method": "gptq", "bits": 4}, {"quant_method": "fp8"}):  # fmt: skip
        config, model = opened(edit_config(folder, quantization_config=given))
        assert not hasattr(config, "quantization_config")
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    for method in ("bitsandbytes", "gptq", "fp8"):
        assert f"has a quantization_config ({method}), and the weights in the file are plain numbers" in caplog.text


def test_one_that_computes_with_plain_weights_is_not(tmp_path) -> None:
    online = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
    folder = edit_config(save_tiny(tmp_path / "m", layers=1), quantization_config=online)
    assert load_config(resolve_model(str(folder))).quantization_config
