"""Masked = sliced = what a fresh process computes from the written checkpoint, for every shape and format."""

import json
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_llama, tiny_tokenizer
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    GenerationConfig,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from secateur import Pruner
from secateur.architecture.discovery import find_units
from secateur.architecture.families import family_of
from secateur.architecture.stock import resized_config
from secateur.checkpoint import export as export_module
from secateur.checkpoint.comparing import logits_of
from secateur.checkpoint.convert import export_config
from secateur.checkpoint.export import build_small, export_checkpoint
from secateur.checkpoint.verify import Check, verify
from secateur.config.prune import ExportConfig
from secateur.models.loading import load_model
from secateur.models.source import ModelSource
from secateur.models.surgery import merged_and_sliced
from secateur.system.errors import InputError, VerificationError

TOLERANCE = 2e-4
"""float32: the merged product W + s·B·A is rounded once where LoRA adds two products, over logits of about 5 to 20
and 3 layers; observed 2e-5. Removing units moves logits by more than 100 times this."""

IDS = torch.randint(3, 99, (1, 48), generator=torch.Generator().manual_seed(3))


def widened(model: nn.Module) -> nn.Module:
    """Parameters of standard deviation 0.2, so that every unit matters."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.copy_(1 + values if "norm" in name else values)
    return model.eval()


def other_family(config_class, model_class):
    return widened(
        model_class(
            config_class(
                vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
                num_key_value_heads=2, head_dim=16, max_position_embeddings=128, bos_token_id=None, eos_token_id=0,
                pad_token_id=0,
            )
        )
    )  # fmt: skip


MODELS = {
    "gqa": lambda: tiny_llama(),
    "gqa-tied": lambda: tiny_llama(tied=True),
    "gqa-bias": lambda: tiny_llama(bias=True),
    "mha": lambda: tiny_llama(heads=4, kv_heads=4),
    "mha-bias-tied": lambda: tiny_llama(heads=4, kv_heads=4, bias=True, tied=True),
    "wide-head": lambda: tiny_llama(heads=4, kv_heads=2, head_dim=24),
    "mistral": lambda: other_family(MistralConfig, MistralForCausalLM),
    "qwen2": lambda: other_family(Qwen2Config, Qwen2ForCausalLM),
    "qwen3": lambda: other_family(Qwen3Config, Qwen3ForCausalLM),
}
CASES = [  # model, attention, allocation, model class, expected format
    ("gqa", "kv_group", "uniform", "keep", "stock"),
    ("gqa", "query_head", "uniform", "keep", "stock"),
    ("gqa", "kv_group", "global", "keep", "layered"),
    ("gqa", "query_head", "global", "keep", "layered"),
    ("gqa", "kv_group", "protected", "keep", "layered"),
    ("gqa-tied", "kv_group", "uniform", "keep", "stock"),
    ("gqa-tied", "kv_group", "global", "keep", "layered"),
    ("gqa-bias", "query_head", "uniform", "keep", "stock"),
    ("gqa-bias", "kv_group", "global", "keep", "layered"),
    ("mha", "kv_group", "uniform", "mistral", "stock"),  # hidden 64 with 4 -> 3 heads
    ("mha", "kv_group", "uniform", "keep", "stock"),  # 4 -> 2
    ("mha-bias-tied", "kv_group", "uniform", "keep", "stock"),
    ("wide-head", "kv_group", "uniform", "keep", "stock"),
    ("mistral", "kv_group", "uniform", "keep", "stock"),
    ("mistral", "query_head", "global", "keep", "layered"),
    ("qwen2", "kv_group", "uniform", "keep", "stock"),
    ("qwen2", "query_head", "protected", "keep", "layered"),
    ("qwen3", "query_head", "uniform", "keep", "stock"),
    ("qwen3", "kv_group", "global", "keep", "layered"),
]


SETTINGS = GenerationConfig(temperature=0.9, top_p=0.6, suppress_tokens=list(range(60)), num_beams=3, eos_token_id=0)
"""Shipped with well-known checkpoints: settings that transformers refuses to save, and that change greedy choices."""


def masked(
    model_name: str, attention: str, allocation: str, model_class: str = "keep", dtype: torch.dtype = torch.float32
):
    """A LoRA model with non-zero B, pruned once by random scores, as masks. Returns it, its pruner, dense logits."""
    torch.manual_seed(0)
    model = get_peft_model(MODELS[model_name]().to(dtype), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    dense = logits_of(model, IDS)
    sparsity = {"protected": 0.2}.get(allocation, 0.4 if model_class == "mistral" else 0.5)
    pruner = Pruner(
        model, sparsity=sparsity, attention=attention, allocation=allocation, model_class=model_class,
        criterion="random", schedule="one-shot", prune_start=1, total_steps=2, shrink=False,
    )  # fmt: skip
    pruner.observe()
    pruner.step()
    return model, pruner, dense


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Every case exported; the fresh-process check of all of them runs in one child, here at the end."""
    root = tmp_path_factory.mktemp("exports")
    checks: list[Check] = []
    patched = pytest.MonkeyPatch()

    def later(wanted: list[Check]) -> list:
        checks.extend(wanted)
        from secateur.checkpoint.verify import Verified

        return [Verified("", 0.0, 0.0) for _ in wanted]

    patched.setattr(export_module, "verify", later)
    found = {}
    for case in CASES:
        model, pruner, dense = masked(*case[:4])
        output = root / "-".join(case[:4])
        report = export_checkpoint(
            model, pruner.live, pruner.live_keep, output, probe_ids=IDS, dtype=torch.float32,
            tokenizer=tiny_tokenizer(), model_class=case[3],
        )  # fmt: skip
        found[case] = (report, pruner, logits_of(model, IDS), dense, output)
        if case[4] == "layered":
            padded_class = "mistral" if case[0].startswith("mha") else "keep"
            export_config(ExportConfig(model=str(output), output=str(output) + "-padded", model_class=padded_class))
    model, pruner, _ = masked("gqa", "kv_group", "uniform")
    model.get_base_model().generation_config = SETTINGS
    export_checkpoint(model, pruner.live, pruner.live_keep, root / "settings", probe_ids=IDS, dtype=torch.float32)
    model, pruner, _ = masked("gqa", "kv_group", "global", dtype=torch.bfloat16)
    export_checkpoint(model, pruner.live, pruner.live_keep, root / "bf16", probe_ids=IDS, dtype=torch.bfloat16)
    patched.undo()
    # Their temporary folders have been put in place since.
    moved = [replace(check, folder=root / check.folder.name.rsplit(".", 1)[0].removeprefix(".")) for check in checks]
    return found, {check.folder.name: result for check, result in zip(moved, verify(moved), strict=True)}, moved


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(case[:4]))
def test_masked_equals_written(case, exported) -> None:
    found, verified, checks = exported
    report, pruner, expected, dense, output = found[case]
    assert report.format == case[4]
    assert (expected - dense).abs().max() > 100 * TOLERANCE  # the masks do something
    check = next(c for c in checks if c.folder.name == output.name)
    assert (check.logits - expected).abs().max() < TOLERANCE  # masked = merged and sliced
    result = verified[output.name]
    assert 0 <= report.merge_difference < TOLERANCE
    assert result.difference < TOLERANCE  # merged and sliced = what a process without secateur reads
    assert result.class_name.startswith("Layered") == (case[4] == "layered")
    if case[3] == "mistral":
        assert result.class_name == "MistralForCausalLM"
    recount = sum(p.numel() for p in pruner.model.get_base_model().parameters()) - report.parameters
    lora = sum(p.numel() for n, p in pruner.model.named_parameters() if "lora_" in n)
    assert recount - lora == pruner.removed_params  # sparsity reported = recount of the saved checkpoint


