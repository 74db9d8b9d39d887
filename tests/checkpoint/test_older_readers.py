"""config.json says the same function in the keys of transformers 5 and of what came before it.

That both versions compute the same logits from it was measured: benchmarks/reliability/older_readers.py.
"""

import json
import warnings

import pytest
from transformers import AutoConfig

from secateur.checkpoint.older_readers import add_older_keys, with_older_keys

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 5e5}
LONG = {"rope_type": "longrope", "short_factor": [1.5] * 8, "long_factor": [3.0] * 8, "rope_theta": 1e4,
        "original_max_position_embeddings": 32}  # fmt: skip
BOTH = {"full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 3e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 500.0}}  # fmt: skip
HALF = {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.5}
CASES = {
    "llama": ({"rope_type": "default", "rope_theta": 5e5}, {"rope_theta": 5e5}),
    "qwen2": (YARN, {"rope_theta": 5e5, "rope_scaling": {
        "rope_type": "yarn", "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}),
    "mistral": ({"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
                {"rope_theta": 1e4, "rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 2.0}}),
    "phi3": (LONG, {"rope_theta": 1e4, "original_max_position_embeddings": 32, "rope_scaling": {
        "type": "longrope", "short_factor": [1.5] * 8, "long_factor": [3.0] * 8}}),
    "phi": (HALF, {"rope_theta": 5e5, "partial_rotary_factor": 0.5}),
    "gpt_neox": (HALF, {"rotary_emb_base": 5e5, "rotary_pct": 0.5}),
    "gemma3_text": (BOTH, {"rope_theta": 3e5, "rope_local_base_freq": 500.0, "rope_scaling": {
        "rope_type": "linear", "type": "linear", "factor": 4.0}}),
    "olmo3": ({**BOTH, "sliding_attention": {"rope_type": "default", "rope_theta": 3e5}}, {"rope_theta": 3e5,
              "rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 4.0}}),
}  # fmt: skip


@pytest.mark.parametrize("model_type", CASES)
def test_both_forms_are_written_and_read_as_one(tmp_path, model_type, caplog):
    rope, older = CASES[model_type]
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "max_position_embeddings": 256}
    if "original_max_position_embeddings" in older:
        sizes["original_max_position_embeddings"] = older["original_max_position_embeddings"]
    config = AutoConfig.for_model(model_type, **sizes, dtype="bfloat16", rope_parameters=json.loads(json.dumps(rope)))
    config.save_pretrained(tmp_path)
    before = json.loads((tmp_path / "config.json").read_text())
    add_older_keys(tmp_path)
    after = json.loads((tmp_path / "config.json").read_text())
    assert {key: after[key] for key in older} == older
    assert after["torch_dtype"] == after["dtype"] == "bfloat16"
    assert {key: after[key] for key in before} == before
    caplog.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = AutoConfig.from_pretrained(tmp_path)
    for name, wanted in config.rope_parameters.items():
        found = read.rope_parameters[name]
        alike = {k: v for k, v in found.items() if k != "type"} if isinstance(found, dict) else found
        assert alike == wanted, name
    assert read.dtype == config.dtype
    assert not caplog.messages


def test_what_the_older_form_cannot_say_is_not_said():
    """A base frequency for each kind of layer, in a type that had one for all; layers without any."""
    assert "rope_theta" not in with_older_keys({"model_type": "olmo3", "rope_parameters": BOTH})
    assert "rope_theta" not in with_older_keys({"model_type": "x", "rope_parameters": {"full_attention": None}})
    assert with_older_keys({"model_type": "gpt2"}) == {"model_type": "gpt2"}


def test_a_text_model_inside_another_and_experts():
    inner = {"model_type": "qwen3_moe", "num_local_experts": 4, "rope_parameters": HALF, "dtype": "float32"}
    found = with_older_keys({"model_type": "llava", "text_config": inner, "vision_config": {"size": 1}})
    assert found["text_config"]["rope_theta"] == 5e5
    assert (found["text_config"]["num_experts"], found["text_config"]["torch_dtype"]) == (4, "float32")
    assert found["vision_config"] == {"size": 1}


def test_a_configuration_that_transformers_has_no_class_for_is_read_as_it_was(tmp_path):
    values = {"model_type": "mine", "rope_parameters": HALF}
    (tmp_path / "config.json").write_text(json.dumps(values))
    add_older_keys(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["rope_theta"] == 5e5
