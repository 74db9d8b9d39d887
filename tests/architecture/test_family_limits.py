"""What an architecture cannot do, what its class cannot hold, and models that are inside others."""

import re
from dataclasses import replace

import pytest
import torch
from tiny import tiny_llama, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM

from secateur import Pruner
from secateur.architecture.discovery import find_units
from secateur.architecture.families import FAMILIES, Family
from secateur.architecture.layered import LAYERS_KEY
from secateur.architecture.layout import LayerShape
from secateur.architecture.stock import FAMILY_KEY
from secateur.checkpoint.comparing import logits_of
from secateur.checkpoint.convert import export_config
from secateur.checkpoint.export import build_small, save_model
from secateur.checkpoint.padding import padded_shape
from secateur.config.prune import ExportConfig, PruneConfig
from secateur.models.surgery import merged_and_sliced
from secateur.pruning.masks import Masks
from secateur.system.errors import InputError
from secateur.training.prepare import plan_budget, prepare
from tests.architecture.rows import IDS, SIZES, SOFT_CAPS, TYPES, basic, tiny, unregister
from tests.architecture.test_families import pruned


def test_what_an_architecture_cannot_do_is_refused_with_the_reason() -> None:
    with pytest.raises(InputError, match="olmo2 cannot lose heads: its query and key norms run over the whole width"):
        find_units(tiny("olmo2"), FAMILIES["olmo2"], "kv_group")
    with pytest.raises(InputError, match="each of gpt2's query heads has a KV head of its own"):
        find_units(tiny("gpt2"), FAMILIES["gpt2"], "query_head")
    for name, reason in (
        ("bloom", "each head's slope"),
        ("falcon", "the size of a head from the width over the heads"),
    ):
        with pytest.raises(
            InputError, match=f'attention="kv_group": {name} cannot lose heads: .*{reason}.*the FFN takes'
        ):
            Pruner(tiny(name), sparsity=0.2, criterion="magnitude", attention="kv_group")
    with pytest.raises(InputError, match="as many KV heads as query heads .*kv_group"):
        Pruner(tiny_llama(heads=4, kv_heads=4), sparsity=0.2, criterion="magnitude", attention="query_head")
    with pytest.raises(
        InputError, match=r"can have 6 heads and an FFN of .*FFN of 4 times its width.*use .*allocation"
    ):
        Pruner(tiny("bloom"), sparsity=0.2, criterion="magnitude")
    for name in ("mistral", "llama"):  # this llama has biases at q, k, v and o only
        with pytest.raises(InputError, match=r"(o|down)_proj has no bias to hold the constant.*compensate..?lstsq"):
            Pruner(tiny(name), sparsity=0.2, criterion="flap", compensate="bias")
    Pruner(tiny("opt"), sparsity=0.2, criterion="flap", compensate="bias")
    with pytest.raises(InputError, match="does not follow the phi3 layout"):
        broken = tiny("phi3")
        broken.model.layers[1].mlp.down_proj = torch.nn.Linear(79, 48)
        find_units(broken, FAMILIES["phi3"])


DERIVED = ["gpt2", "gpt_neox", "opt", "gptj", "phi/qk_layernorm"]
"""Head counts that a stock checkpoint cannot say, as a layered one can."""


@pytest.mark.parametrize("name", DERIVED)
def test_heads_that_a_stock_checkpoint_cannot_lose_are_refused_with_the_reason(name) -> None:
    model, options = tiny(name), {"sparsity": 0.4, "criterion": "magnitude"}
    reason = "takes the size of a head from the width over the heads.*use .*protected.? or .?global"
    with pytest.raises(InputError, match=f'attention="kv_group": .*{reason}'):
        Pruner(model, attention="kv_group", **options)
    with pytest.raises(InputError, match=f"attention.sparsity.0.5: .*Reachable: 0.000. .*{reason}"):
        Pruner(model, attention_sparsity=0.5, **options)
    assert re.search(reason, Pruner(model, **options).budget.heads_stay)
    protected = Pruner(model, attention="kv_group", allocation="protected", protect_first=0, protect_last=0, **options)
    assert all(protected.budget.quota[pool.name] for pool in protected.units.of_kind("kv_group"))
    assert protected.budget.heads_stay == ""


