"""Text models inside others: taken out exactly, by every command, and said."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Emu3Config,
    Gemma3Config,
    Idefics3Config,
    LlavaConfig,
    PretrainedConfig,
    Qwen2_5_VLConfig,
)

from secateur.architecture.nested import is_of_text
from secateur.cli import main
from secateur.models.loading import load_config, load_model
from secateur.models.source import ModelSource

TEXT = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": None,
    "eos_token_id": 0,
}  # fmt: skip
EYES = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
DEPTH = {"hidden_size": 32, "intermediate_size": 32, "depth": 1, "num_heads": 2, "out_hidden_size": 32}
TOKENS = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8}
CONFIGS: dict[str, PretrainedConfig] = {
    "gemma3_text": Gemma3Config(text_config=TEXT, vision_config=EYES, mm_tokens_per_image=1, image_token_index=5),
    "qwen2": Qwen2_5_VLConfig(text_config=TEXT | {"rope_parameters": ROPE}, vision_config=DEPTH, **TOKENS),
    "llama": LlavaConfig(
        text_config=TEXT | {"model_type": "llama"}, image_token_index=5,
        vision_config=EYES | {"model_type": "clip_vision_model", "projection_dim": 32},
    ),
    "emu3": Emu3Config(
        text_config=TEXT
        | {"bos_token_id": 1, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
        vq_config={"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "hidden_size": 32},
        vocabulary_map={"<image>": 5},
    ),
    "tied": Idefics3Config(
        text_config=TEXT | {"model_type": "llama"}, vision_config=EYES, image_token_id=5, scale_factor=1,
        pad_token_id=0, tie_word_embeddings=True,
    ),
}  # fmt: skip
TRAIN = ["--steps", "2", "--seq-len", "32", "--batch-size", "2", "--dtype", "float32", "--frequency", "1"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, tuple[Path, Any]]:
    """Type of the text model -> folder and logits of the whole model."""
    found = {}
    place = tmp_path_factory.mktemp("whole")
    (place / "d.txt").write_text("the cat sat on the mat. " * 99)
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.2)
        model.save_pretrained(place / name)
        tiny_tokenizer(chat_template=False).save_pretrained(place / name)
        found[name] = place / name, logits(model)
    return found


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.arange(10, 90).unsqueeze(0), use_cache=False).logits


def source_of(folder: Path) -> ModelSource:
    return ModelSource(str(folder), str(folder))


@pytest.mark.parametrize("name", CONFIGS)
def test_it_computes_what_the_whole_does(name, whole, caplog) -> None:
    folder, expected = whole[name]
    config = load_config(source_of(folder))
    assert config.model_type == {"tied": "llama", "emu3": "llama"}.get(name, name)
    assert config.max_position_embeddings == 128
    assert config.tie_word_embeddings == CONFIGS[name].tie_word_embeddings
    assert f"of this {CONFIGS[name].model_type} its text model is taken alone" in caplog.text
    assert torch.allclose(logits(load_model(source_of(folder))), expected, atol=1e-5 * float(expected.abs().max()))


def test_an_adapter_would_not_fit_the_whole_and_the_remedy_works(whole, tmp_path, capsys) -> None:
    folder, expected = whole["gemma3_text"]
    words = ["--data", f"{folder.parent}/d.txt", "--init-rank", "2", "--rank", "2", *TRAIN[:-2]]
    assert main(["adapt", "--model", str(folder), "--output", f"{tmp_path}/out", *words]) == 2
    remedy = f"secateur extract-text {folder} TEXT"
    assert remedy in capsys.readouterr().err
    text = str(tmp_path / "text")
    assert main(remedy.replace("TEXT", text).split()[1:]) == 0
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(text)), expected)
    assert "secateur_whole" not in json.loads((tmp_path / "text" / "config.json").read_text())
    assert main(["adapt", "--model", text, "--output", f"{tmp_path}/out", *words]) == 0
    assert main(["adapt", "--model", str(folder), "--output", f"{tmp_path}/merged", "--merge", *words]) == 0
    capsys.readouterr()
    assert main(["export", "--model", text, "--format", "text", "--output", f"{tmp_path}/again"]) == 2
    assert "it is a text model already" in capsys.readouterr().err


def test_it_is_pruned(whole, tmp_path, capsys) -> None:
    folder, _ = whole["llama"]
    words = ["--data", f"{folder.parent}/d.txt", "--sparsity", "0.3", "--prune-start", "0", *TRAIN, "--extract-text"]
    assert main(["prune", "--model", str(folder), "--output", f"{tmp_path}/out", *words]) == 0
    assert main(["prune", "--model", f"{tmp_path}/out", "--output", f"{tmp_path}/again", *words]) == 2
    assert "--extract-text: " in capsys.readouterr().err
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert not {"text_config", "vision_config", "secateur_whole"} & set(config)


def test_a_text_model_that_computes_something_else_is_not_taken_out(whole, tmp_path, capsys) -> None:
    """transformers' class of the whole applies no cap to its logits, that of the text alone does."""
    folder, _ = whole["gemma3_text"]
    capped = shutil.copytree(folder, tmp_path / "capped")
    config = json.loads((capped / "config.json").read_text())
    config["text_config"]["final_logit_softcapping"] = 1.0
    (capped / "config.json").write_text(json.dumps(config))
    assert main(["extract-text", str(capped), f"{tmp_path}/out"]) == 4
    assert "its text model alone computes other logits than the whole gemma3" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_whole_that_wants_a_picture_is_refused(whole, tmp_path, monkeypatch, capsys) -> None:
    def wants(model, ids):
        raise TypeError("Blip2ForConditionalGeneration.forward() missing 1 required argument: 'pixel_values'")

    monkeypatch.setattr("secateur.checkpoint.convert.logits_of", wants)
    assert main(["extract-text", str(whole["gemma3_text"][0]), f"{tmp_path}/out"]) == 2
    assert "computes nothing of text alone (Blip2ForConditionalGeneration.forward() missing" in capsys.readouterr().err


def test_what_belongs_to_the_text_model() -> None:
    for name in ("language_model.model.layers.0.x", "model.language_model.norm.weight", "language_model.lm_head.weight",
                 "model.text_model.embed_tokens.weight", "lm_head.weight", "model.language_model.embedding_norm.weight",
                 "model.layers.1.x"):  # fmt: skip
        assert is_of_text(name)
    for name in ("vision_tower.encoder.layers.0.x", "model.visual.blocks.0.x", "model.vision_model.layers.0.x",
                 "multi_modal_projector.linear_1.weight", "model.image_newline"):  # fmt: skip
        assert not is_of_text(name)
