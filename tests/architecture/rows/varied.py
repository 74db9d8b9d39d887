"""Layers that differ in size from the start, or share keys and values."""

KINDS: dict[str, object] = {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
SHARED: dict[str, object] = {
    **KINDS, "num_kv_shared_layers": 2, "sliding_window": 8, "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 128,
}  # fmt: skip
TYPES: dict[str, dict[str, object]] = {
    "gemma3n_text": {**SHARED, "intermediate_size": [240, 120, 240, 180], "laurel_rank": 8, "altup_num_inputs": 2,
                     "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0]},
    "gemma4_text": {**SHARED, "global_head_dim": 32},
    "gemma4_unified_text": {**KINDS, "num_kv_shared_layers": 2, "sliding_window": 8, "global_head_dim": 32},
    "gemma4_text/one_for_both": {**KINDS, "sliding_window": 8, "hidden_size_per_layer_input": 0, "global_head_dim": 32,
                                 "attention_k_eq_v": True, "num_global_key_value_heads": 2},
}  # fmt: skip
"""Model type (and variant) -> what its config is given beside `SIZES` (None: left out)."""