def test_a_run_says_why_its_heads_stay(tmp_path) -> None:
    tiny("gpt2").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("a quick brown fox jumps over the lazy dog. " * 40)
    settings = PruneConfig(
        model=str(tmp_path / "model"), data=(str(tmp_path / "text.txt"),), output=str(tmp_path / "out"), sparsity=0.3,
        steps=4, batch_size=2, seq_len=32,
    )  # fmt: skip
    (note,) = (note for note in prepare(settings).notes if "heads" in note)
    assert re.fullmatch("attention heads stay: a stock gpt2 .*the width over the heads.*: use --allocation .*", note)
    assert not prepare(replace(settings, allocation="global")).notes
    assert not prepare(replace(settings, attention="none")).notes


@pytest.mark.parametrize(
    "name", [name for name in basic.TYPES if FAMILIES[name.split("/")[0]].formats["ffn"][0] == "stock"]
)
def test_uniform_keeps_what_stock_cannot_lose(name) -> None:
    pruner = Pruner(tiny(name), sparsity=0.3, criterion="magnitude")
    assert isinstance(pruner.units.family, Family)
    assert pruner.budget.sparsity == pytest.approx(0.3, abs=0.005)


def test_the_variants_are_what_they_say() -> None:
    for name in ("qwen2/layer_types", "qwen3/layer_types", "gemma3_text"):
        assert len(set(tiny(name).config.layer_types)) == 2, "full attention and sliding windows"
    for name, keys in {"llama/rope": ("rope_parameters",), "gemma2": SOFT_CAPS, "gemma3_text": SOFT_CAPS}.items():
        model = tiny(name)
        plain = AutoConfig.for_model(model.config.model_type).to_dict()
        values = {**model.config.to_dict(), **{key: plain[key] for key in keys}}
        if "rope_parameters" in keys:
            values["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4}
        other = type(model)(type(model.config)(**values)).eval()
        other.load_state_dict(model.state_dict())
        expected = logits_of(model, IDS)
        assert (logits_of(other, IDS) - expected).abs().max() > 0.01 * expected.abs().max(), keys


def test_a_llama_with_scaled_frequencies_becomes_a_mistral() -> None:
    """Whose config takes the five query heads that Llama's refuses."""
    base = tiny("llama/rope")
    units = find_units(base, FAMILIES["llama"], "kv_group")
    keep = {pool.name: torch.arange(pool.size) > 0 for pool in units.pools}
    masks = Masks(units, {path: base.get_submodule(path) for path in units.linears}, {})
    masks.update(keep)
    expected = logits_of(base, IDS)
    shapes, tensors = units.shapes_after(keep), merged_and_sliced(base, units, keep)
    small = build_small(base.config, units.family, shapes, tensors, torch.float32, "mistral")
    assert type(small).__name__ == "MistralForCausalLM"
    assert small.config.rope_parameters == base.config.rope_parameters
    torch.testing.assert_close(logits_of(small, IDS), expected, rtol=0.0, atol=float(2e-5 * expected.abs().max()))


def test_norms_of_each_head_keep_the_heads_of_some_models_of_a_type(monkeypatch) -> None:
    """Command R+ has them, other Commands have none: what is written computes the masked model."""
    monkeypatch.setitem(TYPES, "cohere/normed", {"use_qk_norm": True, "logit_scale": 0.5})
    base = tiny("cohere/normed", 2)
    with pytest.raises(InputError, match="cohere cannot lose heads: each head has norms of its own"):
        find_units(base, FAMILIES["cohere"], "kv_group")
    assert find_units(tiny("cohere", 2), FAMILIES["cohere"]).of_kind("kv_group")
    units = find_units(base, FAMILIES["cohere"])
    keep = {pool.name: torch.arange(pool.size) >= 60 for pool in units.pools}
    masks = Masks(units, {path: base.get_submodule(path) for path in units.linears}, {})
    masks.update(keep)
    expected = logits_of(base, IDS)
    shapes, tensors = units.shapes_after(keep), merged_and_sliced(base, units, keep)
    small = build_small(base.config, units.family, shapes, tensors, torch.float32, "keep")
    assert small.config.intermediate_size == 180
    torch.testing.assert_close(logits_of(small, IDS), expected, rtol=0.0, atol=float(2e-5 * expected.abs().max()))


def test_an_unknown_type_of_a_known_layout_is_told_so(monkeypatch) -> None:
    unregister("stablelm", monkeypatch)
    options = {key: value for key, value in SIZES.items() if value is not None} | {"hidden_size": 96}
    del options["head_dim"], options["rms_norm_eps"]
    config = AutoConfig.for_model("stablelm", **options)
    model = AutoModelForCausalLM.from_config(config)
    hint = "'stablelm', whose modules look like the llama layout: pass family=.llama. attention=.none. .a result"
    with pytest.raises(InputError, match=hint):
        Pruner(model, sparsity=0.2, criterion="magnitude")
    assert Pruner(model, sparsity=0.2, criterion="magnitude", family="llama").units.shapes[0].key() == (6, 3, 240)
    settings = PruneConfig(model="m", data=("d",), output="o", family="llama", sparsity=0.5)
    # It takes the size of a head from the width over the heads.
    built = r"llama layout leaves .*q_proj.weight with .*64, 96|built as 4 .* of 24 and .*attention=.none"
    with pytest.raises(InputError, match=built):
        plan_budget(settings, config)
    with pytest.raises(InputError, match=built):
        Pruner(model, sparsity=0.5, criterion="magnitude", family="llama")
    plan_budget(replace(settings, attention="none", sparsity=0.3), config)


def test_norms_over_all_heads_are_not_taken_for_another_layout(monkeypatch) -> None:
    options = {key: value for key, value in SIZES.items() if value is not None} | {"hidden_size": 96}
    unregister("olmo3", monkeypatch)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("olmo3", **options))
    hint = "'olmo3', whose modules look like the llama layout: pass family=.llama. attention=.none. .a result"
    with pytest.raises(InputError, match=hint):
        Pruner(model, sparsity=0.2, criterion="magnitude")
    with pytest.raises(InputError, match="its query and key norms run over the whole width"):
        Pruner(model, sparsity=0.2, criterion="magnitude", family="olmo2", attention="kv_group")
    Pruner(model, sparsity=0.2, criterion="magnitude", family="olmo2")


