"""What an adapter carries beside its factors: carried to the end in every way, or refused before the run."""

import json
from unittest.mock import patch

import pytest
import torch
from peft import KasaConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import save_tiny, tiny_llama, tiny_tokenizer
from transformers import AutoModelForCausalLM

from secateur import Pruner
from secateur.checkpoint.shards import merged_from_shards
from secateur.cli import main
from secateur.models.adapter import load_adapter, read_adapter
from secateur.models.adapter_extras import MERGE_FIRST
from secateur.models.original import as_trained, check_unchanged
from secateur.models.source import ModelSource
from secateur.models.surgery import merged_and_sliced
from secateur.system.errors import InputError, VerificationError
from secateur.training.trainer import AutocastTrainer

WORDS = "the quick brown fox jumps over the lazy dog while seven wizards box and quarrel about nothing at all. "
BIAS, EMBEDDING = "model.layers.1.self_attn.q_proj.bias", "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extras")
    save_tiny(folder / "model", layers=2, bias=True)
    (folder / "text.txt").write_text(WORDS * 40)
    make_adapter(folder / "adapter", save_embedding_layers=True, bias="all")
    return folder


def make_adapter(folder, *, save_embedding_layers="auto", **options):
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", **options)
    model = get_peft_model(tiny_llama(layers=2, bias=True), lora)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or "embed_tokens" in name:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1
    model.save_pretrained(folder, save_embedding_layers=save_embedding_layers)
    return folder


def command(kind, place, output, adapter, *more) -> list[str]:
    size = ("--sparsity", "0.3", "--attention", "none") if kind == "prune" else ("--rank", "4")
    return [
        kind, "--model", str(place / "model"), "--data", str(place / "text.txt"), "--output", str(output), "--adapter",
        str(adapter), "--steps", "3", "--batch-size", "2", "--seq-len", "32", "--dtype", "float32", "--lr", "1e-12",
        *size, *more,
    ]  # fmt: skip


def merged(place, adapter) -> dict[str, torch.Tensor]:
    base = AutoModelForCausalLM.from_pretrained(place / "model")
    return PeftModel.from_pretrained(base, adapter).merge_and_unload().state_dict()


@pytest.mark.parametrize("more", [("--stream-export",), ("--load-in", "8bit", "--stream-export")], ids=["", "8bit"])
def test_biases_and_embeddings_reach_a_pruned_checkpoint(place, tmp_path, capsys, more) -> None:
    schedule = ("--frequency", "1", "--prune-start", "0", "--prune-end", "1")
    assert main(command("prune", place, tmp_path / "out", place / "adapter", *schedule, *more)) == 0
    assert "dropout 0.0; with 16 tensors of the base model's own" in capsys.readouterr().err
    written, expected = load_file(tmp_path / "out" / "model.safetensors"), merged(place, place / "adapter")
    dense = load_file(place / "model" / "model.safetensors")
    for name in (BIAS, EMBEDDING):
        torch.testing.assert_close(written[name], expected[name], rtol=0, atol=1e-6)
        assert (written[name] - dense[name]).abs().max() > 0.1


def test_they_stay_in_an_adapter_that_was_trained_on(place, tmp_path, capsys) -> None:
    assert main(command("adapt", place, tmp_path / "out", place / "adapter", "--load-in", "8bit")) == 0
    expected, found = merged(place, place / "adapter"), merged(place, tmp_path / "out")
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5)
    assert "base_model.model.model.embed_tokens.weight" in load_file(tmp_path / "out" / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"modules_to_save": ["lm_head"]}, "modules that were trained in full (modules_to_save)"),
        ({"trainable_token_indices": [3, 4]}, "tokens that were trained in full (trainable_token_indices)"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layers of the model twice (layer_replication)"),
        ({"use_dora": True}, "is DoRA"),
        ({"kasa_config": KasaConfig()}, "singular values of its own (kasa_config)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_carried_is_refused(place, tmp_path, capsys, options, words) -> None:
    adapter = make_adapter(tmp_path / "adapter", **options)
    for kind in ("prune", "adapt"):
        assert main(command(kind, place, tmp_path / "out", adapter)) == 2
        told = capsys.readouterr().err
        assert words in told
        assert MERGE_FIRST in told
        assert not (tmp_path / "out.run").exists()


def test_a_start_that_moves_the_base_is_refused_where_it_is_read_anew(place, tmp_path, capsys) -> None:
    adapter = make_adapter(tmp_path / "adapter", init_lora_weights="pissa")
    for more in (("--load-in", "8bit"), ("--stream-export",)):
        assert main(command("prune", place, tmp_path / "out", adapter, *more)) == 2
        told = capsys.readouterr().err
        assert f"init_lora_weights='pissa', which moves a part of the base weights into it, and {more[0]}" in told


@pytest.mark.parametrize("kind", ["prune", "adapt"])
def test_a_resumed_run_has_the_biases_of_its_checkpoint(place, tmp_path, kind) -> None:
    file = "model.safetensors" if kind == "prune" else "adapter_model.safetensors"
    schedule = ("--frequency", "1", "--prune-start", "0", "--prune-end", "1") if kind == "prune" else ()
    more = (*schedule, "--save-steps", "1", "--lr", "1e-2")
    assert main(command(kind, place, tmp_path / "whole", place / "adapter", *more)) == 0
    stopped = command(kind, place, tmp_path / "out", place / "adapter", *more)
    step, steps = AutocastTrainer.training_step, []

    def until_the_third(self, *arguments, **options):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return step(self, *arguments, **options)

    with patch.object(AutocastTrainer, "training_step", until_the_third):
        assert main(stopped) == 130
    assert main([*stopped, "--resume"]) == 0
    whole, resumed = (load_file(tmp_path / name / file) for name in ("whole", "out"))
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name


def test_a_start_that_a_quantised_base_refuses_is_of_no_matter(place, tmp_path) -> None:
    """The factors are in the file; PEFT's orthogonal start fails on weights in 8 bits."""
    adapter = make_adapter(tmp_path / "adapter", init_lora_weights="orthogonal")
    assert main(command("adapt", place, tmp_path / "out", adapter, "--load-in", "8bit")) == 0
    expected, found = merged(place, adapter), merged(place, tmp_path / "out")
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"rank_pattern": None}, 2, "not a LoRA adapter that fits this model ('NoneType' object has no attribute"),
        ({"r": "4"}, 2, "not a LoRA adapter that fits this model ('<=' not supported between"),
        ({"use_next": True, "next_config": None}, 0, "this version of PEFT does not know use_next, which"),
        ({"base_model_name_or_path": "org/other"}, 0, "trained on org/other\n"),
    ],
)
def test_what_an_adapters_configuration_says_amiss(place, tmp_path, capfd, caplog, changes, code, words) -> None:
    adapter = make_adapter(tmp_path / "adapter")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | changes))
    assert main(command("prune", place, tmp_path / "out", adapter, "--dry-run")) == code
    told = capfd.readouterr().err
    assert words in told + caplog.text
    assert "Warning" not in told


