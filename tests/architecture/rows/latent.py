"""Latent attention: keys and values of low rank."""

LATENT: dict[str, object] = {
    "q_lora_rank": 24, "kv_lora_rank": 20, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12, "v_head_dim": 16,
    "head_dim": None, "num_key_value_heads": 6,
}  # fmt: skip
TYPES: dict[str, dict[str, object]] = {
    "minicpm3": LATENT,
    # transformers sets the padding token's row to zero when it reads a Youtu.
    "youtu": {**LATENT, "pad_token_id": None},
    "youtu/q_proj": {**LATENT, "q_lora_rank": None, "pad_token_id": None},
}
