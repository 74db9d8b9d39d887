"""Mixtures of experts: routed ones, those beside them, and layers without."""

from dataclasses import replace
from typing import Any

from .family import FAMILIES, Beside, Family, Stacking
from .latent import LATENT, without_query_rank

MIXTURE = Family(
    name="mixtral",
    # Not `down_proj`: PEFT takes targets of that name for a mixture's stacked experts.
    mlp_in=("mlp.experts.{}.gate_up", "mlp.experts.{}.gate_up"),
    mlp_out="mlp.experts.{}.down",
    ffn_multiple=8,  # its grouped matmul takes rows of whole 16 bytes
    experts="mlp.experts",
    router="mlp.gate",
    num_experts="num_local_experts",
)
SMALL = replace(MIXTURE, ffn="moe_intermediate_size", num_experts="num_experts")
DENSE = Beside(name="dense", at="mlp", ffn="intermediate_size")
"""What layers without experts have."""


def at(family: Family, block: str) -> Family:
    """A mixture whose block is called otherwise than `mlp`."""
    return replace(
        family,
        mlp_in=(f"{block}.experts.{{}}.gate_up",) * 2,
        mlp_out=f"{block}.experts.{{}}.down",
        experts=f"{block}.experts",
        router=f"{block}.gate",
    )


def _shared(at: str, ffn: str = "moe_intermediate_size", times: str | None = None) -> Beside:
    return Beside(name="shared", at=f"mlp.{at}", ffn=ffn, times=times)


SHARED = _shared("shared_experts", times="n_shared_experts")
DEEPSEEK = replace(
    SMALL, num_experts="n_routed_experts", by_expert=("mlp.gate.e_score_correction_bias",), beside=(SHARED, DENSE)
)
OWN_SHARED = _shared("shared_expert", "shared_expert_intermediate_size")
FULL_WIDTH_NORMS = "its query and key norms run over the whole width: the experts take all"

