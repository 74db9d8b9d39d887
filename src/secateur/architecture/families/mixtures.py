"""Mixtures of experts."""

from .family import FAMILIES, Family

for _model_type, _ffn, _count in (
    ("mixtral", "intermediate_size", "num_local_experts"),
    ("qwen2_moe", "moe_intermediate_size", "num_experts"),
    ("qwen3_moe", "moe_intermediate_size", "num_experts"),
    ("olmoe", "intermediate_size", "num_experts"),
):
    FAMILIES.register(
        _model_type,
        Family(
            name=_model_type,
            # Not `down_proj`: PEFT takes targets of that name for a mixture's stacked experts.
            mlp_in=("mlp.experts.{}.gate_up", "mlp.experts.{}.gate_up"),
            mlp_out="mlp.experts.{}.down",
            ffn=_ffn,
            ffn_multiple=8,  # its grouped matmul takes rows of whole 16 bytes
            experts="mlp.experts",
            router="mlp.gate",
            num_experts=_count,
            no_heads="its query and key norms run over the whole width: the experts take all"
            if _model_type == "olmoe"
            else None,
        ),
    )
