"""What a run says of engines: of vLLM only what was run, as the record of `benchmarks/deploy/matrix.py` has it."""

import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from secateur.architecture.stock import LAYERS_KEY
from secateur.checkpoint.older_readers import needs_newer
from secateur.checkpoint.serving.engines import ENGINES, VLLM_ENGINE, serving, serving_block

RECORD = Path(__file__).parents[2] / "docs" / "results" / "deploy.json"


def test_only_engines_that_computed_the_same_are_named() -> None:
    """Of each engine, format and model type: a cell in float32 whose log-probabilities are those of transformers."""
    cells = [cell for cell in json.loads(RECORD.read_text(encoding="utf-8")) if not cell.get("gone")]
    right = {
        (cell["reader"].split()[0], cell["format"], cell["model_type"])
        for cell in cells
        if cell["loads"] and cell["dtype"] == "float32" and cell["largest_difference"] < 2e-3 and cell["top_1"] > 0.99
    }
    wrong = {
        (cell["reader"].split()[0], cell["format"], cell["model_type"])
        for cell in cells
        if cell["dtype"] == "float32" and not (cell["loads"] and cell["top_1"] > 0.99)
    }
    named = {(VLLM_ENGINE.name, form, kind) for form, kinds in VLLM_ENGINE.takes.items() for kind in kinds}
    assert len(named) > 15
    assert named <= right - wrong
    same = {
        (cell["format"], cell["model_type"]) for cell in cells if cell["dtype"] == "f32" and cell.get("kl", 1) < 1e-4
    }
    (llama_cpp,) = (engine for engine in ENGINES if engine.name == "llama.cpp")
    # a window of Mistral's apart, which llama.cpp knows, it is Llama
    assert {(form, kind) for form, kinds in llama_cpp.takes.items() for kind in kinds if kind != "mistral"} <= same


def test_layers_without_attention_are_for_engines_that_know_them() -> None:
    """As the record has them: vLLM reads DeciLM's form of them, llama.cpp the layered one."""
    sizes = [{"num_attention_heads": heads, "num_key_value_heads": heads, "intermediate_size": 8} for heads in (0, 2)]
    config = AutoConfig.for_model("llama", num_hidden_layers=2, **{LAYERS_KEY: sizes})
    named = {form: [name.split()[0] for name in serving("m", config, form)] for form in ("layered", "vllm")}
    assert named == {"layered": ["llama.cpp"], "vllm": ["vLLM"]}
    cells = [cell for cell in json.loads(RECORD.read_text(encoding="utf-8")) if cell.get("gone")]
    read = {(cell["reader"].split()[0], cell["format"]) for cell in cells if cell["loads"] and cell["top_1"] == 1}
    assert {("vLLM", "vllm"), ("llama.cpp", "layered"), ("transformers", "layered")} <= read
    assert ("vLLM", "layered") not in read


def test_commands_are_of_this_result(tmp_path) -> None:
    place, llama = tmp_path / "my model", AutoConfig.for_model("llama")
    layered = serving(place, llama, "layered")
    assert layered["vLLM (0.32 was tried)"] == f"vllm serve '{place}' --trust-remote-code"
    assert [name.split()[0] for name in layered] == ["vLLM", "llama.cpp"]
    stock = serving(place, llama, "stock")
    assert stock["vLLM (0.32 was tried)"] == f"vllm serve '{place}'"
    assert serving(place, llama, "padded") == stock
    assert serving(place, AutoConfig.for_model("bloom"), "layered") == {}
    whole, less = (AutoConfig.for_model("qwen2", hidden_size=64, num_attention_heads=n, head_dim=16) for n in (4, 2))
    started = [serving(place, config, "stock")["vLLM (0.32 was tried)"] for config in (whole, less)]
    assert started == [f"vllm serve '{place}'", f"vllm serve '{place}' --model-impl transformers"]
    (words,) = [text for text in serving_block({"folder": f"{place}/", "serves_with": stock}) if "vllm" in text]
    assert "vllm serve 'my model'\n" in words
    assert "llama-server -m 'my model.gguf'\n" in words
    assert words.endswith(
        "echo \"FROM $(realpath 'my model.gguf')\" > Modelfile\nollama create 'my model' -f Modelfile"
    )
    assert str(tmp_path) not in words  # a card names no place of the writer's machine
    assert serving_block({"folder": str(place)}) == []  # of an earlier record


WIDE = {"rope_type": "default", "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("values", "needs"),
    [
        ({"rope_parameters": WIDE, "rope_theta": 1e4}, False),
        ({"rope_parameters": {"full_attention": WIDE, "sliding_attention": {**WIDE, "rope_theta": 5e2}}}, True),
        ({"n_positions": 64}, False),
        ({"model_type": "gpt_neox", "rope_parameters": WIDE, "rope_theta": 1e4}, False),
        ({"model_type": "gpt_neox", "secateur_layers": [{}], "rope_parameters": WIDE, "rope_theta": 1e4}, True),
    ],
)
def test_a_card_says_what_earlier_versions_cannot_read(values, needs, tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert ("needs transformers 5" in "".join(needs_newer(tmp_path))) == needs
