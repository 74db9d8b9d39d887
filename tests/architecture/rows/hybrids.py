"""Hybrids: some layers have no attention."""

from .latent import LATENT
from .mixtures import DENSE_FIRST, FEW
from .sizes import MOE

TWO: dict[str, object] = {
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "full_attention"],
}
DELTA: dict[str, object] = {
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
}  # fmt: skip
MAMBA: dict[str, object] = {"mamba_n_heads": 4, "mamba_d_head": 24, "mamba_d_state": 8, "mamba_chunk_size": 16}
WIDE: dict[str, object] = {"hidden_size": 96, "head_dim": None}
KIMI: dict[str, object] = {
    "num_experts": 4, "moe_intermediate_size": 64, "num_shared_experts": 2, "num_expert_group": 1, "topk_group": 1,
    "linear_head_dim": 8, "linear_num_heads": 4, "model_max_length": 256, "max_position_embeddings": None,
}  # fmt: skip
TYPES: dict[str, dict[str, object]] = {
    "qwen3_5_text": {**TWO, **DELTA},
    "qwen3_next": {**TWO, **DELTA, **FEW, "mlp_only_layers": [1], "shared_expert_intermediate_size": 40},
    "qwen3_5_moe_text": {**TWO, **DELTA, **FEW, "shared_expert_intermediate_size": 40},
    "qwen4_exp_text": {
        **TWO, **DELTA, **FEW, "shared_expert_intermediate_size": 40, "hc_count": 2, "hc_lowrank": 8,
        "ple_layer_ids": [1], "ple_embed_dim": 16, "heads_per_ngram": 2, "ngram_vocab_size_base": 50,
        "split_ngram_parts": 2, "make_ngram_vocab_size_divisible_by": 8, "indexer_n_heads": 2, "indexer_kv_heads": 1,
        "indexer_head_dim": 16, "indexer_budget": 64, "indexer_compress_ratio": 4},
    "minimax": {**TWO, **MOE, "num_local_experts": 4, "block_size": 16},
    "kimi_linear": {**LATENT, **TWO, **DENSE_FIRST, **KIMI, "q_lora_rank": None, "num_experts_per_token": 2},
    "bailing_hybrid": {**LATENT, **TWO, **DENSE_FIRST, **KIMI, "num_experts_per_token": 2},
    "lfm2_moe": {**WIDE, **FEW, "num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "full_attention"],
                 "num_dense_layers": 1, "use_expert_bias": True, "norm_eps": 1e-5},
    "lfm2": {**WIDE, "num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "full_attention"],
             "block_auto_adjust_ff_dim": True, "block_multiple_of": 8, "intermediate_size": 360, "norm_eps": 1e-5},
    "lfm3": {"num_hidden_layers": 4, "sliding_window": 8, "norm_eps": 1e-5,
             "layer_types": ["conv", "full_attention", "sliding_attention", "full_attention"]},
    "bamba": {**MAMBA, "num_hidden_layers": 3, "attn_layer_indices": [1, 2]},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 96, "key_multiplier": 0.5, "mlp_multipliers": [0.5, 2.0]},
    "jamba": {"num_hidden_layers": 3, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1,
              "mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    "granitemoehybrid": {**MAMBA, **TWO, "shared_intermediate_size": 240, "intermediate_size": None,
                         "num_local_experts": 0, "attention_multiplier": 0.25, "residual_multiplier": 0.7},
    "nemotron_h": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "attention", "mlp", "mlp"], "n_groups": 1,
                   "mamba_num_heads": 4, "mamba_head_dim": 24, "ssm_state_size": 8, "chunk_size": 16},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
              "attention_head_dim": 16, "head_dim": None, "n_mamba_heads": 2, "mamba_d_state": 4, "mamba_dt_rank": 4},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["hybrid", "linear_attention", "hybrid", "hybrid"],
               "num_mem_blocks": 2, "adapter_rank": 4, "num_key_value_heads": 6, "head_dim": None, "n_mamba_heads": 4,
               "mamba_d_state": 8, "chunk_size": 16, "use_shared_attention_adapter": True, "use_mem_rope": True},
    "olmo_hybrid": {**WIDE, **TWO, **DELTA},
    "recurrent_gemma": {**WIDE, "num_hidden_layers": 3, "block_types": ["recurrent", "attention", "attention"],
                        "lru_width": 96, "intermediate_size": 480, "attention_window_size": 8},
}  # fmt: skip
"""Model type (and variant) -> what its config is given beside `SIZES` (None: left out)."""