_PLAIN = {
    "mixtral": MIXTURE,
    "qwen2_moe": replace(SMALL, beside=(OWN_SHARED, DENSE)),
    "qwen3_moe": replace(SMALL, beside=(DENSE,)),
    "mellum": replace(SMALL, beside=(DENSE,)),
    "olmoe": replace(MIXTURE, num_experts="num_experts", no_heads=FULL_WIDTH_NORMS),
    "flex_olmo": replace(MIXTURE, num_experts="num_experts", no_heads=FULL_WIDTH_NORMS),
    "phimoe": replace(MIXTURE, router="mlp.router"),
    "minimax_m2": replace(MIXTURE, by_expert=("mlp.e_score_correction_bias",), no_heads=FULL_WIDTH_NORMS),
    "glm4_moe": DEEPSEEK,
    "dots1": DEEPSEEK,
    "solar_open": replace(DEEPSEEK, beside=(SHARED,)),
    "exaone_moe": replace(
        DEEPSEEK,
        num_experts="num_experts",
        beside=(_shared("shared_experts", times="num_shared_experts"), DENSE),
        attributes={
            "num_key_value_groups": "groups",
            "num_attention_heads": "heads",
            "num_key_value_heads": "kv_heads",
        },
    ),
    "aria_text": replace(
        MIXTURE,
        num_experts="moe_num_experts",
        router="mlp.router",
        stacking=Stacking(turned=True),
        beside=(_shared("shared_experts", "intermediate_size", "moe_num_shared_experts"),),
    ),
    "flint": replace(SMALL, beside=(OWN_SHARED, DENSE), by_head=("self_attn.sinks",)),
    "kolibri1": replace(
        SMALL,
        num_experts="num_local_experts",
        by_expert=("mlp.gate.e_score_correction_bias",),
        beside=(_shared("shared_experts", "shared_expert_intermediate_size"),),
    ),
    "laguna": replace(
        SMALL,
        by_expert=("mlp.gate.e_score_correction_bias",),
        beside=(_shared("shared_experts", "shared_expert_intermediate_size"), DENSE),
        no_heads="its config lists the heads of each layer, beside a gate for each head: the FFNs take all",
    ),
    "hy_v3": replace(
        SMALL,
        by_expert=("mlp.e_score_correction_bias",),
        beside=(_shared("shared_experts", times="num_shared_experts"), DENSE),
    ),
    "cohere2_moe": replace(
        MIXTURE,
        num_experts="num_experts",
        beside=(
            _shared("shared_experts", "intermediate_size", "num_shared_experts"),
            replace(DENSE, ffn="prefix_dense_intermediate_size"),
        ),
    ),
    "ernie4_5_moe": replace(
        SMALL,
        num_experts="moe_num_experts",
        by_expert=("mlp.gate.moe_statics.e_score_correction_bias",),
        beside=(_shared("shared_experts", times="moe_num_shared_experts"), DENSE),
    ),
    "hunyuan_v1_moe": replace(
        MIXTURE,
        num_experts="num_experts",
        router="mlp.gate.wg",
        beside=(_shared("shared_mlp", "intermediate_size"),),
    ),
    "afmoe": replace(
        SMALL,
        router="mlp.router.gate",
        by_expert=("mlp.expert_bias",),
        beside=(_shared("shared_experts", times="num_shared_experts"), DENSE),
        by_head=("self_attn.gate_proj",),
    ),
    "beam": replace(
        SMALL,
        by_expert=("mlp.gate.e_score_correction_bias",),
        by_head=("self_attn.gate_proj", "self_attn.gate_bias"),
        stacking=Stacking(own_gate=True),
        beside=(DENSE,),
        layers_stay="a layer of a beam adds to what it read by its number",
    ),
    "dbrx": replace(
        MIXTURE,
        layers="transformer.blocks",
        attention="norm_attn_norm.attn",
        q="norm_attn_norm.attn.Wqkv",
        k="norm_attn_norm.attn.Wqkv",
        v="norm_attn_norm.attn.Wqkv",
        o="norm_attn_norm.attn.out_proj",
        mlp_in=("ffn.experts.{}.gate_up",) * 2,
        mlp_out="ffn.experts.{}.down",
        experts="ffn.experts",
        router="ffn.router.layer",
        ffn="ffn_config.ffn_hidden_size",
        num_experts="ffn_config.moe_num_experts",
        stacking=Stacking(at="ffn.experts.mlp", tensors=("w1", "v1", "w2"), flat=True, activation="activation_fn"),
        no_heads="it takes the size of a head from the width over the heads: the experts take all",
    ),
    "jetmoe": replace(
        MIXTURE,
        attention="self_attention",
        attention_of=("self_attention.kv_proj",),
        attributes={"num_heads": "heads", "num_key_value_heads": "kv_heads"},
        router="mlp.router.layer",
        stacking=Stacking(
            at="mlp", tensors=("input_linear.weight", "output_linear.weight"), routes=True, activation="activation"
        ),
        no_heads="its attention is a mixture, too, whose experts are tensors of three dimensions: the FFN's take all",
        experts_stay="its attention has as many experts as its FFN, by one key of its config",
    ),
    "zaya": replace(
        SMALL,
        router="mlp.gate.router_mlp.out_proj",
        by_expert=("mlp.gate.balancing_biases",),
        attention_of=tuple(
            f"self_attn.{name}"
            for name in (
                "qkv_proj.q_proj",
                "qkv_proj.k_proj",
                "qkv_proj.v_proj_current",
                "qkv_proj.v_proj_delayed",
                "o_proj",
            )
        ),
        attributes={"num_attention_heads": "heads", "num_key_value_heads": "kv_heads"},
        in_tuple=True,
        layers_stay="each router of a zaya reads what the one before it made",
        no_heads="convolutions run over its queries and keys, and each value is of two tokens: the experts take all",
    ),
    "gpt_oss": replace(
        MIXTURE,
        router="mlp.router",
        by_expert=("mlp.router.bias",),
        by_head=("self_attn.sinks",),
        stacking=Stacking(turned=True, interleaved=True, own_gate=True),
    ),
    "llama4_text": replace(
        at(MIXTURE, "feed_forward"),
        router="feed_forward.router",
        weighs_inputs=True,
        stacking=Stacking(turned=True),
        beside=(
            Beside(name="shared", at="feed_forward.shared_expert", ffn="intermediate_size", activation="activation_fn"),
            Beside(name="dense", at="feed_forward", ffn="intermediate_size_mlp", activation="activation_fn"),
        ),
    ),
}
_GRANITE = replace(at(MIXTURE, "block_sparse_moe"), router="block_sparse_moe.router")
_GRANITE_SHARED = Beside(
    name="shared",
    at="shared_mlp",
    ffn="shared_intermediate_size",
    stock=None,
    mlp_in=("input_linear", "input_linear"),
    mlp_out="output_linear",
)
_PLAIN |= {
    "granitemoe": _GRANITE,
    "granitemoeshared": replace(_GRANITE, beside=(_GRANITE_SHARED,)),
    "granitemoe_swa": replace(_GRANITE, beside=(_GRANITE_SHARED,), by_head=("self_attn.sinks",)),
}
_WITH_LATENT = {
    "deepseek_v2": replace(DEEPSEEK, by_expert=()),
    "deepseek_v3": DEEPSEEK,
    "glm4_moe_lite": DEEPSEEK,
    "axk1": DEEPSEEK,
}
_PLAIN["deepseek_v32"] = _PLAIN["glm_moe_dsa"] = replace(DEEPSEEK, **LATENT)
_PLAIN["hy_v4"] = replace(
    _PLAIN["deepseek_v32"],
    by_head=("self_attn.gate_proj", "self_attn.sinks"),
    stacking=Stacking(own_gate=True),
    in_tuple=True,
)
_PLAIN["axk2"] = replace(_PLAIN["deepseek_v32"], q="self_attn.q_gate_proj", value_gate=True)
_PLAIN["dots3_note_text"] = replace(
    _PLAIN["deepseek_v32"],
    beside=(_shared("shared_experts", "shared_experts_intermediate_size", "n_shared_experts"), DENSE),
    layers_vary=True,
    no_heads="its layers with a window have heads of another number and size: the FFNs take all",
)
_PLAIN["mimo_v2_flash"] = replace(
    DEEPSEEK,
    beside=(DENSE,),
    value_dim_at="v_head_dim",
    no_heads="its layers with a window have twice the KV heads that its config says: the FFNs take all",
)


