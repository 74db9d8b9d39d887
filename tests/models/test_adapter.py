"""`--adapter`: the run is told, and tells, what the adapter is; what cannot work is refused before weights are read."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import save_tiny, tiny_llama

from secateur.cli import main
from secateur.config.adapt import AdaptConfig
from secateur.config.options import build
from secateur.config.prune import PruneConfig
from secateur.models.adapter import load_adapter, read_adapter, starting_from_adapter
from secateur.system.errors import InputError
from secateur.system.machine import devices
from secateur.training import finetune

WORDS = "the quick brown fox jumps over the lazy dog while seven wizards box and quarrel about nothing at all. "


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    save_tiny(folder / "model", layers=2)
    (folder / "text.txt").write_text(WORDS * 40)
    make_adapter(folder / "adapter", tiny_llama(layers=2))
    return folder


def make_adapter(folder, model, targets="all-linear"):
    lora = LoraConfig(r=16, lora_alpha=24, lora_dropout=0.25, target_modules=targets, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, lora)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    adapted.save_pretrained(folder)


def command(place, output, *more, adapter=None):
    return [
        "prune", "--model", str(place / "model"), "--data", str(place / "text.txt"), "--output", str(output),
        "--sparsity", "0.3", "--steps", "6", "--batch-size", "2", "--seq-len", "32", "--frequency", "2", "--dtype",
        "float32", *(("--adapter", str(adapter)) if adapter else ()), *more,
    ]  # fmt: skip


def refused(capsys, argv) -> str:
    assert main(argv) == 2
    printed = capsys.readouterr().err
    assert printed.count("secateur: error:") == 1
    assert "Traceback" not in printed
    return printed


def never(*args, **kwargs):
    raise AssertionError("weights were read")


def test_pruning_starts_from_the_adapter_and_says_its_rank(place, tmp_path, capsys) -> None:
    out, adapter = tmp_path / "out", place / "adapter"
    assert main(command(place, out, "--attention", "none", "--lr", "1e-12", adapter=adapter)) == 0
    assert f"LoRA starts from {adapter}: rank 16, alpha 24, dropout 0.25" in capsys.readouterr().err
    result = json.loads((out / "result.json").read_text())
    told = {key: result["config"][key] for key in ("rank", "alpha", "dropout", "rslora")}
    assert told == {"rank": 16, "alpha": 24, "dropout": 0.25, "rslora": False}
    assert set(result["config"]["targets"]) == {f"{name}_proj" for name in (*"qkvo", "gate", "up", "down")}
    assert result["adapter"] == {"name": "adapter", "rank": 16, "ranks": [16], "alpha": 24.0}
    assert "LoRA (rank 16, from an adapter" in (out / "README.md").read_text()
    units = json.loads((out / "units.json").read_text())
    first, name = units["cuts"][0], "layer.1.ffn"
    before = torch.tensor(units["scores_before_cuts"][name])
    assert first["scores"][name] == before[first["removed"][name]].tolist()  # the scores they went with
    assert sorted(first["scores"][name]) == before.sort().values[: len(first["removed"][name])].tolist()  # the lowest
    assert before.min() > 0
    # Next to nothing was learnt, so what was written is the base with the adapter merged, less what was cut.
    written, base, factors = (
        load_file(folder / name)
        for folder, name in ((out, "model.safetensors"), (place / "model", "model.safetensors"),
                             (adapter, "adapter_model.safetensors"))
    )  # fmt: skip
    path = "model.layers.1.mlp.gate_proj"
    delta = factors[f"base_model.model.{path}.lora_B.weight"] @ factors[f"base_model.model.{path}.lora_A.weight"]
    kept = units["pools"][name]["kept"]
    expected = (base[f"{path}.weight"] + 24 / 16 * delta)[kept]
    assert len(kept) < 96
    torch.testing.assert_close(written[f"{path}.weight"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--rank", "8"), "--rank 8 contradicts --adapter"),
        (("--alpha", "7"), "which has 24: leave --alpha out"),
        (("--dropout", "0"), "--dropout 0.0 contradicts"),
        (("--rslora",), "--rslora True contradicts"),
        (("--targets", "q_proj"), "--targets q_proj contradicts"),
    ],
)
def test_options_that_contradict_the_adapter_are_refused(place, tmp_path, capsys, more, words) -> None:
    assert words in refused(capsys, command(place, tmp_path / "out", *more, adapter=place / "adapter"))


def test_options_that_say_the_same_are_not(place) -> None:
    given = {"model": "m", "data": ("d",), "output": "o", "adapter": str(place / "adapter")}
    config = starting_from_adapter(build(PruneConfig, {**given, "rank": 16, "alpha": 24}))
    assert (config.rank, config.alpha, config.dropout) == (16, 24, 0.25)
    assert starting_from_adapter(config) == config
    adapted = starting_from_adapter(build(AdaptConfig, {**given, "rank": 4}))
    assert (adapted.rank, adapted.init_rank, adapted.dropout) == (4, 16, 0.25)
    with pytest.raises(InputError, match=r"--init-rank 8 contradicts .* has 16"):
        starting_from_adapter(build(AdaptConfig, {**given, "rank": 4, "init_rank": 8}))
    with pytest.raises(InputError, match=r"--alpha contradicts"):
        starting_from_adapter(build(AdaptConfig, {**given, "rank": 4, "alpha": 24}))


def damaged(place, folder, how):
    shutil.copytree(place / "adapter", folder)
    weights = folder / "adapter_model.safetensors"
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif how == "a tensor is missing":
        tensors = load_file(weights)
        del tensors["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"]
        save_file(tensors, weights)
    elif how == "no weights":
        weights.unlink()
    elif how == "another model's":
        shutil.rmtree(folder)
        make_adapter(folder, tiny_llama(layers=2, ffn=48))
    elif how == "more layers":
        shutil.rmtree(folder)
        make_adapter(folder, tiny_llama(layers=3))
    else:
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": ')
    return folder


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("truncated", "adapter_model.safetensors is corrupt or truncated"),
        ("a tensor is missing", "lacks 1 of the 28 tensors"),
        ("no weights", "no adapter_model.safetensors there"),
        ("another model's", "down_proj.lora_A.weight is (16, 48) and this model has (16, 96) there"),
        ("more layers", "model.layers.2.mlp.down_proj.lora_A.weight is (16, 96) and this model has no such module"),
        ("half a config", "adapter_config.json cannot be read"),
    ],
)
def test_a_damaged_adapter_is_refused_before_weights_are_read(place, tmp_path, capsys, monkeypatch, how, words) -> None:
    monkeypatch.setattr(finetune, "load_model", never)
    folder = damaged(place, tmp_path / "adapter", how)
    said = refused(capsys, command(place, tmp_path / "out", adapter=folder))
    assert words in said
    assert str(folder) in said
    with pytest.raises(InputError):
        load_adapter(tiny_llama(layers=2), str(folder))


def test_bench_refuses_a_damaged_adapter(place, tmp_path, capsys) -> None:
    folder = damaged(place, tmp_path / "adapter", "truncated")
    argv = ["bench", "--model", str(place / "model"), "--adapter", str(folder), "--no-memory"]
    assert "corrupt or truncated" in refused(capsys, argv)


def test_ranks_that_differ_are_told(tmp_path) -> None:
    lora = LoraConfig(r=4, target_modules="all-linear", rank_pattern={"q_proj": 2, "down_proj": 7})
    get_peft_model(tiny_llama(layers=2), lora).save_pretrained(tmp_path / "adapter")
    adapter = read_adapter(str(tmp_path / "adapter"))
    assert adapter.ranks == [2, 4, 7]
    assert "ranks from 2 to 7" in adapter.words


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--targets", "zzz_proj"), "--targets zzz_proj: the model has no such module"),
        (("--targets", "q_proj", "dwn_proj", "--criterion", "magnitude"), "--targets dwn_proj"),
        (("--targets", "q_proj", "v_proj"), "LoRA does not cover model.layers.0.self_attn.k_proj and"),
        (
            ("--targets", "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "--score-linears", "rows"),
            "LoRA does not cover model.layers.0.self_attn.o_proj and 3 other",
        ),
        (("--dtype", "float16"), "--dtype float16 trains on a GPU only"),
    ],
)
def test_what_lora_cannot_do_is_refused_before_weights_are_read(
    place, tmp_path, capsys, monkeypatch, more, words
) -> None:
    monkeypatch.setattr(finetune, "load_model", never)
    monkeypatch.setattr(devices, "accelerator", lambda: None)
    argv = command(place, tmp_path / "out", *more)
    assert words in refused(capsys, argv)
    assert not (tmp_path / "out.run").exists()


def test_lora_on_a_weight_that_embedding_and_head_share_is_refused_before_weights_are_read(
    place, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(finetune, "load_model", never)
    save_tiny(tmp_path / "model", layers=2, tied=True)
    shutil.copy(place / "text.txt", tmp_path)
    argv = command(tmp_path, tmp_path / "out", "--targets", "embed_tokens", "--criterion", "magnitude")
    assert "its weight is the input embedding's too" in refused(capsys, argv)
