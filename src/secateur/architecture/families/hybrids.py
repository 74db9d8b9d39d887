"""Hybrids: attention in some layers, or beside something else in all of them, which stays as it is."""

from dataclasses import replace

from .family import FAMILIES, Beside, Family
from .latent import LATENT, without_query_rank
from .mixtures import DEEPSEEK, DENSE, MIXTURE, OWN_SHARED, SHARED, SMALL

_LINEAR = "linear attention layers"
_MAMBA = "Mamba layers"
_FEED_FORWARD = Family(
    name="bamba",
    mlp_in=("feed_forward.gate_proj", "feed_forward.up_proj"),
    mlp_out="feed_forward.down_proj",
    recurrent=_MAMBA,
)

FAMILIES.register("qwen3_5_text", Family(name="qwen3_5_text", query_rows=2, recurrent=_LINEAR))
FAMILIES.register("bamba", replace(_FEED_FORWARD, in_tuple=True))
FAMILIES.register("falcon_h1", replace(_FEED_FORWARD, name="falcon_h1", in_tuple=True))
FAMILIES.register("jamba", replace(_FEED_FORWARD, name="jamba", dense_only="feed_forward.experts"))
_LFM2 = FAMILIES.register(
    "lfm2",
    Family(
        name="lfm2",
        o="self_attn.out_proj",
        mlp_in=("feed_forward.w1", "feed_forward.w3"),
        mlp_out="feed_forward.w2",
        fixed={"block_auto_adjust_ff_dim": False},
        recurrent="convolutions",
    ),
)
FAMILIES.register("lfm3", replace(_LFM2, name="lfm3", o="self_attn.o_proj", fixed={}, by_head=("self_attn.g_proj",)))
FAMILIES.register(
    "granitemoehybrid",
    Family(
        name="granitemoehybrid",
        mlp_in=("shared_mlp.input_linear", "shared_mlp.input_linear"),
        mlp_out="shared_mlp.output_linear",
        ffn="shared_intermediate_size",
        recurrent=_MAMBA,
    ),
)
FAMILIES.register(
    "nemotron_h",
    Family(
        name="nemotron_h",
        attention="mixer",
        q="mixer.q_proj",
        k="mixer.k_proj",
        v="mixer.v_proj",
        o="mixer.o_proj",
        mlp_in=("mixer.up_proj",),
        mlp_out="mixer.down_proj",
        recurrent=_MAMBA,
    ),
)
FAMILIES.register(
    "olmo_hybrid",
    Family(
        name="olmo_hybrid",
        no_heads="its query and key norms run over the whole width, so what is left of a smaller one would be scaled "
        "otherwise: the FFN takes all",
        recurrent=_LINEAR,
    ),
)
FAMILIES.register(
    "recurrent_gemma",
    Family(
        name="recurrent_gemma",
        attention="temporal_block",
        q="temporal_block.q_proj",
        k="temporal_block.k_proj",
        v="temporal_block.v_proj",
        o="temporal_block.o_proj",
        mlp_in=("mlp_block.gate_proj", "mlp_block.up_proj"),
        mlp_out="mlp_block.down_proj",
        ffn_times=2,
        head_dim=None,
        attributes={
            "num_attention_heads": "heads",
            "num_key_value_heads": "kv_heads",
            "num_key_value_groups": "groups",
        },
        recurrent="recurrent blocks",
    ),
)
_ZAMBA = Family(
    name="zamba",
    attention="shared_transf.self_attn",
    q="shared_transf.self_attn.q_proj",
    k="shared_transf.self_attn.k_proj",
    v="shared_transf.self_attn.v_proj",
    o="shared_transf.self_attn.o_proj",
    mlp_in=("shared_transf.feed_forward.gate_proj", "shared_transf.feed_forward.up_proj"),
    mlp_out="shared_transf.feed_forward.down_proj",
    head_dim="attention_head_dim",
    shared="shared_transf",
    recurrent=_MAMBA,
)
FAMILIES.register("zamba", _ZAMBA)
_BLOCK = "shared_transformer"
FAMILIES.register(
    "zamba2",
    replace(
        _ZAMBA,
        name="zamba2",
        attention=f"{_BLOCK}.self_attn",
        q=f"{_BLOCK}.self_attn.q_proj",
        k=f"{_BLOCK}.self_attn.k_proj",
        v=f"{_BLOCK}.self_attn.v_proj",
        o=f"{_BLOCK}.self_attn.o_proj",
        mlp_in=(f"{_BLOCK}.feed_forward.gate_up_proj",) * 2,
        mlp_out=f"{_BLOCK}.feed_forward.down_proj",
        shared=_BLOCK,
        by_channel=f"{_BLOCK}.feed_forward.gate_up_proj_adapter_list",
        no_heads="it takes the size of a head from the width over the heads: the FFN takes all",
    ),
)
_MIXTURES = {
    "qwen3_next": replace(SMALL, query_rows=2, beside=(OWN_SHARED, DENSE), recurrent=_LINEAR),
    "qwen3_5_moe_text": replace(SMALL, query_rows=2, beside=(OWN_SHARED,), recurrent=_LINEAR),
    "qwen4_exp_text": replace(
        SMALL, query_rows=2, beside=(OWN_SHARED,), recurrent=_LINEAR, chooser="self_attn.indexer"
    ),
    "minimax": replace(
        MIXTURE,
        no_heads="its linear attention has as many heads, under the same key of the config: the experts take all",
        recurrent=_LINEAR,
    ),
    "lfm2_moe": replace(
        SMALL,
        o="self_attn.out_proj",
        mlp_in=("feed_forward.experts.{}.gate_up", "feed_forward.experts.{}.gate_up"),
        mlp_out="feed_forward.experts.{}.down",
        experts="feed_forward.experts",
        router="feed_forward.gate",
        by_expert=("feed_forward.expert_bias",),
        beside=(
            Beside(
                name="dense", at="feed_forward", ffn="intermediate_size", stock=None, mlp_in=("w1", "w3"), mlp_out="w2"
            ),
        ),
        recurrent="convolutions",
    ),
}
_KIMI = replace(
    DEEPSEEK,
    **LATENT,
    num_experts="num_experts",
    beside=(replace(SHARED, times="num_shared_experts"), DENSE),
    recurrent=_LINEAR,
)
_MIXTURES |= {
    "kimi_linear": without_query_rank(_KIMI),
    "bailing_hybrid": replace(_KIMI, q="self_attn.q_proj", by_head=("self_attn.g_proj",)),
}
for _model_type, _family in _MIXTURES.items():
    FAMILIES.register(_model_type, replace(_family, name=_model_type))