def test_a_layered_result_of_a_named_family_can_be_padded(tmp_path, monkeypatch) -> None:
    unregister("stablelm", monkeypatch)
    options = {key: value for key, value in SIZES.items() if value is not None} | {"hidden_size": 96}
    del options["head_dim"], options["rms_norm_eps"]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("stablelm", **options)).eval()
    units = find_units(model, FAMILIES["llama"], "none")
    keep = {pool.name: torch.arange(pool.size) >= 20 * (pool.layer + 1) for pool in units.pools}
    shapes, tensors = units.shapes_after(keep), merged_and_sliced(model, units, keep)
    small = build_small(model.config, units.family, shapes, tensors, torch.float32, "keep")
    save_model(small, tmp_path / "layered", units.family)
    tiny_tokenizer().save_pretrained(tmp_path / "layered")
    report = export_config(ExportConfig(model=str(tmp_path / "layered"), output=str(tmp_path / "padded")))
    assert (report.format, report.model_class) == ("padded", "StableLmForCausalLM")
    padded = AutoModelForCausalLM.from_pretrained(tmp_path / "padded")
    assert padded.config.intermediate_size == 220
    assert not {LAYERS_KEY, FAMILY_KEY} & padded.config.to_dict().keys()
    settings = tmp_path / "layered" / "config.json"
    settings.write_text(settings.read_text().replace('"secateur_family": "llama"', '"secateur_family": "mine"'))
    with pytest.raises(InputError, match="written with the layout 'mine', which is not known here: register it"):
        export_config(ExportConfig(model=str(tmp_path / "layered"), output=str(tmp_path / "other")))
    expected = logits_of(small, IDS)
    torch.testing.assert_close(logits_of(padded, IDS), expected, rtol=0.0, atol=float(2e-5 * expected.abs().max()))


