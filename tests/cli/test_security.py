"""What comes from models and data cannot write to the terminal, run code, or hide which code it ships."""

import hashlib
import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
from tiny import save_tiny

from secateur.architecture.layered import MODULE
from secateur.cli import main
from tests.cli.test_faults import command

WORDS = "the quick brown fox jumps over the lazy dog while seven wizards box and quarrel about nothing at all. "
HOSTILE = "\x1b[2J\x1b]0;owned\x07evil\x9b31m"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("security")
    save_tiny(folder / "model", layers=2)
    (folder / "text.txt").write_text(WORDS * 60)
    return folder


def clean(text: str) -> bool:
    return not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)


@pytest.mark.parametrize("debug", [False, True])
def test_errors_hold_no_control_sequences(place, tmp_path, capsys, debug) -> None:
    model = tmp_path / "model"
    shutil.copytree(place / "model", model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": HOSTILE}))
    data = tmp_path / f"{HOSTILE}.jsonl"
    data.write_text('{"text": 5}')
    flags = ["--debug"] * debug
    assert main(["plan", "--model", str(model), "--sparsity", "0.2", *flags]) == 2
    assert main([*command(place, tmp_path / "out", "--data", str(data)), *flags]) == 2
    assert main(["prune", f"--{HOSTILE}", *flags]) == 2
    said = capsys.readouterr()
    assert said.err.count("secateur: error:") == 3
    assert "evil" in said.err
    assert clean(said.err)
    assert clean(said.out)


def test_output_holds_no_control_sequences(capsys, monkeypatch) -> None:
    """Whatever a command prints, by `print` or by returning it."""
    monkeypatch.setattr("secateur.runs.quickstart.quickstart", lambda config: print(HOSTILE, flush=True))
    monkeypatch.setattr("secateur.evaluation.assess.evaluate_models", lambda config: HOSTILE)
    assert main(["quickstart", "--output", "nowhere"]) == 0
    assert main(["eval", "--model", "x", "--data", "y"]) == 0
    said = capsys.readouterr().out
    assert said.count("evil") == 2
    assert clean(said)


def test_warnings_hold_no_control_sequences(tmp_path, caplog) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import LlamaConfig

    from secateur.architecture.gguf_keys import keys_left
    from secateur.models.loading import load_model
    from secateur.models.source import resolve_model

    model = save_tiny(tmp_path / "model", layers=1)
    state = load_file(model / "model.safetensors")
    harmless = f"{HOSTILE}.attn.masked_bias"  # a tensor that is left out with a warning; others are refused
    save_file(state | {harmless: next(iter(state.values())).clone()}, model / "model.safetensors", {"format": "pt"})
    load_model(resolve_model(str(model)))
    assert keys_left(LlamaConfig(), "llama", {f"key.{HOSTILE}": HOSTILE}) == []  # of a GGUF file, with a warning
    assert caplog.text.count("evil") == 3
    assert clean(caplog.text)


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("run", ["prune", "bench"])
def test_a_pickled_adapter_runs_nothing(place, tmp_path, capsys, run) -> None:
    adapter, canary = tmp_path / "adapter", tmp_path / "canary"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Canary(canary)))
    arguments = {
        "prune": command(place, tmp_path / "out"),
        "bench": ["bench", "--model", str(place / "model"), "--no-memory", "--seq-len", "16"],
    }[run]
    assert main([*arguments, "--adapter", str(adapter)]) == 2
    assert "adapter" in capsys.readouterr().err
    assert not canary.exists()
    pickle.loads((adapter / "adapter_model.bin").read_bytes())
    assert canary.exists()  # it would have


def test_the_model_card_names_the_code_that_is_there(place, tmp_path) -> None:
    arguments = command(place, tmp_path / "out", "--allocation", "global", "--across-layers", "mean")
    assert main(arguments) == 0
    code = (tmp_path / "out" / f"{MODULE}.py").read_bytes()
    assert f"(sha256 `{hashlib.sha256(code).hexdigest()}`)" in (tmp_path / "out" / "README.md").read_text()
    auto_map = json.loads((tmp_path / "out" / "config.json").read_text())["auto_map"]
    assert list(auto_map) == ["AutoModel", "AutoModelForCausalLM"]
    assert {place.split(".")[0] for place in auto_map.values()} == {MODULE}
