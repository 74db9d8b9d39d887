"""Mixtures of experts: with FFNs beside the routed experts, in the place of some layers' experts, and with neither."""

from .latent import LATENT
from .sizes import MOE, SMALL_EXPERTS

WIDE: dict[str, object] = {"head_dim": None, "hidden_size": 96}
FEW: dict[str, object] = {**MOE, "num_experts": 4, "moe_intermediate_size": 64}
"""Experts of which the config says how wide they are beside the FFN of layers without."""
DENSE_FIRST: dict[str, object] = {"num_hidden_layers": 3, "mlp_layer_types": ["dense", "sparse", "sparse"]}
DEEPSEEK: dict[str, object] = {
    **MOE, "n_routed_experts": 4, "moe_intermediate_size": 64, "n_shared_experts": 2, "first_k_dense_replace": 1,
    "n_group": 1, "topk_group": 1, "norm_topk_prob": True,
}  # fmt: skip
INDEXED: dict[str, object] = {"index_topk": 64, "index_head_dim": 16, "index_n_heads": 2}
GRANITE: dict[str, object] = {**MOE, **WIDE, "num_local_experts": 4, "intermediate_size": 64,
                              "attention_multiplier": 0.25, "residual_multiplier": 0.7}  # fmt: skip
TYPES: dict[str, dict[str, object]] = {
    "mixtral": {**MOE, "num_local_experts": 4},
    "qwen2_moe": {**MOE, **SMALL_EXPERTS, **WIDE, "shared_expert_intermediate_size": 40, "mlp_only_layers": [1]},
    "qwen3_moe": {**MOE, **SMALL_EXPERTS, "norm_topk_prob": True},
    "mellum": {**FEW, **DENSE_FIRST, "layer_types": ["full_attention", "sliding_attention", "full_attention"],
               "sliding_window": 8},
    "olmoe": {**MOE, **WIDE, "num_experts": 4},
    "flex_olmo": {**MOE, **WIDE, "num_experts": 4},
    "phimoe": {**MOE, **WIDE, "num_local_experts": 4},
    "minimax_m2": {**MOE, "num_local_experts": 4},
    "glm4_moe": {**DEEPSEEK, "use_qk_norm": True},
    "dots1": DEEPSEEK,
    "solar_open": DEEPSEEK,
    "exaone_moe": {**FEW, "num_shared_experts": 2, **DENSE_FIRST, "sliding_window": 8},
    "aria_text": {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 2, "intermediate_size": 64},
    "flint": {**FEW, "num_hidden_layers": 3, "mlp_only_layers": [0], "decoder_sparse_step": 1, "sliding_window": 8,
              "shared_expert_intermediate_size": 80,
              "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    "kolibri1": {**MOE, "num_local_experts": 4, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 80,
                 "sliding_window": 8},
    "laguna": {**FEW, **DENSE_FIRST, "shared_expert_intermediate_size": 80, "sliding_window": 8,
               "num_attention_heads_per_layer": [6, 6, 6]},
    "hy_v3": {**FEW, "num_shared_experts": 1, **DENSE_FIRST},
    "cohere2_moe": {**MOE, "num_experts": 4, "num_shared_experts": 2, "intermediate_size": 64, "sliding_window": 8,
                    "prefix_dense_intermediate_size": 240, **DENSE_FIRST},
    "ernie4_5_moe": {"moe_k": 2, "moe_num_experts": 4, "moe_intermediate_size": 64, "moe_num_shared_experts": 2,
                     "moe_layer_start_index": 1, "moe_layer_end_index": 2, "use_bias": True},
    "hunyuan_v1_moe": {"moe_topk": 2, "num_experts": 4, "intermediate_size": 64},
    "hunyuan_v1_moe/listed": {"moe_topk": [2, 2], "num_hidden_layers": 2, "num_experts": 4, "intermediate_size": 64},
    "afmoe": {**FEW, "num_shared_experts": 2, "num_dense_layers": 1, "sliding_window": 8},
    "gpt_oss": {**MOE, "num_local_experts": 4, "intermediate_size": 64, "sliding_window": 8},
    "llama4_text": {"num_experts_per_tok": 1, "num_local_experts": 4, "intermediate_size": 64,
                    "intermediate_size_mlp": 240, "num_hidden_layers": 3, "moe_layers": [1, 2],
                    "attention_chunk_size": 16},
    "granitemoe": GRANITE,
    "granitemoeshared": {**GRANITE, "shared_intermediate_size": 80},
    "granitemoe_swa": {**GRANITE, "shared_intermediate_size": 80, "sliding_window": 8},
    "deepseek_v2": {**LATENT, **DEEPSEEK, "topk_method": "greedy"},
    "deepseek_v2/q_proj": {**LATENT, **DEEPSEEK, "q_lora_rank": None, "topk_method": "group_limited_greedy",
                           "n_routed_experts": 8, "n_group": 2, "topk_group": 1},
    "deepseek_v3": {**LATENT, **DEEPSEEK},
    "deepseek_v32": {**LATENT, **DEEPSEEK, **DENSE_FIRST, **INDEXED},
    "glm_moe_dsa": {**LATENT, **DEEPSEEK, **DENSE_FIRST, **INDEXED, "indexer_types": ["full", "shared", "full"]},
    "hy_v4": {**LATENT, **DEEPSEEK, **DENSE_FIRST, **INDEXED, "indexer_types": ["full", "shared", "full"]},
    "mimo_v2_flash": {**DEEPSEEK, **DENSE_FIRST, "n_shared_experts": None, "v_head_dim": 8, "sliding_window": 8,
                      "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    "minimax_m3_vl_text": {**MOE, **DENSE_FIRST, "num_local_experts": 4, "intermediate_size": 64,
                           "dense_intermediate_size": 240, "shared_intermediate_size": 80},
    "glm4_moe_lite": {**LATENT, **DEEPSEEK, **DENSE_FIRST},
    "axk1": {**LATENT, **DEEPSEEK, **DENSE_FIRST},
}  # fmt: skip
