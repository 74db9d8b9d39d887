"""Decoders with one FFN a layer."""

from .sizes import MHA, SOFT_CAPS

WIDE: dict[str, object] = {"hidden_size": 96, "head_dim": None}
"""The width is the heads together, as the class has it."""
OLD: dict[str, object] = {**MHA, "intermediate_size": None}
EYES: dict[str, object] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                           "image_size": 28}  # fmt: skip
EARS: dict[str, object] = {"hidden_size": 16, "intermediate_size": 16, "num_blocks": 1, "num_attention_heads": 2,
                           "ext_pw_out_channel": 16}  # fmt: skip
TYPES: dict[str, dict[str, object]] = {
    "apertus": {},
    "arcee": {"mlp_bias": True},
    "biogpt": {**MHA, "hidden_act": "gelu"},
    "codegen": {**OLD, "num_attention_heads": 4, "hidden_size": 64, "n_inner": 240, "rotary_dim": 8},
    "cohere": {"use_qk_norm": False, "logit_scale": 0.5},
    "cohere_compass_text": {**WIDE, "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "cohere2": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8},
    "ctrl": {**OLD, "dff": 240},
    "cwm": {"bos_token_id": 1, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8},
    "diffllama": {**WIDE, "num_key_value_heads": 2},
    "doge": {},
    "ernie4_5": {},
    "exaone4": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8},
    "glm": {},
    "glm4": {},
    "gpt_bigcode": {**OLD, "n_inner": 240},
    "gpt_bigcode/multi_head": {**OLD, "n_inner": 240, "multi_query": False},
    "gpt_neo": {**MHA, "num_heads": 6, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gpt_neox_japanese": OLD,
    "granite_swa": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8},
    "helium": {"hidden_size": 96},
    "hunyuan_v1_dense": {},
    "hyperclovax": {"attention_multiplier": 0.25, "residual_multiplier": 0.7, "logits_scaling": 2.0},
    "internlm3": {},
    "iquestcoder": {},
    "jais2": {},
    "ministral": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8},
    "ministral3": {},
    "modernbert-decoder": {**MHA, "bos_token_id": 1, "local_attention": 8, "global_attn_every_n_layers": 2},
    "moshi": {**MHA, "hidden_size": 48, "head_dim": 16, "num_key_value_heads": 3, "intermediate_size": None,
              "ffn_dim": 480, "sliding_window": 256, "audio_encoder_config": {"model_type": "mimi"}},
    "mpt": OLD,
    "nanochat": {},
    "nemotron": {},
    "olmo3": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8},
    "openai-gpt": {**OLD, "max_position_embeddings": None, "n_positions": 256},
    "persimmon": {**MHA, "partial_rotary_factor": 0.5},
    "phi4_multimodal": {"vision_config": EYES, "audio_config": EARS},
    "seed_oss": {},
    "stablelm": WIDE,
    "starcoder2": {"sliding_window": 8},
    "vaultgemma": {"query_pre_attn_scalar": 16, "sliding_window": 8, **SOFT_CAPS},
    "xglm": {**MHA, "intermediate_size": None, "ffn_dim": 240, "d_model": 96, "attention_heads": 6, "num_layers": 2},
}  # fmt: skip