def test_a_tokenizer_beside_the_adapter_is_not_passed_over(place, tmp_path, caplog) -> None:
    adapter, tokenizer = make_adapter(tmp_path / "adapter"), tiny_tokenizer()
    tokenizer.save_pretrained(adapter)
    assert main(command("prune", place, tmp_path / "out", adapter, "--dry-run")) == 0
    assert "tokenizer" not in caplog.text
    tokenizer.add_tokens(["<|tool|>"])
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(adapter)
    assert main(command("prune", place, tmp_path / "out", adapter, "--dry-run")) == 0
    assert "with tokens that the model's has not (<|tool|>) and another chat template: the model's is" in caplog.text


def changed(place, folder, change):
    make_adapter(folder, save_embedding_layers=True, bias="all")
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def test_names_of_biases_from_before_base_layer(place, tmp_path) -> None:
    """PEFT passes over them, and the file holds what was trained."""

    def older(tensors):
        for name in [each for each in tensors if ".base_layer." in each]:
            tensors[name.replace(".base_layer.", ".")] = tensors.pop(name)

    adapter = changed(place, tmp_path / "adapter", older)
    held = load_adapter(tiny_llama(layers=2, bias=True), str(adapter)).state_dict()
    expected = load_file(adapter / "adapter_model.safetensors")[f"base_model.model.{BIAS}"]
    assert torch.equal(held[f"base_model.model.{BIAS.replace('.bias', '.base_layer.bias')}"], expected)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("foo.weight", torch.zeros(3), "and this model has no such module"),
        (EMBEDDING, torch.zeros(130, 64), "is (130, 64) and this model has (128, 64) there"),
    ],
)
def test_a_tensor_without_a_place_is_refused(place, tmp_path, capsys, name, value, words) -> None:
    adapter = changed(place, tmp_path / "adapter", lambda tensors: tensors.update({f"base_model.model.{name}": value}))
    assert main(command("prune", place, tmp_path / "out", adapter)) == 2
    assert words in capsys.readouterr().err


def test_two_embeddings_for_a_model_with_one(place, tmp_path) -> None:
    with pytest.raises(InputError, match="trained on a model with two embeddings"):
        load_adapter(tiny_llama(layers=2, bias=True, tied=True), str(place / "adapter"))
    assert "base_model.model.lm_head.weight" in read_adapter(str(place / "adapter")).extras


def test_what_was_moved_stays_and_what_was_not_is_the_checkpoints() -> None:
    value = torch.randn(8, 4)
    held = value.bfloat16()
    assert as_trained("x", held, value) is value
    assert torch.equal(as_trained("x", held + 1, value), (held + 1).float())
    check_unchanged("x", held, value)
    with pytest.raises(VerificationError, match="x: the weight in the checkpoint is not the one that was trained on"):
        check_unchanged("x", held, value.roll(1, 0))
    with pytest.raises(VerificationError, match=r"x is \(4, 4\) in the checkpoint and \(8, 4\) in the model"):
        as_trained("x", held, value[:4])


@pytest.mark.parametrize("streamed", [False, True])
def test_lora_on_an_embedding_that_is_not_tied_merges(place, streamed) -> None:
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(place / "model"),
        LoraConfig(r=4, target_modules=["embed_tokens", "up_proj"]),
    )
    layer = model.base_model.model.model.embed_tokens
    torch.nn.init.normal_(layer.lora_embedding_B["default"])
    pruner = Pruner(model, sparsity=0.3, total_steps=4, criterion="magnitude")
    if streamed:
        source = ModelSource("m", str(place / "model"))
        tensors = merged_from_shards([EMBEDDING], model, pruner.units, pruner.keep, {}, source)
    else:
        tensors = merged_and_sliced(model, pruner.units, pruner.keep)
    found = dict(tensors)[EMBEDDING]
    torch.testing.assert_close(found, layer.weight + layer.get_delta_weight("default"))


def test_lora_on_an_embedding_that_is_tied_is_refused() -> None:
    tied = tiny_llama(layers=2, tied=True)
    with pytest.raises(InputError, match="its weight is the input embedding's too"):
        Pruner(get_peft_model(tied, LoraConfig(target_modules=["embed_tokens"])), sparsity=0.3, criterion="magnitude")
