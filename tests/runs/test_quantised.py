"""A quantised checkpoint: what a fresh process computes with is what was rounded, and its perplexity is said."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_llama, tiny_tokenizer

from secateur.architecture.stock import LAYERS_KEY
from secateur.cli import main
from secateur.runs.quantised import command

WORDS = "the quick brown fox jumps over the lazy dog while seven wizards box and quarrel about nothing at all. "


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantised")
    model = tiny_llama(layers=2, hidden=64, ffn=88)
    model.config.max_position_embeddings = 512
    model.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    (folder / "text.txt").write_text(WORDS * 60)
    return folder


def export(place, output, *more) -> list[str]:
    return [
        "export", "--model", str(place / "model"), "--format", "compressed-tensors", "--output", str(output),
        "--data", str(place / "text.txt"), *more,
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_the_file_s_weights_are_within_the_scheme_s_step(place, tmp_path, capsys, monkeypatch, kind) -> None:
    pytest.importorskip("compressed_tensors", reason="pip install secateur[quant]")
    monkeypatch.setattr(command, "MOST_KL", {"int8": 5.0, "int4": 50.0})  # of a random model it says little
    out = tmp_path / "out"
    assert main(export(place, out, "--quantise", kind)) == 0
    said = capsys.readouterr().out
    assert re.search(rf"{kind}, .* perplexity [\d.]+ -> [\d.]+ on [\d,]+ tokens of .*text.txt", said)
    assert ("Linears of 64 x 88, 88 x 64 are in 8 bits" in said) == (kind == "int4"), said
    tensors, dense = load_file(out / "model.safetensors"), load_file(place / "model" / "model.safetensors")
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    assert len(config["config_groups"]) == (1 if kind == "int8" else 2)
    for name in (name for name in dense if "proj" in name):
        if kind == "int8" or "mlp" in name:  # 32 does not divide 88
            found = tensors[name].float() * tensors[f"{name}_scale"].float()
            assert ((found - dense[name]).abs() <= tensors[f"{name}_scale"] * 0.51).float().mean() > 0.99
        else:
            assert f"{name}_packed" in tensors
            assert list(tensors[f"{name}_shape"]) == list(dense[name].shape)
    assert torch.equal(tensors["model.embed_tokens.weight"], dense["model.embed_tokens.weight"])


def test_what_engines_fuse_has_one_grid() -> None:
    """Keys and values of 16 rows go with queries of 64; 96 inputs are three groups."""
    sizes = {"a.q": (96, 64), "a.k": (96, 16), "a.o": (64, 96), "m.gate": (96, 128), "m.down": (128, 96)}
    sizes |= {"m.odd": (88, 96)}
    found = command.grids_of("int4", {name: torch.nn.Linear(*size) for name, size in sizes.items()})
    assert {name: (grid.bits, grid.group) for name, grid in found.items()} == {
        "a.q": (8, None), "a.k": (8, None), "a.o": (4, 64), "m.gate": (4, 32), "m.down": (4, 128), "m.odd": (8, None),
    }  # fmt: skip


def test_another_file_is_noticed(place, tmp_path, capsys, monkeypatch) -> None:
    pytest.importorskip("compressed_tensors", reason="pip install secateur[quant]")

    def spoilt(model, made):
        tensors = kept(model, made)
        name = "model.layers.1.mlp.up_proj.weight_scale"
        return tensors | {name: tensors[name] * 1.01}

    kept = command.tensors_of
    monkeypatch.setattr(command, "tensors_of", spoilt)
    assert main(export(place, tmp_path / "out", "--quantise", "int8")) == 4
    assert "reads other weights of model.layers.1.mlp.up_proj" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("trouble", "more", "said"),
    [
        ("package", [], r"needs a package: pip install 'secateur\[quant\]'"),
        (
            "format",
            ["--format", "padded", "--quantise", "int8"],
            "--quantise int8 goes with --format compressed-tensors",
        ),
        ("layered", [], "its layers differ"),
        ("data", [], "has no record of the text that it was trained on: name one with --data"),
        ("short", [], "1,024 are needed at least|1024 are needed at least"),
        ("kind", ["--quantise", "int3"], "--quantise is 'int3'"),
    ],
)
def test_bad_input(place, tmp_path, capsys, monkeypatch, trouble, more, said) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for path in (place / "model").iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    argv = [word.replace(str(place / "model"), str(model)) for word in export(place, tmp_path / "out", *more)]
    monkeypatch.setattr(command, "find_spec", lambda name: None if trouble == "package" else object())
    if trouble == "layered":
        values = json.loads((model / "config.json").read_text())
        sizes = [{"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": n} for n in (88, 80)]
        values |= {LAYERS_KEY: sizes, "auto_map": {"AutoModelForCausalLM": "modeling_secateur.X"}}
        (model / "config.json").write_text(json.dumps(values))
    if trouble == "data":
        argv = [word for word in argv if word not in ("--data", str(place / "text.txt"))]
    if trouble == "short":
        (tmp_path / "few.txt").write_text("few words")
        argv[argv.index("--data") + 1] = str(tmp_path / "few.txt")
    assert main(argv) == 2
    printed = capsys.readouterr().err
    assert re.search(said, printed), printed
    assert not (tmp_path / "out").exists()
