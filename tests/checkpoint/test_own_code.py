"""Checkpoints that bring Python of their own: what runs, what is said, and what cannot be written is known before."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import save_tiny
from transformers import AutoModelForCausalLM

from secateur.architecture.families import FAMILIES, Family
from secateur.architecture.layered import MODULE
from secateur.checkpoint.own_code import check_own_code
from secateur.cli import main
from secateur.models.loading import load_config, load_model
from secateur.models.source import ModelSource
from secateur.system.errors import InputError

CODE = """
from transformers import LlamaForCausalLM

class Own(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * {factor}
        return output
"""
TYPE = """
from transformers import LlamaConfig

class Config(LlamaConfig):
    model_type = "mine"
"""
TRAIN = ["--steps", "2", "--seq-len", "32", "--batch-size", "2", "--dtype", "float32"]
SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "eos_token_id", "pad_token_id",
)  # fmt: skip
RANKS = ["--init-rank", "2", "--rank", "2"]


def source_of(folder: Path) -> ModelSource:
    return ModelSource(str(folder), str(folder))


def with_code(folder: Path, factor: float, **changes: Any) -> Path:
    save_tiny(folder, layers=2)
    name = f"modeling_{folder.name}"
    (folder / f"{name}.py").write_text(CODE.format(factor=factor))
    values = json.loads((folder / "config.json").read_text()) | {"auto_map": {"AutoModelForCausalLM": f"{name}.Own"}}
    (folder / "config.json").write_text(json.dumps(values | changes))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """`half` halves the logits of a Llama, `same` is one, `mine` is another type; `lay` has layers that differ."""
    place = tmp_path_factory.mktemp("code")
    (place / "d.txt").write_text("the cat sat on the mat. " * 99)
    with_code(place / "half", 0.5)
    with_code(place / "same", 1)
    classes = {"AutoConfig": "configuration_mine.Config", "AutoModelForCausalLM": "modeling_mine.Own"}
    mine = with_code(place / "mine", 0.5, model_type="mine", auto_map=classes)
    (mine / "configuration_mine.py").write_text(TYPE)
    code = (mine / "modeling_mine.py").read_text().replace("\nclass", "from .configuration_mine import Config\n\nclass")
    code = code.replace("    def", "    config_class = Config\n\n    def", 1)
    (mine / "modeling_mine.py").write_text(code)
    save_tiny(place / "base", layers=2)
    options = ["--data", str(place / "d.txt"), "--sparsity", "0.3", "--frequency", "1", "--prune-start", "0", *TRAIN]
    assert (
        main(["prune", "--model", f"{place}/base", "--output", f"{place}/lay", *options, "--allocation", "global"]) == 0
    )
    return place


def adapt(place: Path, name: str, output: Path, *more: str) -> int:
    words = ["--model", f"{place}/{name}", "--data", f"{place}/d.txt", "--output", str(output)]
    return main(["adapt", *words, *RANKS, *TRAIN, *more])


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.arange(64).unsqueeze(0)).logits


def test_code_that_is_not_run_is_told_of(folders, caplog) -> None:
    load_config(source_of(folders / "half"))
    assert "has code of its own (modeling_half.py), which is not run: it is taken for a stock llama" in caplog.text
    caplog.clear()
    load_config(source_of(folders / "half"), trust_remote_code=True)
    load_config(source_of(folders / "lay"))
    load_config(source_of(folders / "base"))
    assert not caplog.text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("half", r"modeling_half\.py\) does not compute what .*logits differ by .*: prune it from Python"),
        ("mine", r"is a mine, a type of its own \(modeling_mine\.py, configuration_mine\.py\).*train an adapter"),
    ],
)
def test_what_cannot_be_written_is_refused_before(name, message, folders, tmp_path, capsys) -> None:
    config = load_config(source_of(folders / name), trust_remote_code=True)
    with pytest.raises(InputError, match=message) as told:
        check_own_code(config, FAMILIES["llama"])
    assert len(str(told.value)) < 500
    words = ["--data", f"{folders}/d.txt", "--output", f"{tmp_path}/out", "--sparsity", "0.3", *TRAIN]
    words += ["--trust-remote-code", "--family", "llama", "--allocation", "protected"]
    assert main(["prune", "--model", f"{folders}/{name}", *words]) == 2
    assert str(told.value) in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_code_that_computes_what_stock_does_can_be_pruned(folders) -> None:
    check_own_code(load_config(source_of(folders / "same"), trust_remote_code=True), FAMILIES["llama"])


def test_an_adapter_is_merged_into_a_model_with_its_code(folders, tmp_path) -> None:
    assert adapt(folders, "mine", tmp_path / "out", "--merge", "--trust-remote-code") == 0
    assert (tmp_path / "out" / "modeling_mine.py").is_file()
    assert (
        "trust_remote_code=True" in json.loads((tmp_path / "out" / "result.json").read_text())["export"]["loads_with"]
    )
    before = logits(load_model(source_of(folders / "mine"), trust_remote_code=True))
    after = logits(load_model(source_of(tmp_path / "out"), trust_remote_code=True))
    assert 0 < (before - after).abs().max() < 0.1 * before.abs().max()


@pytest.mark.parametrize("merge", [False, True])
def test_layers_that_differ_are_read_without_the_folders_code(merge, folders, tmp_path) -> None:
    """The modelling file is changed so that running it is noticed, in this process or the one that reads back."""
    lay = folders / "lay"
    right = logits(AutoModelForCausalLM.from_pretrained(lay, trust_remote_code=True))
    ours = (lay / f"{MODULE}.py").read_text()
    try:
        (lay / f"{MODULE}.py").write_text("raise SystemExit('ran')\n")
        assert torch.equal(logits(load_model(source_of(lay))), right)
        assert adapt(folders, "lay", tmp_path / "out", *(["--merge"] if merge else [])) == 0
    finally:
        (lay / f"{MODULE}.py").write_text(ours)
    if merge:
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert config["secateur_layers"] == json.loads((lay / "config.json").read_text())["secateur_layers"]
        assert (tmp_path / "out" / f"{MODULE}.py").read_text() == ours


OURS = """
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

class OursConfig(LlamaConfig):
    model_type = "ours"

class OurMLP(LlamaMLP):
    def forward(self, x):
        inner = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(nn.functional.rms_norm(inner, inner.shape[-1:]) if self.config.normed else 2 * inner)

class Ours(LlamaForCausalLM):
    config_class = OursConfig

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = OurMLP(config)
        self.post_init()

AutoConfig.register("ours", OursConfig)
AutoModelForCausalLM.register(OursConfig, Ours)
"""


def test_a_class_and_a_family_of_the_users_own_file(folders, tmp_path, monkeypatch, capsys) -> None:
    """Neither is known to transformers or here. The layout is tried before any training, and what is written brings
    its class; a process that has not imported the file computes the same with it."""
    (tmp_path / "our_model.py").write_text(OURS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(FAMILIES, "_entries", dict(FAMILIES.items()))
    import our_model

    FAMILIES.register("ours", Family(name="ours"))
    base = AutoModelForCausalLM.from_pretrained(folders / "base")
    for normed in (False, True):
        config = our_model.OursConfig(**{k: v for k, v in base.config.to_dict().items() if k in SIZES}, normed=normed)
        model = our_model.Ours(config)
        model.load_state_dict(base.state_dict())
        model.save_pretrained(tmp_path / f"normed-{normed}")
        for file in (folders / "base").glob("token*"):
            shutil.copy(file, tmp_path / f"normed-{normed}")
    words = ["--data", f"{folders}/d.txt", "--output", f"{tmp_path}/out", "--sparsity", "0.3", "--prune-start", "0"]
    ours = ["prune", "--model", f"{tmp_path}/normed-False", *words, "--frequency", "1", *TRAIN]
    normed = ["prune", "--model", f"{tmp_path}/normed-True", *words, *TRAIN]

    def refused(arguments: list[str]) -> str:
        assert main(arguments) == 2
        return capsys.readouterr().err

    assert "Ours is a class of this process alone, so no other could read the result: call" in refused(ours)
    our_model.OursConfig.register_for_auto_class()
    our_model.Ours.register_for_auto_class("AutoModelForCausalLM")
    for arguments in (normed, [*normed, "--dry-run"], ["plan", *normed[1:3], "--sparsity", "0.3"]):
        assert "a small ours that is cut so computes something else than one that is masked" in refused(arguments)
    assert "of transformers', and a ours has another: use --alloc" in refused([*ours, "--allocation", "global"])
    assert main(ours) == 0, capsys.readouterr().err
    assert "trust_remote_code=True" in capsys.readouterr().out
    assert (tmp_path / "out" / "our_model.py").is_file()
