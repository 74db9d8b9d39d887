"""A row for each registered model type: a tiny model from its real config class."""

import torch
from transformers import AutoConfig

from secateur.architecture.experts import unstack_experts
from secateur.architecture.layered import stock_class_of

SIZES = {
    "vocab_size": 128, "hidden_size": 48, "intermediate_size": 240, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 3, "head_dim": 16, "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": 0,
    "pad_token_id": 0, "rms_norm_eps": 1e-5,
}  # fmt: skip
MHA: dict[str, object] = {"hidden_size": 96, "head_dim": None, "num_key_value_heads": None, "intermediate_size": 240}
MOE: dict[str, object] = {"num_experts_per_tok": 2, "output_router_logits": False}
SMALL_EXPERTS: dict[str, object] = {"num_experts": 4, "moe_intermediate_size": 60, "decoder_sparse_step": 1}
T5: dict[str, object] = {
    "d_model": 48, "d_kv": 16, "d_ff": 240, "num_layers": 3, "num_heads": 6, "dropout_rate": 0.0, "vocab_size": 128,
    "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
SOFT_CAPS: dict[str, object] = {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0}
SOME_WINDOWS: dict[str, object] = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
TYPES: dict[str, dict[str, object]] = {
    "llama": {"attention_bias": True},
    "llama/rope": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
                                       "high_freq_factor": 4.0, "original_max_position_embeddings": 32}},
    "mistral": {"sliding_window": 8},
    "qwen2": {"head_dim": None, "hidden_size": 96},
    "qwen2/layer_types": {"head_dim": None, "hidden_size": 96, **SOME_WINDOWS},
    "qwen3": {},
    "qwen3/layer_types": SOME_WINDOWS,
    "granite": {"head_dim": None, "hidden_size": 96, "attention_multiplier": 0.25, "residual_multiplier": 0.7,
                "logits_scaling": 2.0},
    "smollm3": {"head_dim": None, "hidden_size": 96, "no_rope_layer_interval": 2},
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 16, "sliding_window": 8, **SOFT_CAPS},
    "gemma3_text": {"query_pre_attn_scalar": 16, "sliding_window": 8, "sliding_window_pattern": 2, **SOFT_CAPS},
    "olmo": {},
    "olmo2": {},
    "phi3": {"sliding_window": 8},
    "phi": {"partial_rotary_factor": 0.5},
    "phi/qk_layernorm": {"hidden_size": 96, "partial_rotary_factor": 0.5, "qk_layernorm": True},
    "gpt_neox": {**MHA, "rotary_pct": 0.25},
    "gpt2": {**MHA, "intermediate_size": None, "max_position_embeddings": None, "n_inner": 240, "n_positions": 256},
    "opt": {**MHA, "intermediate_size": None, "ffn_dim": 240, "word_embed_proj_dim": 96},
    "gptj": {**MHA, "intermediate_size": None, "n_inner": 240, "rotary_dim": 8},
    "falcon": {**MHA, "intermediate_size": None, "ffn_hidden_size": 240, "new_decoder_architecture": True,
               "num_kv_heads": 3},
    "falcon/multi_query": {**MHA, "intermediate_size": None, "ffn_hidden_size": 240, "multi_query": True, "bias": True},
    "falcon/alibi": {**MHA, "intermediate_size": None, "ffn_hidden_size": 240, "multi_query": False, "alibi": True},
    "bloom": {**MHA, "intermediate_size": None},
    "mixtral": {**MOE, "num_local_experts": 4},
    "qwen2_moe": {**MOE, **SMALL_EXPERTS, "head_dim": None, "hidden_size": 96, "shared_expert_intermediate_size": 40,
                  "mlp_only_layers": [1]},
    "qwen3_moe": {**MOE, **SMALL_EXPERTS, "norm_topk_prob": True},
    "olmoe": {**MOE, "num_experts": 4, "head_dim": None, "hidden_size": 96},
    "t5": {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "t5/plain": {**T5, "feed_forward_proj": "relu"},
}  # fmt: skip
"""Model type (and variant) -> what its config is given beside `SIZES` (None: left out)."""
IDS = torch.arange(3, 40).unsqueeze(0)


def tiny(name: str):
    """A wide random model: norms around their own start, everything else of standard deviation 0.2."""
    model_type = name.split("/")[0]
    given = TYPES[name] if model_type == "t5" else {**SIZES, **TYPES[name]}
    options = {k: v for k, v in given.items() if v is not None or k == "bos_token_id"}
    config = AutoConfig.for_model(model_type, **options)
    model = stock_class_of(config)._from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            # T5 does not scale attention scores: with wider ones its softmax is a switch, and rounding throws it.
            values = torch.randn(parameter.shape, generator=generator) * (0.1 if model_type == "t5" else 0.2)
            norm = "norm" in path or "ln_" in path
            parameter.copy_(parameter + values if norm else values)
    unstack_experts(model)
    return model.eval()
