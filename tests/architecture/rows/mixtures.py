"""Mixtures of experts."""

from .sizes import MOE, SMALL_EXPERTS

TYPES: dict[str, dict[str, object]] = {
    "mixtral": {**MOE, "num_local_experts": 4},
    "qwen2_moe": {**MOE, **SMALL_EXPERTS, "head_dim": None, "hidden_size": 96, "shared_expert_intermediate_size": 40,
                  "mlp_only_layers": [1]},
    "qwen3_moe": {**MOE, **SMALL_EXPERTS, "norm_topk_prob": True},
    "olmoe": {**MOE, "num_experts": 4, "head_dim": None, "hidden_size": 96},
}  # fmt: skip