@pytest.mark.parametrize("case", [c for c in CASES if c[4] == "layered"], ids=lambda case: "-".join(case[:4]))
def test_padded_is_the_same_function_in_a_stock_class(case, exported) -> None:
    found, verified, checks = exported
    report, _, _, _, output = found[case]
    padded = output.with_name(output.name + "-padded")
    assert not verified[padded.name].class_name.startswith("Layered")
    assert "auto_map" not in json.loads((padded / "config.json").read_text())
    stock = AutoModelForCausalLM.from_pretrained(padded)
    layered = next(c for c in checks if c.folder.name == output.name)
    assert (logits_of(stock, IDS) - layered.logits).abs().max() < TOLERANCE
    assert sum(p.numel() for p in stock.parameters()) >= report.parameters


@pytest.mark.parametrize("case", [c for c in CASES if c[4] == "layered"], ids=lambda case: "-".join(case[:4]))
def test_engines_find_a_layered_result_s_sizes(case, exported) -> None:
    """As vLLM does: it builds the model without its head, and asks the configuration what a layer's cache holds."""
    output = exported[0][case][4]
    body = AutoModel.from_pretrained(output, trust_remote_code=True).eval()
    config, ours = body.config, load_model(ModelSource(str(output), str(output)))
    with torch.inference_mode():
        assert torch.equal(ours.get_output_embeddings()(body(IDS).last_hidden_state), logits_of(ours, IDS))
    for layer, own in zip(body.layers, config.per_layer_config, strict=True):
        rows = [getattr(layer.self_attn, name).weight.shape[0] // config.head_dim for name in ("q_proj", "k_proj")]
        assert [own.num_attention_heads, own.num_key_value_heads] == rows
    assert any(own.num_attention_heads < config.num_attention_heads for own in config.per_layer_config)
    assert not ours.config.is_heterogeneous  # our own commands go by one key alone


def test_tied_embeddings_stay_tied(exported) -> None:
    output = exported[0][CASES[5]][4]
    assert json.loads((output / "config.json").read_text())["tie_word_embeddings"] is True
    from safetensors import safe_open

    with safe_open(output / "model.safetensors", framework="pt") as tensors:
        assert "lm_head.weight" not in tensors.keys()  # noqa: SIM118


def test_a_layered_result_can_be_pruned_again(exported, tmp_path) -> None:
    output = exported[0][CASES[2]][4]
    model = AutoModelForCausalLM.from_pretrained(output, trust_remote_code=True)
    again = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    options = dict(
        criterion="random", schedule="one-shot", prune_start=1, total_steps=2, attention="none", shrink=False
    )
    with pytest.raises(InputError, match='layers differ in size already.*allocation="global" or "protected"'):
        Pruner(again, sparsity=0.2, **options)
    pruner = Pruner(again, sparsity=0.2, allocation="global", **options)
    pruner.observe()
    pruner.step()
    report = export_checkpoint(
        again, pruner.live, pruner.live_keep, tmp_path / "again", probe_ids=IDS, dtype=torch.float32
    )
    assert report.format == "layered"
    assert report.parameters < sum(p.numel() for p in model.parameters())


def test_a_wrong_kv_mapping_fails(tmp_path) -> None:
    """Keys and values cut as if query head h used KV head h % kv_heads: verification must see it."""
    model, pruner, _ = masked("gqa", "kv_group", "uniform")
    wrong = find_units(model.get_base_model(), pruner.units.family)
    for pool in wrong.of_kind("kv_group"):
        keys = next(member for member in pool.members if member.linear.endswith("k_proj"))
        keys.index.copy_(keys.index.flip(0))  # v_proj shares the table
    with pytest.raises(VerificationError, match="nats off the trained one"):
        export_checkpoint(model, wrong, pruner.keep, tmp_path / "out", probe_ids=IDS, dtype=torch.float32)
    assert list(tmp_path.iterdir()) == []


def test_a_process_from_nothing_reads_it_back(tmp_path, from_nothing) -> None:
    """As users have it; the other tests fork a process that has the libraries."""
    model, pruner, _ = masked("gqa", "kv_group", "uniform")
    report = export_checkpoint(
        model, pruner.live, pruner.live_keep, tmp_path / "out", probe_ids=IDS, dtype=torch.float32
    )
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert report.parameters == sum(p.numel() for p in small.parameters())


def test_a_corrupted_write_is_noticed_and_leaves_nothing(tmp_path, monkeypatch) -> None:
    model, pruner, _ = masked("gqa", "kv_group", "uniform")
    save = export_module.PreTrainedModel.save_pretrained

    def corrupting(self, folder, **options):
        with torch.no_grad():
            kept = self.model.layers[1].mlp.down_proj.weight.clone()
            self.model.layers[1].mlp.down_proj.weight[:, 0] += 0.5
            save(self, folder, **options)
            self.model.layers[1].mlp.down_proj.weight.copy_(kept)

    monkeypatch.setattr(export_module.PreTrainedModel, "save_pretrained", corrupting)
    target = tmp_path / "out"
    target.mkdir()
    with pytest.raises(VerificationError, match=r"read back in a fresh process, logits differ by") as error:
        export_checkpoint(model, pruner.live, pruner.live_keep, target, probe_ids=IDS, dtype=torch.float32)
    assert error.value.exit_code == 4
    assert list(tmp_path.iterdir()) == [target]
    assert list(target.iterdir()) == []


def test_one_wrong_bfloat16_entry_is_noticed(tmp_path, monkeypatch) -> None:
    """Too small for any logit tolerance in bfloat16; the weights are compared to the bit."""
    model, pruner, _ = masked("gqa", "kv_group", "uniform", dtype=torch.bfloat16)
    save = export_module.PreTrainedModel.save_pretrained

    def corrupting(self, folder, **options):
        with torch.no_grad():
            weight = self.model.layers[1].mlp.down_proj.weight
            weight[3, 5] *= -1
            save(self, folder, **options)
            weight[3, 5] *= -1

    monkeypatch.setattr(export_module.PreTrainedModel, "save_pretrained", corrupting)
    with pytest.raises(VerificationError, match=r"weights are not those in memory"):
        export_checkpoint(model, pruner.live, pruner.live_keep, tmp_path / "out", probe_ids=IDS, dtype=torch.bfloat16)
    assert list(tmp_path.iterdir()) == []


def test_bfloat16_layers_that_differ(exported) -> None:
    verified = exported[1]["bf16"]
    assert verified.class_name == "LayeredLlamaForCausalLM"
    assert verified.difference <= 2**-6 * 20


def test_generation_settings_are_handed_on_and_do_not_disturb_the_check(exported) -> None:
    folder = exported[2][0].folder.with_name("settings")
    assert "settings" in exported[1]
    written = GenerationConfig.from_pretrained(folder)
    assert (written.temperature, written.top_p, written.num_beams) == (0.9, 0.6, 3)
    assert written.suppress_tokens == list(range(60))


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path) -> None:
    """safetensors raises an error of its own, which is no OSError."""
    model, pruner, _ = masked("gqa", "kv_group", "uniform")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(InputError, match=r"out could not be written: .*File too large"):
            export_checkpoint(
                model, pruner.live, pruner.live_keep, tmp_path / "out", probe_ids=IDS, dtype=torch.float32
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_an_export_does_not_move_the_random_state() -> None:
    model = tiny_llama()
    before = torch.get_rng_state()
    family = family_of("llama")
    shapes = find_units(model, family).shapes
    build_small(model.config, family, shapes, model.state_dict().items(), torch.float32, "keep")
    assert torch.equal(before, torch.get_rng_state())


def test_four_to_three_heads_needs_the_twin_class_or_a_modelling_file() -> None:
    model, family = tiny_llama(heads=4, kv_heads=4), family_of("llama")
    units = find_units(model, family)
    keep = {p.name: torch.arange(p.size) < (3 if p.kind == "kv_group" else p.size) for p in units.pools}
    shapes = units.shapes_after(keep)
    with pytest.raises(InputError, match="config class refuses 3 query heads"):
        resized_config(model.config, family, shapes[0])
    classes = [
        type(build_small(model.config, family, shapes, merged_and_sliced(model, units, keep), torch.float32, cls))
        for cls in ("keep", "mistral")
    ]
    assert [cls.__name__ for cls in classes] == ["LayeredLlamaForCausalLM", "MistralForCausalLM"]


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # PEFT, of what is an error here
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(modules_to_save=["lm_head"], target_modules="all-linear"), "lm_head is trained in full beside LoRA"),
        (dict(target_modules=["q_proj", "v_proj", "lm_head"]), "lm_head: its weight is the input embedding's too"),
    ],
)
def test_adapters_that_cannot_be_merged_are_refused_before_training(options, message) -> None:
    model = get_peft_model(tiny_llama(tied=True), LoraConfig(r=4, **options))
    with pytest.raises(InputError, match=message):
        Pruner(model, sparsity=0.5, total_steps=2)


