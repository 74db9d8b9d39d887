"""DeciLM's form of layers that differ: the same function, in the sizes that vLLM's class builds, and no code runs."""

import json

import pytest
import torch
from safetensors import safe_open
from tiny import tiny_llama, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from secateur.architecture.families import FAMILIES
from secateur.architecture.layered import MODULE
from secateur.architecture.layout import LayerShape
from secateur.checkpoint.comparing import logits_of
from secateur.checkpoint.convert import export_config
from secateur.checkpoint.export import save_model, small_class
from secateur.checkpoint.serving.decilm import decilm_shapes
from secateur.config.prune import ExportConfig
from secateur.models.loading import load_model
from secateur.models.source import ModelSource
from secateur.system.errors import InputError

SHAPES = tuple(LayerShape(heads, kv_heads, ffn, 16) for heads, kv_heads, ffn in ((4, 2, 40), (2, 1, 8), (3, 3, 24)))
IDS = torch.arange(3, 60).unsqueeze(0)


def layered(folder, shapes=SHAPES, **options):
    """A folder of a wide random model with these layers, in float64."""
    values = {**tiny_llama(bias=True).config.to_dict(), "num_hidden_layers": len(shapes), **options}
    config = AutoConfig.for_model(**{"sliding_window": None, **values})
    family = FAMILIES[config.model_type]
    cls, config = small_class(config, family, shapes, "keep")
    model, generator = cls._from_config(config, dtype=torch.float64), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.2)
    config.architectures = [cls.__name__]
    save_model(model, folder, family)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def read(folder):
    return load_model(ModelSource(str(folder), str(folder)))


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_attention_padded_to_equal_heads_is_the_same_function(model_type, tmp_path) -> None:
    wanted = logits_of(read(layered(tmp_path / "in", model_type=model_type)), IDS)
    out = tmp_path / "out"
    report = export_config(ExportConfig(model=str(tmp_path / "in"), output=str(out), format="vllm"))
    assert report.format == "vllm"
    config = json.loads((out / "config.json").read_text())
    with safe_open(out / "model.safetensors", framework="pt") as tensors:
        for number, block in enumerate(config["block_configs"]):  # as vLLM's class reckons what it builds
            rows = {
                "self_attn.q_proj": config["num_attention_heads"] * config["head_dim"],
                "self_attn.k_proj": config["num_attention_heads"] // block["attention"]["n_heads_in_group"] * 16,
                "mlp.up_proj": block["ffn"]["intermediate_size"],
            }
            for name, count in rows.items():
                assert tensors.get_slice(f"model.layers.{number}.{name}.weight").get_shape()[0] == count
        biased = "model.layers.0.self_attn.o_proj.bias" in tensors.keys()  # noqa: SIM118
    assert (config["qkv_bias"], config.get("attention_bias", False)) == (True, biased)
    by_its_code = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True, dtype="auto")
    assert type(by_its_code.config).__name__ == "DeciLMConfig"
    assert by_its_code.config.block_configs[1].ffn.intermediate_size == 8
    (out / f"{MODULE}.py").write_text("raise SystemExit('ran')\n")
    for model in (by_its_code, read(out)):  # the second by the class that we have
        assert (logits_of(model, IDS) - wanted).abs().max() < 1e-12 * wanted.abs().max()


def test_the_fewest_heads_that_hold_every_layer() -> None:
    """Query heads are those of the widest layer, and more only where no number of KV heads divides them."""
    config, family = tiny_llama(hidden=60, heads=4, kv_heads=4, head_dim=16).config, FAMILIES["llama"]

    def found(*pairs: tuple[int, int]) -> list[tuple[int, int]]:
        shapes = tuple(LayerShape(heads, kv_heads, 8, 16) for heads, kv_heads in pairs)
        wide = decilm_shapes(config, family, shapes)
        for narrow, held in zip(shapes, wide, strict=True):
            assert held.kv_heads >= narrow.kv_heads
            assert held.heads // held.kv_heads >= narrow.heads // narrow.kv_heads
            assert held.heads % held.kv_heads == 0
        return [(shape.heads, shape.kv_heads) for shape in wide]

    assert found((6, 3), (4, 2), (2, 1)) == [(6, 3), (6, 2), (6, 1)]
    assert found((4, 2), (3, 3)) == [(4, 2), (4, 4)]
    assert found((5, 5), (4, 2)) == [(6, 6), (6, 2)]  # of five heads, two in a group make two and a half


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"model_type": "qwen3"},
            "this is a qwen3: it norms queries.*vllm serve .*--trust-remote-code. --format padded",
        ),
        ({"model_type": "mistral", "sliding_window": 8}, "its attention has a window"),
        ({"shapes": (LayerShape(4, 4, 40, 16), LayerShape(3, 3, 40, 16))}, "its layers are alike: use --format padded"),
    ],
)
def test_what_decilm_would_compute_otherwise_is_refused(options, message, tmp_path) -> None:
    layered(tmp_path / "in", **options)
    with pytest.raises(InputError, match=message):
        export_config(ExportConfig(model=str(tmp_path / "in"), output=str(tmp_path / "out"), format="vllm"))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_stock_checkpoint_needs_no_other_form(tmp_path) -> None:
    tiny_llama().save_pretrained(tmp_path / "in")
    with pytest.raises(InputError, match=r"vLLM takes it as it is: vllm serve \S+/in\."):
        export_config(ExportConfig(model=str(tmp_path / "in"), output=str(tmp_path / "out"), format="vllm"))


def test_a_layered_folder_of_before_is_read_as_it_was(tmp_path) -> None:
    """Without what engines ask for, and with another modelling file, which is not run."""
    folder = layered(tmp_path / "in")
    wanted = logits_of(read(folder), IDS)
    config = json.loads((folder / "config.json").read_text())
    for key in ("per_layer_config", "allow_global_per_layer_attribute_access"):
        del config[key]
    del config["auto_map"]["AutoModel"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / f"{MODULE}.py").write_text("raise SystemExit('ran')\n")
    assert torch.equal(logits_of(read(folder), IDS), wanted)


def test_attention_and_ffns_that_are_gone_are_no_op(tmp_path) -> None:
    """The first layer's attention is zeros instead: vLLM's class passes on what enters it from there."""
    shapes = tuple(LayerShape(*sizes, 16) for sizes in ((0, 0, 40), (4, 2, 0), (0, 0, 0), (2, 1, 24), (0, 0, 24)))
    folder = layered(tmp_path / "in", shapes, attention_bias=False, mlp_bias=False)
    wanted, out = logits_of(read(folder), IDS), tmp_path / "out"
    export_config(ExportConfig(model=str(folder), output=str(out), format="vllm"))
    blocks = json.loads((out / "config.json").read_text())["block_configs"]
    assert [block["attention"]["no_op"] for block in blocks] == [False, False, True, False, True]
    assert [block["ffn"]["no_op"] for block in blocks] == [False, True, True, False, False]
    with safe_open(out / "model.safetensors", framework="pt") as tensors:
        gone = (".4.self_attn.", ".4.input_layernorm", ".1.mlp.", ".1.post_attention_layernorm", ".2.")
        assert not [name for name in tensors.keys() if any(part in name for part in gone)]  # noqa: SIM118
    by_its_code = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True, dtype="auto")
    assert (logits_of(by_its_code, IDS) - wanted).abs().max() < 1e-12 * wanted.abs().max()
    assert (logits_of(read(out), IDS) - wanted).abs().max() < 1e-12 * wanted.abs().max()
