"""Bad configurations, one table for all commands: exit code 2, the key, its value and the remedy, before any work."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import save_tiny, tiny_tokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM

from secateur.cli import main
from secateur.models.loading import load_config
from secateur.models.source import ModelSource
from secateur.system.errors import InputError

LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4}
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "a padding token beyond the vocabulary": ({"pad_token_id": 500}, "pad_token_id is 500 and vocab_size 128: a"),
    "a padding token that is text": ({"pad_token_id": "<pad>"}, "pad_token_id is '<pad>', and a token is given by its"),
    "an activation misspelt": ({"hidden_act": "sillu"}, "hidden_act is 'sillu', which .* Did you mean 'silu'\\? C"),
    "no activation": ({"hidden_act": None}, "'hidden_act' expected str, got NoneType"),
    "rotation misspelt": (
        {"rope_parameters": {"rope_type": "lama3", "rope_theta": 1e4}},
        "rope_parameters.rope_type is 'lama3', which .* Did you mean 'llama3'",
    ),
    "the old rotation misspelt": (
        {"rope_parameters": ..., "rope_scaling": {"type": "lama3", "factor": 2.0}},
        "rope_scaling.type is 'lama3'",
    ),
    "rotation without its keys": ({"rope_parameters": LLAMA3}, "used: Missing required keys in `rope_parameters`"),
    "rotation by text": (
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": "two"}},
        "rope_parameters.factor is 'two': it must be a number",
    ),
    "rotation by a base of 0": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 0}}, "rope_parameters.rope_theta is 0: it must"
    ),
    "rotation that is a list": ({"rope_parameters": [1]}, r"'rope_parameters' with value \[1\]"),
    "attention misspelt": ({"attn_implementation": "flash"}, '`attn_implementation="flash"` is not supported'),
    "attention that is not installed": (
        {"attn_implementation": "flash_attention_2"}, "attn_implementation 'flash_attention_2': FlashAttention2"
    ),
    "a negative width": ({"intermediate_size": -5}, "intermediate_size is -5: it must be at least 1"),
    "no width": ({"intermediate_size": 0}, "intermediate_size is 0: it must be at least 1"),
    "a width with a fraction": ({"intermediate_size": 96.5}, r"'intermediate_size' expected int, got float \(value"),
    "widths in a list": ({"intermediate_size": [96]}, r"'intermediate_size' expected int, got list"),
    "a width in quotes": ({"hidden_size": "64"}, r"'hidden_size' expected int, got str \(value: '64'\)"),
    "null": ({"hidden_size": None}, "'hidden_size' expected int, got NoneType"),
    "heads that do not divide": ({"num_attention_heads": 5}, "hidden_size 64, num_attention_heads 5: The hidden size"),
    "no heads": ({"num_attention_heads": 0}, "num_attention_heads 0"),
    "no KV heads": ({"num_key_value_heads": 0}, "num_key_value_heads is 0: it must be at least 1"),
    "heads of a negative size": ({"head_dim": -16}, "head_dim is -16"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers is 0: it must be at least 1"),
    "too many layers": ({"num_hidden_layers": 10**7}, "num_hidden_layers is 10000000: no model has more than 10,000"),
    "too many tokens": ({"vocab_size": 10**12}, "vocab_size is 1000000000000: no model has more than 2,147,483,648"),
    "more tokens than in the file": ({"vocab_size": 10**9}, r"vocab_size 1000000000\), such as .*\(128, 64\) in"),
    "a precision misspelt": ({"dtype": "bfloat61"}, "dtype 'bfloat61': module 'torch' has no attribute"),
    "a yes for true": ({"tie_word_embeddings": "yes"}, "'tie_word_embeddings' expected bool, got str"),
    "a list of types": ({"model_type": ["llama"]}, r'model_type is \["llama"\], and must be a name'),
    "quantisation that is a name": ({"quantization_config": "x"}, 'quantization_config is "x", and must be an object'),
    "code that is a number": ({"auto_map": {"AutoModelForCausalLM": 3}}, "auto_map is .* and must name classes"),
}  # fmt: skip
SETTINGS = {
    "{": "is not valid JSON",
    "[1]": r"is no JSON object but \[1\]",
    '{"eos_token_id": "foo"}': "eos_token_id is 'foo', and a token is given by its number",
    '{"max_new_tokens": -3}': "cannot be used: `max_new_tokens` must be greater than 0, but is -3",
}
TRAIN = ["--data", "{d}", "--output", "{o}", "--steps", "3", "--seq-len", "32", "--batch-size", "2"]
COMMANDS = {
    "plan": ["--sparsity", "0.4"],
    "prune": ["--sparsity", "0.4", *TRAIN],
    "adapt": ["--init-rank", "4", "--rank", "4", *TRAIN],
    "eval": ["--data", "{d}", "--seq-len", "32"],
    "sample": ["--prompts", "hello"],
    "bench": ["--no-memory"],
    "export": ["--output", "{o}"],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("configs")
    (folder / "d.txt").write_text("the cat sat on the mat. " * 99)
    return save_tiny(folder / "model", layers=2)


def edited(model: Path, folder: Path, changes: dict[str, Any]) -> Path:
    shutil.copytree(model, folder)
    values = {**json.loads((folder / "config.json").read_text()), **changes}
    kept = {key: value for key, value in values.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


def source_of(folder: Path) -> ModelSource:
    return ModelSource(str(folder), str(folder))


@pytest.mark.parametrize("name", CASES)
def test_a_config(name, model, tmp_path) -> None:
    changes, words = CASES[name]
    with pytest.raises(InputError, match=words) as told:
        load_config(source_of(edited(model, tmp_path / "bad", changes)))
    assert len(str(told.value)) < 600
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_it(command, model, tmp_path, capsys) -> None:
    folder = edited(model, tmp_path / "bad", {"hidden_act": "sillu"})
    words = [w.format(d=model.parent / "d.txt", o=tmp_path / "out") for w in COMMANDS[command]]
    assert main([command, "--model", str(folder), *words]) == 2
    assert "hidden_act is 'sillu', which transformers does not know. Did you mean 'silu'?" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


@pytest.mark.parametrize("text", SETTINGS)
def test_generation_settings(text, model, tmp_path) -> None:
    folder = edited(model, tmp_path / "bad", {})
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(InputError, match=SETTINGS[text]):
        load_config(source_of(folder))


def test_a_byte_order_mark(model, tmp_path) -> None:
    folder = edited(model, tmp_path / "bad", {})
    (folder / "config.json").write_bytes(b"\xef\xbb\xbf" + (folder / "config.json").read_bytes())
    with pytest.raises(InputError, match="begins with a byte-order mark"):
        load_config(source_of(folder))


def test_a_list_of_layers_that_went_stale(tmp_path) -> None:
    config = Qwen3Config(
        vocab_size=128, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "model")
    folder = edited(tmp_path / "model", tmp_path / "bad", {"num_hidden_layers": 3})
    words = r"used: `num_hidden_layers` \(3\) must be equal to the number of `layer_types` \(4\)\. Correct it"
    with pytest.raises(InputError, match=words):
        load_config(source_of(folder))


def test_an_end_beyond_the_vocabulary_is_said(model, tmp_path, caplog) -> None:
    load_config(source_of(edited(model, tmp_path / "bad", {"eos_token_id": [0, 999]})))
    assert "eos_token_id 999 is beyond the vocabulary of 128 tokens" in caplog.text


def test_only_what_was_written_is_blamed(tmp_path, capsys) -> None:
    """PEFT refuses LoRA on a part of every Mamba, and no --targets were given: that part is left out."""
    from transformers import MambaConfig, MambaForCausalLM

    MambaForCausalLM(MambaConfig(vocab_size=128, hidden_size=32, num_hidden_layers=2, pad_token_id=0)).save_pretrained(
        tmp_path / "m"
    )
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    (tmp_path / "d.txt").write_text("the cat " * 99)
    words = ["--init-rank", "2", "--rank", "2", *(w.format(d=tmp_path / "d.txt", o=tmp_path / "out") for w in TRAIN)]
    assert main(["adapt", "--model", str(tmp_path / "m"), *words]) == 0
    printed = capsys.readouterr().err
    assert "no LoRA on 2 linears that no forward pass calls, such as backbone.layers.0.mixer.dt_proj" in printed
    assert "--targets" not in printed