def cut_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])


def lose_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def lose_a_size(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["secateur_layers"][0]["intermediate_size"]
    (folder / "config.json").write_text(json.dumps(config))


def change_a_size(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["secateur_layers"][0]["intermediate_size"] += 1
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_weights, "model.safetensors is corrupt or truncated .*: copy or download it again"),
        (lose_weights, "has no weights: expected model.safetensors"),
        (lose_a_size, "must give every layer num_attention_heads, num_key_value_heads, intermediate_size"),
        (
            change_a_size,
            r"do not have the shape that config.json says, such as model.layers.0.mlp.down_proj.weight: \(64, ",
        ),
    ],
)
def test_a_damaged_layered_checkpoint_is_refused(damage, message, exported, tmp_path) -> None:
    shutil.copytree(exported[0][CASES[2]][4], tmp_path / "layered")
    damage(tmp_path / "layered")
    with pytest.raises(InputError, match=message):
        export_config(ExportConfig(model=str(tmp_path / "layered"), output=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_an_existing_output_is_kept(tmp_path) -> None:
    model, pruner, _ = masked("gqa", "kv_group", "uniform")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    options = dict(probe_ids=IDS, dtype=torch.float32)
    with pytest.raises(InputError, match=r"out is not empty: choose another folder, or pass overwrite=True"):
        export_checkpoint(model, pruner.live, pruner.live_keep, tmp_path / "out", **options)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"

    def fails(folder: Path, report: object) -> None:
        raise OSError(28, "No space left on device")

    said = r"No space left on device \(.* free there\)\. What was there before is untouched"
    with pytest.raises(InputError, match=said):
        export_checkpoint(
            model, pruner.live, pruner.live_keep, tmp_path / "out", overwrite=True, finish=fails, **options
        )
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_refusals(tmp_path, exported) -> None:
    with pytest.raises(InputError, match="its layers are alike, so it is a stock checkpoint already"):
        export_config(ExportConfig(model=str(exported[0][CASES[0]][4]), output=str(tmp_path / "out")))
    with pytest.raises(InputError, match=r"config.json is missing"):
        export_config(ExportConfig(model=str(tmp_path / "nothing"), output=str(tmp_path / "out")))
    shutil.copytree(exported[0][CASES[2]][4], tmp_path / "layered")
    with pytest.raises(InputError, match="overlap: choose a folder apart"):
        export_config(ExportConfig(model=str(tmp_path / "layered"), output=str(tmp_path / "layered" / "in")))
