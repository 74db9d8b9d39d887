"""A tiny Llama as a GGUF file, with a byte-level tokenizer in it."""

from pathlib import Path

import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quantize
from tiny import tiny_llama
from tokenizers.pre_tokenizers import ByteLevel

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def save_gguf(path: Path, *, layers: int = 2, kind: str = "F32") -> Path:
    """Weights are of `kind`, norms float32; rows of q and k are not permuted: another model than `tiny_llama`'s."""
    tokens = ["<|end|>", *sorted(ByteLevel.alphabet()), "ab"]
    model = tiny_llama(layers=layers, vocab=len(tokens))
    config = model.config
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(str(path), "llama")
    writer.add_block_count(layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL, *[TokenType.NORMAL] * (len(tokens) - 1)])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    state = model.state_dict()

    def add(name: str, values: torch.Tensor) -> None:
        type_ = GGMLQuantizationType[kind if values.dim() > 1 else "F32"]
        writer.add_tensor(name, quantize(values.numpy(), type_), raw_dtype=type_)

    add("token_embd.weight", state["model.embed_tokens.weight"])
    add("output_norm.weight", state["model.norm.weight"])
    add("output.weight", state["lm_head.weight"])
    for layer in range(layers):
        for ours, theirs in NAMES.items():
            add(f"blk.{layer}.{theirs}.weight", state[f"model.layers.{layer}.{ours}.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
