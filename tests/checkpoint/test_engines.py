"""What a run says of engines: only what was run, as the record of `benchmarks/deploy/matrix.py` has it."""

import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from secateur.checkpoint.older_readers import needs_newer
from secateur.checkpoint.serving.engines import ENGINES, serving, serving_block

RECORD = Path(__file__).parents[2] / "docs" / "results" / "deploy.json"


def test_only_engines_that_computed_the_same_are_named() -> None:
    """Of each engine, format and model type: a cell in float32 whose log-probabilities are those of transformers."""
    cells = json.loads(RECORD.read_text(encoding="utf-8"))
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
    named = {
        (engine.name, format, model_type)
        for engine in ENGINES
        for format, types in engine.takes.items()
        for model_type in types
    }
    assert len(named) > 15
    assert named <= right - wrong


def test_commands_are_of_this_result(tmp_path) -> None:
    place, llama = tmp_path / "my model", AutoConfig.for_model("llama")
    assert list(serving(place, llama, "layered").values()) == [f"vllm serve '{place}' --trust-remote-code"]
    assert list(serving(place, llama, "stock").values()) == [f"vllm serve '{place}'"]
    assert serving(place, llama, "padded") == serving(place, llama, "stock")
    assert serving(place, AutoConfig.for_model("bloom"), "layered") == {}
    block = serving_block({"folder": str(place), "serves_with": serving(place, llama, "layered")})
    assert "vllm serve 'my model' --trust-remote-code" in block[-2]  # a card names no place of the writer's machine
    assert str(tmp_path) not in "".join(block)
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
