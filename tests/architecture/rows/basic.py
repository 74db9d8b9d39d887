"""Decoders with one FFN a layer, which other tests use too: three layers."""

from .sizes import MHA, SOFT_CAPS, SOME_WINDOWS

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
}  # fmt: skip
