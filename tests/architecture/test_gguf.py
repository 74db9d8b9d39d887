"""GGUF files: what a file says of its model is followed, to the bit, or refused by name."""

import numpy as np
import pytest
import torch
from tiny import tiny_llama
from tiny_gguf import NAMES, TOKENS, save_gguf
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaForCausalLM,
    Phi3Config,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from secateur.architecture.gguf import settle_
from secateur.models.files import check_checkpoint
from secateur.models.loading import load_config, load_model
from secateur.models.source import resolve_model
from secateur.system.errors import InputError

IDS = torch.arange(1, 101)[None]
SIZES = {
    "vocab_size": len(TOKENS), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 0,
    "eos_token_id": 0, "pad_token_id": 0, "tie_word_embeddings": True,
}  # fmt: skip


def wide(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.copy_(1 + values if "norm" in name and "gemma" not in model.config.model_type else values)
    return model.eval()


def plain(**options):
    return tiny_llama(layers=2, vocab=len(TOKENS), **options)


def stretched(**rope):
    model = plain()
    model.config.rope_parameters = {"rope_theta": 10000.0, **rope}
    other = LlamaForCausalLM(model.config).eval()
    other.load_state_dict(model.state_dict())
    return other


def divisors(model):
    return {"rope_freqs.weight": (plain().model.rotary_emb.inv_freq / model.model.rotary_emb.inv_freq).numpy()}


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
QK = {**NAMES, "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
GEMMA = {
    **QK, "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip


def llama3(context):
    model = stretched(**LLAMA3, original_max_position_embeddings=context)
    return model, {"tensors": divisors(model)}


def yarn():
    model = stretched(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
    scaling = {"type": "yarn", "factor": 4.0, "original_context_length": 64}
    return model, {"keys": {f"llama.rope.scaling.{key}": value for key, value in scaling.items()}}


def linear(**keys):
    return stretched(rope_type="linear", factor=4.0), {"keys": {f"llama.rope.{key}": v for key, v in keys.items()}}


def gemma2():
    config = Gemma2Config(
        **SIZES, head_dim=16, query_pre_attn_scalar=16, sliding_window=16, attn_logit_softcapping=20.0,
        final_logit_softcapping=None,
    )  # fmt: skip
    keys = {
        "attention.key_length": 16, "attention.sliding_window": 16, "attn_logit_softcapping": 20.0,
        "final_logit_softcapping": 0.0,
    }  # fmt: skip
    model = wide(Gemma2ForCausalLM(config))
    return model, {
        "model": model,
        "arch": "gemma2",
        "names": GEMMA,
        "keys": {f"gemma2.{k}": v for k, v in keys.items()},
    }


def gemma3():
    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    }
    sizes = {**SIZES, "num_hidden_layers": 6}
    config = Gemma3TextConfig(**sizes, head_dim=16, query_pre_attn_scalar=16, sliding_window=16, rope_parameters=rope)
    keys = {
        "attention.key_length": 16, "attention.sliding_window": 16, "rope.freq_base": 1e6, "rope.scaling.factor": 8.0,
        "rope.scaling.type": "linear", "attention.sliding_window_pattern": [True] * 5 + [False],
    }  # fmt: skip
    model = wide(Gemma3ForCausalLM(config))
    return model, {
        "model": model,
        "arch": "gemma3",
        "names": GEMMA,
        "keys": {f"gemma3.{k}": v for k, v in keys.items()},
    }


def qwen3():
    model = wide(Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=32)))
    keys = {f"qwen3.{key}": 32 for key in ("attention.key_length", "attention.value_length", "rope.dimension_count")}
    return model, {"model": model, "arch": "qwen3", "names": QK, "keys": keys}


def with_biases():
    model = plain(bias=True)
    return model, {"model": model}


FOLLOWED = {
    "as it is": lambda: (plain(), {}),
    "keys that change nothing": lambda: (
        plain(),
        {"keys": {"llama.rope.scaling.type": "none", "llama.expert_count": 0, "llama.attention.sliding_window": 512}},
    ),
    "linear": lambda: linear(**{"scaling.type": "linear", "scaling.factor": 4.0}),
    "linear, in an old file": lambda: linear(scale_linear=4.0),
    "yarn": yarn,
    "Llama 3's": lambda: llama3(64),
    "biases": with_biases,
    "gemma 2": gemma2,
    "gemma 3": gemma3,
    "qwen 3": qwen3,
}


@pytest.mark.parametrize("case", FOLLOWED)
def test_what_the_file_says_is_followed(case, tmp_path):
    model, options = FOLLOWED[case]()
    source = resolve_model(str(save_gguf(tmp_path / "m.gguf", **options)))
    with torch.no_grad():
        torch.testing.assert_close(load_model(source)(IDS).logits, model(IDS).logits, rtol=0, atol=1e-5)
        if case in ("linear", "yarn", "Llama 3's"):
            assert (plain()(IDS).logits - model(IDS).logits).abs().max() > 0.1


def test_llama_3s_divisors_of_real_sizes(tmp_path):
    """The 8,192 positions that Llama 3 was trained on, and its real frequencies."""
    _, options = llama3(8192)
    config = load_config(resolve_model(str(save_gguf(tmp_path / "m.gguf", **options))))
    assert config.rope_parameters == {"rope_theta": 10000.0, **LLAMA3, "original_max_position_embeddings": 8192}


LEFT_OUT = {
    "llama.rope.scaling.type": "longrope", "llama.attention.scale": 0.5, "llama.logit_scale": 0.5,
    "llama.attention.sliding_window": 16, "llama.expert_count": 8, "llama.attention.clamp_kqv": 1.0,
    "llama.attention.causal": False, "llama.final_logit_softcapping": 30.0, "llama.residual_scale": 0.5,
    "llama.embedding_scale": 2.0, "llama.attention.max_alibi_bias": 8.0, "llama.nextn_predict_layers": 1,
    "llama.attn_logit_softcapping": 50.0, "llama.rope.scaling.attn_factor": 0.5, "llama.swin_norm": True,
    "llama.attention.temperature_scale": 0.5, "llama.attention.key_length_mla": 8,
}  # fmt: skip


@pytest.mark.parametrize("key", LEFT_OUT)
def test_keys_that_a_llama_has_no_place_for(key, tmp_path):
    source = resolve_model(str(save_gguf(tmp_path / "m.gguf", keys={key: LEFT_OUT[key]})))
    with pytest.raises(InputError, match=rf"{key} is {LEFT_OUT[key]}, which transformers leaves out .*Give the orig"):
        load_config(source)


ONES = np.ones(16, dtype=np.float32)
REFUSED = {
    "a part": ({"keys": {"split.count": 2, "split.no": 0}}, r"split\.count is 2, .*llama-gguf-split --merge"),
    "an adapter": ({"keys": {"general.type": "adapter"}}, r"general\.type is 'adapter', so it is no model"),
    "a projector": ({"keys": {"general.type": "mmproj"}, "arch": "clip"}, r"general\.type is 'mmproj'"),
    "an unknown architecture": ({"arch": "clip"}, r"reads no GGUF file of the architecture 'clip'"),
    "layers that differ": ({"keys": {"llama.feed_forward_length": [96, 80]}}, r"feed_forward_length differs between"),
    "whole numbers": ({"tensors": {"blk.0.ffn_up.weight": np.ones((96, 64), dtype=np.int8)}}, r"of the kind I8, which"),
    "a further norm": (
        {"tensors": {"blk.0.attn_q_norm.weight": ONES}},
        r"leaves out 1 tensors of this llama file, such as blk\.0\.attn_q_norm\.weight",
    ),
    "divisors of another kind": (
        {"tensors": {"rope_freqs.weight": np.linspace(1, 3, 8, dtype=np.float32)}},
        r"rope_freqs\.weight is there, which transformers leaves out",
    ),
    "a near base": ({"keys": {"llama.rope.freq_base_swa": 500.0}}, r"llama\.rope\.freq_base_swa is 500\.0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_are_refused_from_their_head(case, tmp_path):
    options, message = REFUSED[case]
    source = resolve_model(str(save_gguf(tmp_path / "m.gguf", **options)))
    with pytest.raises(InputError, match=message) as caught:
        load_config(source)
    assert "config.json" not in str(caught.value)


def test_what_does_not_fit_the_file_does_not_ask_for_a_config_json(tmp_path):
    biases = {f"blk.{layer}.attn_q.bias": np.ones(64, dtype=np.float32) for layer in range(2)}
    for options, message in (
        ({"drop": ("blk.1.ffn_up.weight",)}, r"blk\.1\.ffn_up\.weight is not in the file"),
        ({"tensors": biases}, r"blk\.0\.attn_k\.bias is not in the file"),
        ({"keys": {"llama.feed_forward_length": 80}}, r"does not have the shape that its metadata says: \(96, 64\) in"),
        ({"keys": {"llama.vocab_size": 10**9}}, r"token_embd\.weight does not have the shape that its metadata says"),
        ({"drop": ("llama.block_count",)}, r"blk\.2\.\w+\.weight is not in the file"),
    ):
        source = resolve_model(str(save_gguf(tmp_path / "m.gguf", **options)))
        for read in (load_config, load_model):
            with pytest.raises(InputError, match=rf"{message}.*get the file again, or give the original") as caught:
                read(source)
            assert "config.json" not in str(caught.value)


def test_a_truncated_file(tmp_path):
    path = save_gguf(tmp_path / "m.gguf")
    data = path.read_bytes()
    for length, message in ((0, "corrupt"), (600, "corrupt or truncated"), (len(data) - 100, "lies beyond its end")):
        path.write_bytes(data[:length])
        for read in (check_checkpoint, load_config):
            with pytest.raises(InputError, match=rf"{message}.*copy or download it again"):
                read(resolve_model(str(path)))


def test_keys_that_only_the_writer_knows_are_named(tmp_path, caplog):
    load_config(resolve_model(str(save_gguf(tmp_path / "m.gguf", keys={"llama.vendor.note": 1, "vendor.note": 1}))))
    assert "llama.vendor.note = 1 is not known to gguf-py and was left out" in caplog.text


def test_a_window_is_taken_where_the_class_has_one(tmp_path):
    path = save_gguf(tmp_path / "m.gguf", arch="phi3", keys={"phi3.attention.sliding_window": 16})
    config = Phi3Config(**SIZES)
    with pytest.raises(InputError, match="leaves out"):  # its tensors are named otherwise
        settle_(config, path)
    assert config.sliding_window == 16


def test_qwen2_has_biases_of_its_own(tmp_path):
    model = wide(Qwen2ForCausalLM(Qwen2Config(**SIZES)))
    source = resolve_model(str(save_gguf(tmp_path / "m.gguf", model=model, arch="qwen2")))
    with torch.no_grad():
        torch.testing.assert_close(load_model(source)(IDS).logits, model(IDS).logits, rtol=0, atol=1e-5)
