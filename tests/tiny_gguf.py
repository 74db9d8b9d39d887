"""A tiny Llama as a GGUF file, with a byte-level tokenizer in it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quantize
from tiny import tiny_llama
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedModel

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
TOKENS = ["<|end|>", *sorted(ByteLevel.alphabet()), "ab"]


def save_gguf(
    path: Path,
    *,
    layers: int = 2,
    kind: str = "F32",
    model: PreTrainedModel | None = None,
    arch: str = "llama",
    keys: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
    names: Mapping[str, str] = NAMES,
    drop: tuple[str, ...] = (),
) -> Path:
    """Tensors of a `tiny_llama`, or of `model`, which reads back as the very same.

    Args:
        kind: of the weights, as gguf-py calls it; norms stay float32.
        keys, tensors: further ones.
        names: of a layer's modules -> of the file's tensors.
        drop: keys and tensors that are left out.
    """
    model = tiny_llama(layers=layers, vocab=len(TOKENS)) if model is None else model
    config = model.config
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(str(path), arch)
    values = {
        f"{arch}.block_count": config.num_hidden_layers,
        f"{arch}.context_length": config.max_position_embeddings,
        f"{arch}.embedding_length": config.hidden_size,
        f"{arch}.feed_forward_length": config.intermediate_size,
        f"{arch}.attention.head_count": config.num_attention_heads,
        f"{arch}.attention.head_count_kv": config.num_key_value_heads,
        f"{arch}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{arch}.rope.freq_base": 10000.0,
        f"{arch}.vocab_size": len(TOKENS),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.bos_token_id": 0,
    }
    for key, value in {**values, **(keys or {})}.items():
        if key in drop:
            continue
        add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        add.get(type(value), writer.add_array)(key, value)
    writer.add_token_list(TOKENS)
    writer.add_token_types([TokenType.CONTROL, *[TokenType.NORMAL] * (len(TOKENS) - 1)])
    writer.add_token_merges(["a b"])
    for name, value in _tensors(model, arch, names).items():
        if name not in drop and name not in (tensors or {}):
            type_ = GGMLQuantizationType[kind if value.ndim > 1 else "F32"]
            writer.add_tensor(name, quantize(np.ascontiguousarray(value), type_), raw_dtype=type_)
    for name, value in (tensors or {}).items():
        writer.add_tensor(name, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(model: PreTrainedModel, arch: str, names: Mapping[str, str]) -> dict[str, np.ndarray]:
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    found = {"token_embd.weight": state["model.embed_tokens.weight"], "output_norm.weight": state["model.norm.weight"]}
    if not model.config.tie_word_embeddings:
        found["output.weight"] = state["lm_head.weight"]
    for layer in range(model.config.num_hidden_layers):
        for ours, theirs in names.items():
            for leaf in ("weight", "bias"):
                value = state.get(f"model.layers.{layer}.{ours}.{leaf}")
                if value is None:
                    continue
                if arch == "llama" and theirs in ("attn_q", "attn_k"):
                    heads = model.config.num_attention_heads if theirs == "attn_q" else model.config.num_key_value_heads
                    halves = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
                    value = halves.swapaxes(1, 2).reshape(value.shape)
                found[f"blk.{layer}.{theirs}.{leaf}"] = value
    offset = 1 if arch.startswith("gemma") else 0
    return {name: value + offset if "norm" in name else value for name, value in found.items()}
