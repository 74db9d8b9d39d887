"""Sizes of tiny models, as config keys, that rows start from."""

SIZES = {
    "vocab_size": 128, "hidden_size": 48, "intermediate_size": 240, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 3, "head_dim": 16, "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": 0,
    "pad_token_id": 0, "rms_norm_eps": 1e-5,
}  # fmt: skip
MHA: dict[str, object] = {"hidden_size": 96, "head_dim": None, "num_key_value_heads": None, "intermediate_size": 240}
MOE: dict[str, object] = {"num_experts_per_tok": 2, "output_router_logits": False}
SMALL_EXPERTS: dict[str, object] = {"num_experts": 4, "moe_intermediate_size": 60, "decoder_sparse_step": 1}
T5: dict[str, object] = {
    "d_model": 48, "d_kv": 16, "d_ff": 240, "num_heads": 6, "dropout_rate": 0.0, "vocab_size": 128,
    "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
SOFT_CAPS: dict[str, object] = {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0}
SOME_WINDOWS: dict[str, object] = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