def test_padding_finds_the_one_head_count_or_says_what_else() -> None:
    config, family = tiny("gpt2").config, FAMILIES["gpt2"]
    few = (LayerShape(2, 2, 100, 16), LayerShape(1, 1, 80, 16))
    assert padded_shape(config, family, few, "keep").key() == (6, 6, 100)  # the width over the size of a head
    odd = (LayerShape(2, 2, 100, 17),)
    with pytest.raises(InputError, match="gpt2's config class takes no head count from 2 to 5: keep the layered"):
        padded_shape(config, family, odd, "keep")
    one = tiny("llama/rope").config
    one.hidden_size = 47
    with pytest.raises(InputError, match="llama's config class takes no head .*: pass --model-class mistral"):
        padded_shape(one, FAMILIES["llama"], (LayerShape(4, 2, 100, 16),), "keep")


def test_a_shared_bias_that_is_trained_stays_so() -> None:
    model = tiny("t5").requires_grad_(True)
    pruner = Pruner(
        model, sparsity=0.3, total_steps=2, prune_start=0, prune_end=1, frequency=1, criterion="taylor",
        attention_sparsity=1 / 3,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(input_ids=IDS, labels=IDS).loss.backward()
    pruner.observe()
    optimizer.step()
    pruner.step(optimizer)
    bias = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    assert bias.requires_grad
    assert bias.shape[1] == 4
    assert any(bias is parameter for parameter in optimizer.param_groups[0]["params"])
    assert optimizer.state[bias]["exp_avg"].shape == bias.shape


def test_a_text_model_inside_another_is_saved_first(tmp_path) -> None:
    # transformers' class of the whole applies no cap to its logits (Gemma 3 has none), that of the text does.
    inner = tiny("gemma3_text").config.to_dict() | {"final_logit_softcapping": None}
    eyes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    config = AutoConfig.for_model("gemma3", text_config=inner, vision_config=eyes | {"patch_size": 14})
    model = AutoModelForImageTextToText.from_config(config).eval()
    with pytest.raises(
        InputError,
        match=r"a gemma3 holds its text model \(gemma3_text\) beside others.*"
        "secateur extract-text FOLDER TEXT",
    ):
        Pruner(model, sparsity=0.2, criterion="magnitude")
    for family in (None, "gemma3_text"):
        with pytest.raises(InputError, match="a gemma3 holds its text model"):
            plan_budget(PruneConfig(model="m", data=("d",), output="o", family=family, sparsity=0.5), config)
    model.save_pretrained(tmp_path / "whole")
    tiny_tokenizer().save_pretrained(tmp_path / "whole")
    export_config(ExportConfig(model=str(tmp_path / "whole"), output=str(tmp_path / "text"), format="text"))
    text = AutoModelForCausalLM.from_pretrained(tmp_path / "text")
    torch.testing.assert_close(logits_of(text, IDS), logits_of(model, IDS), rtol=0.0, atol=1e-6)
    assert Pruner(text, sparsity=0.2, criterion="magnitude").units.family is FAMILIES["gemma3_text"]


def test_an_encoder_decoder_is_pruned_and_written_from_python(tmp_path) -> None:
    model, pruner = pruned("t5", "kv_group", shrink=True)
    report = pruner.export(tmp_path / "out")
    assert report.format == "stock"
    assert "AutoModelForSeq2SeqLM.from_pretrained" in report.loads_with
    small = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    assert (small.config.num_heads, small.config.d_kv) == (4, 16)
    # The heads of all layers of a stack go together: they share the first layer's bias by distance.
    for stack in (small.encoder, small.decoder):
        assert stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight.shape[1] == 4
    gone = {tuple(pruner.keep[pool.name].tolist()) for pool in pruner.units.of_kind("kv_group")}
    assert len(pruner.units.of_kind("kv_group")) == 4  # encoder, decoder, and each of two layers of cross-attention
    assert len(gone) > 1
    expected = logits_of(model, IDS)
    torch.testing.assert_close(logits_of(small, IDS), expected, rtol=0.0, atol=float(2e-5 * expected.abs().max()))
