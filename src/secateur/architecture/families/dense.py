"""Decoders with one FFN a layer."""

from .family import FAMILIES, Family

FAMILIES.register("llama", Family(name="llama", twin="mistral"))
for _model_type in ("mistral", "qwen2", "qwen3", "granite", "smollm3", "gemma", "gemma2", "gemma3_text", "olmo"):
    FAMILIES.register(_model_type, Family(name=_model_type))
FAMILIES.register(
    "olmo2",
    Family(
        name="olmo2",
        no_heads="its query and key norms run over the whole width, so what is left of a smaller one would be scaled "
        "otherwise: the FFN takes all",
    ),
)
FAMILIES.register(
    "phi3",
    Family(
        name="phi3",
        q="self_attn.qkv_proj",
        k="self_attn.qkv_proj",
        v="self_attn.qkv_proj",
        mlp_in=("mlp.gate_up_proj", "mlp.gate_up_proj"),
        attributes={
            "num_key_value_groups": "groups",
            "num_key_value_heads": "kv_heads",
            "config.num_attention_heads": "heads",
        },
    ),
)
FAMILIES.register(
    "phi",
    Family(
        name="phi",
        o="self_attn.dense",
        mlp_in=("mlp.fc1",),
        mlp_out="mlp.fc2",
        head_dim_derived_if="qk_layernorm",
    ),
)
FAMILIES.register(
    "gpt_neox",
    Family(
        name="gpt_neox",
        layers="gpt_neox.layers",
        attention="attention",
        q="attention.query_key_value",
        k="attention.query_key_value",
        v="attention.query_key_value",
        o="attention.dense",
        interleaved=True,
        mlp_in=("mlp.dense_h_to_4h",),
        mlp_out="mlp.dense_4h_to_h",
        kv_heads=None,
        head_dim=None,
        head_dim_at="head_size",
        attributes={},
    ),
)
FAMILIES.register(
    "gpt2",
    Family(
        name="gpt2",
        layers="transformer.h",
        attention="attn",
        q="attn.c_attn",
        k="attn.c_attn",
        v="attn.c_attn",
        o="attn.c_proj",
        mlp_in=("mlp.c_fc",),
        mlp_out="mlp.c_proj",
        transposed=True,
        heads="n_head",
        kv_heads=None,
        ffn="n_inner",
        head_dim=None,
        attributes={"num_heads": "heads", "split_size": "width"},
    ),
)
FAMILIES.register(
    "opt",
    Family(
        name="opt",
        layers="model.decoder.layers",
        o="self_attn.out_proj",
        mlp_in=("fc1",),
        mlp_out="fc2",
        kv_heads=None,
        ffn="ffn_dim",
        head_dim=None,
        attributes={"num_heads": "heads"},
    ),
)
FAMILIES.register(
    "gptj",
    Family(
        name="gptj",
        layers="transformer.h",
        attention="attn",
        q="attn.q_proj",
        k="attn.k_proj",
        v="attn.v_proj",
        o="attn.out_proj",
        mlp_in=("mlp.fc_in",),
        mlp_out="mlp.fc_out",
        heads="n_head",
        kv_heads=None,
        ffn="n_inner",
        head_dim=None,
        attributes={"num_attention_heads": "heads"},
        in_tuple=True,
    ),
)
_FALCON = Family(
    name="falcon",
    layers="transformer.h",
    attention="self_attention",
    q="self_attention.query_key_value",
    k="self_attention.query_key_value",
    v="self_attention.query_key_value",
    o="self_attention.dense",
    interleaved=True,
    mlp_in=("mlp.dense_h_to_4h",),
    mlp_out="mlp.dense_4h_to_h",
    kv_heads=None,
    ffn="ffn_hidden_size",
    head_dim=None,
    attributes={},
    no_heads="its attention takes the size of a head from the width over the heads, and alibi's slopes from their "
    "number: the FFN takes all",
    in_tuple=True,
)
FAMILIES.register("falcon", _FALCON)
FAMILIES.register(
    "bloom",
    Family(
        name="bloom",
        layers="transformer.h",
        attention="self_attention",
        q="self_attention.query_key_value",
        k="self_attention.query_key_value",
        v="self_attention.query_key_value",
        o="self_attention.dense",
        interleaved=True,
        mlp_in=("mlp.dense_h_to_4h",),
        mlp_out="mlp.dense_4h_to_h",
        heads="n_head",
        kv_heads=None,
        ffn=None,
        head_dim=None,
        attributes={},
        no_heads="each head's slope (alibi) follows from its number among all heads, so fewer heads would get other "
        "slopes: the FFN takes all",
        in_tuple=True,
    ),
)
