"""What llama.cpp's shared library is opened for: an importance matrix, and adapters in use."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader, dequantize
from peft import LoraConfig, get_peft_model
from tiny import tiny_llama
from tokenizing import save_tokenizer, sentence_file

from secateur.checkpoint.convert import export_config
from secateur.checkpoint.serving import lora_file
from secateur.checkpoint.serving.libllama import QUANTISE_WEIGHED, READ_ADAPTED
from secateur.checkpoint.serving.llama_cpp import ADAPTERS, LIBRARY, run_engine
from secateur.cli import main
from secateur.config.prune import ExportConfig
from secateur.runs.quantised.weighed import mean_squares

from .test_gguf_file import ENGINE, LLAMA3, gguf

PACKAGES = list(Path(ENGINE).parents[1].glob("[Ll]ib/**/site-packages"))
MISSING = [wheel for name, wheel in (LIBRARY | ADAPTERS).items() if not any((at / name).exists() for at in PACKAGES)]
needs_library = pytest.mark.skipif(
    bool(MISSING) or not os.access(ENGINE, os.X_OK), reason=f"{', '.join(MISSING)} not at hand: make deploy-engines"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A Llama with a tokenizer that llama.cpp knows."""
    tokenizer = sentence_file(prefix=False)
    llama = tiny_llama(vocab=tokenizer.get_vocab_size(), bias=True, layers=2)
    llama.config.rope_parameters = {"rope_theta": 1e4, **LLAMA3}
    llama.save_pretrained(folder := tmp_path_factory.mktemp("base") / "base")
    return save_tokenizer(folder, tokenizer)


def adapted(model: Path, folder: Path) -> Path:
    """An adapter with ranks and scalings of its own in each layer, which moves predictions."""
    base = tiny_llama(vocab=sentence_file(prefix=False).get_vocab_size(), bias=True, layers=2)
    base.name_or_path = str(model)
    patterns = {"rank_pattern": {"q_proj": 2, "up_proj": 7}, "alpha_pattern": {"v_proj": 3}}
    lora = LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules="all-linear", **patterns)
    adapter = get_peft_model(base, lora)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in adapter.named_parameters():
        if ".lora_B." in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    adapter.save_pretrained(folder)
    return folder


def to_file(adapter: Path, output: Path) -> list[str]:
    return ["export", "--model", str(adapter), "--format", "adapter", "--output", str(output), "--engine", ENGINE]


@needs_library
def test_llama_cpp_with_the_adapter_predicts_what_peft_does(model, tmp_path, capsys) -> None:
    adapter = adapted(model, tmp_path / "a")
    assert main(to_file(adapter, tmp_path / "a.gguf")) == 0
    said = capsys.readouterr().out
    moves, off = (float(said.split(word)[1].split()[0]) for word in ("predictions by ", "those are "))
    assert moves > 0.1
    assert off < 1e-7
    assert "rank 7 for llama.cpp" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.gguf"]


def test_an_adapter_that_llama_cpp_computes_otherwise_is_not_put_in_place(model, tmp_path, capsys, monkeypatch) -> None:
    """Here llama.cpp is one that finds all tokens alike."""

    def engine(_: str, source: str, task: dict, __: Path, ___: str) -> dict:
        tokens = sentence_file(prefix=False).get_vocab_size()
        if source is READ_ADAPTED:
            Path(task["logits"]).write_bytes(bytes(4 * tokens * len(task["ids"])))
        else:
            Path(task["arguments"][task["arguments"].index("--outfile") + 1]).touch()
        return {"vocabulary": tokens}

    monkeypatch.setattr(lora_file, "check_engine", lambda *_: "python")
    monkeypatch.setattr(lora_file, "run_or_refuse", engine)
    assert main(to_file(adapted(model, tmp_path / "a"), tmp_path / "b.gguf")) == 4
    assert "llama.cpp with the adapter predicts" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@needs_library
def test_columns_that_count_are_rounded_best(model, tmp_path) -> None:
    """Of each row's block the first column is all that counts: it is rounded better than without, others worse."""
    whole = tmp_path / "whole.gguf"
    export_config(gguf(model, whole, engine=ENGINE, outtype="f32"))
    name = "blk.0.ffn_up.weight"
    weights = np.ones(64, dtype=np.float32)
    weights[::32] = 1e6
    np.savez(tmp_path / "i.npz", **{name: weights})
    errors = []
    for counts in (True, False):
        np.savez(tmp_path / "i.npz", **{name if counts else "blk.9.ffn_up.weight": weights})
        target = tmp_path / f"{counts}.gguf"
        task = {"source": str(whole), "target": str(target), "ftype": 2, "threads": 1}
        run_engine(ENGINE, QUANTISE_WEIGHED, task | {"importances": str(tmp_path / "i.npz")}, tmp_path)
        values = [tensor(file, name) for file in (whole, target)]
        errors.append(np.square(values[0] - values[1]).mean(0))
    assert errors[0][::32].sum() < 0.3 * errors[1][::32].sum()
    assert errors[0].sum() > errors[1].sum()


def tensor(file: Path, name: str) -> np.ndarray:
    (found,) = (each for each in GGUFReader(file).tensors if each.name == name)
    return dequantize(found.data, found.tensor_type)


@needs_library
def test_an_importance_matrix_of_the_run_s_data(model, tmp_path) -> None:
    (tmp_path / "text.txt").write_text("the cat that sat at the chair in 2024 " * 200)
    report = export_config(
        gguf(model, tmp_path / "i.gguf", engine=ENGINE, quantise="Q4_0", imatrix=True, data=str(tmp_path / "text.txt"))
    )
    assert report.notes[-1] == "importance matrix: of 14 of the 14 weights in its layers"
    plain = export_config(gguf(model, tmp_path / "p.gguf", engine=ENGINE, quantise="Q4_0"))
    assert report.types == plain.types
    assert (tmp_path / "i.gguf").read_bytes() != (tmp_path / "p.gguf").read_bytes()


def test_mean_squares_by_hand() -> None:
    """The first linears get the normed embeddings."""
    model = tiny_llama(layers=1)
    segments = torch.randint(3, 99, (6, 8), generator=torch.Generator().manual_seed(1))
    found = mean_squares(model, segments, torch.device("cpu"))
    normed = model.model.layers[0].input_layernorm(model.model.embed_tokens(segments)).reshape(-1, 64)
    for name in ("q_proj", "k_proj", "v_proj"):
        torch.testing.assert_close(found[f"model.layers.0.self_attn.{name}"], normed.square().mean(0))
    assert len(found) == 8


@pytest.mark.parametrize(
    ("base", "more", "said"),
    [
        ("", [], "does not say which model it was trained on"),
        ("./gone/model", [], "its base model ./gone/model is not there"),
        ("org/elsewhere", [], "its base model org/elsewhere is no folder here"),
        (None, ["--engine", "/no/python"], "--engine /no/python cannot be started"),
    ],
)
def test_bad_input(model, tmp_path, capsys, base, more, said) -> None:
    adapter = adapted(model, tmp_path / "a")
    if base is not None:
        path = adapter / "adapter_config.json"
        path.write_text(path.read_text().replace(str(model), base))
    assert main([*to_file(adapter, tmp_path / "a.gguf")[:-2], *more]) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"format": "gguf"}, "--imatrix goes with --format gguf and --quantise"),
        ({"format": "padded", "quantise": None}, "--imatrix goes with --format gguf and --quantise"),
    ],
)
def test_an_importance_matrix_of_nothing(more, said) -> None:
    assert said in ExportConfig(model="m", output="o", imatrix=True, **more).faults()[0]