def _half(number: int) -> dict[str, Any]:
    """Of a layer that is two of other models, one's attention and FFN."""
    attention = f"self_attn.{number}"
    return {
        "attention": attention,
        "q": f"{attention}.q_b_proj",
        "k": f"{attention}.kv_b_proj",
        "v": f"{attention}.kv_b_proj",
        "o": f"{attention}.o_proj",
        "beside": (Beside(name="dense", at=f"mlps.{number}", ffn="ffn_hidden_size"),),
    }


_LONGCAT = replace(
    MIXTURE,
    **(LATENT | _half(0)),
    ffn="expert_ffn_hidden_size",
    num_experts="n_routed_experts",
    router="mlp.router.classifier",
    by_expert=("mlp.router.e_score_correction_bias",),
    stacking=Stacking(hands_on=True),
)
_PLAIN["longcat_flash"] = replace(
    _LONGCAT,
    beside=_half(0)["beside"] + _half(1)["beside"],
    layers_stay="a layer of a longcat_flash is two of other models, with experts beside both",
    stacks=(_LONGCAT, replace(_LONGCAT, **_half(1), experts="mlps.1.experts")),  # which are the first's alone
)
_FUSED: dict[str, Any] = dict(stock=None, mlp_in=("gate_up_proj", "gate_up_proj"), mlp_out="down_proj")
_PLAIN["minimax_m3_vl_text"] = replace(
    MIXTURE,
    by_expert=("mlp.gate.e_score_correction_bias",),
    stacking=Stacking(own_gate=True),
    beside=(
        replace(_shared("shared_experts", "shared_intermediate_size"), **_FUSED),
        replace(DENSE, ffn="dense_intermediate_size", **_FUSED),
    ),
    no_heads="its indexer chooses tokens for each KV head: the FFNs take all",
)
for _model_type, _family in _PLAIN.items():
    FAMILIES.register(_model_type, replace(_family, name=_model_type))
for _model_type, _family in _WITH_LATENT.items():
    FAMILIES.register(_model_type, without_query_rank(replace(_family, name=_model_type, **LATENT)))
