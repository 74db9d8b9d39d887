"""Decoders with one FFN a layer, of the years before Llama: GPT-2's, GPT-NeoX's and OPT's layouts."""

from dataclasses import replace

from .family import FAMILIES, Family

_ALIBI = (
    "each head's slope (alibi) follows from its number among all heads, so fewer heads would get other slopes: the FFN "
    "takes all"
)
_GPT_NEOX = FAMILIES.register(
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
_GPT2 = FAMILIES.register(
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
    "openai-gpt",
    replace(
        _GPT2,
        name="openai-gpt",
        ffn=None,
        head_dim_at="split_size // n_head",
        attributes={"n_head": "heads", "split_size": "width"},
        in_tuple=True,
    ),
)
_OPT = FAMILIES.register(
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
        no_heads=_ALIBI,
        in_tuple=True,
    ),
)
FAMILIES.register(
    "gpt_neox_japanese",
    replace(
        _GPT_NEOX,
        name="gpt_neox_japanese",
        layers="gpt_neox_japanese.layers",
        ffn=None,
        attributes={"num_attention_heads": "heads"},
        in_tuple=True,
    ),
)
FAMILIES.register(
    "persimmon",
    replace(
        _GPT_NEOX,
        name="persimmon",
        layers="model.layers",
        attention="self_attn",
        q="self_attn.query_key_value",
        k="self_attn.query_key_value",
        v="self_attn.query_key_value",
        o="self_attn.dense",
        head_dim_at="head_dim",
        attributes={"num_heads": "heads"},
    ),
)
FAMILIES.register(
    "gpt_bigcode",
    replace(
        _GPT2,
        name="gpt_bigcode",
        transposed=False,
        attributes={},
        no_heads="its query heads share a KV head, and it takes the size of a head from the width over the heads: the "
        "FFN takes all",
    ),
)
FAMILIES.register(
    "biogpt", replace(_OPT, name="biogpt", layers="biogpt.layers", ffn="intermediate_size", attributes={})
)
FAMILIES.register(
    "xglm",
    replace(
        _OPT,
        name="xglm",
        layers="model.layers",
        heads="attention_heads",
        attributes={"num_heads": "heads", "embed_dim": "width"},
    ),
)
FAMILIES.register(
    "gpt_neo",
    Family(
        name="gpt_neo",
        layers="transformer.h",
        attention="attn.attention",
        q="attn.attention.q_proj",
        k="attn.attention.k_proj",
        v="attn.attention.v_proj",
        o="attn.attention.out_proj",
        mlp_in=("mlp.c_fc",),
        mlp_out="mlp.c_proj",
        heads="num_heads",
        kv_heads=None,
        head_dim=None,
        attributes={"num_heads": "heads"},
        in_tuple=True,
    ),
)
FAMILIES.register(
    "codegen",
    Family(
        name="codegen",
        layers="transformer.h",
        attention="attn",
        q="attn.qkv_proj",
        k="attn.qkv_proj",
        v="attn.qkv_proj",
        o="attn.out_proj",
        mlp_in=("mlp.fc_in",),
        mlp_out="mlp.fc_out",
        heads="n_head",
        kv_heads=None,
        ffn="n_inner",
        head_dim=None,
        attributes={},
        no_heads="its heads lie in four parts, one for each accelerator that it was made on: the FFN takes all",
        in_tuple=True,
    ),
)
FAMILIES.register(
    "ctrl",
    Family(
        name="ctrl",
        layers="transformer.h",
        attention="multi_head_attention",
        q="multi_head_attention.Wq",
        k="multi_head_attention.Wk",
        v="multi_head_attention.Wv",
        o="multi_head_attention.dense",
        mlp_in=("ffn.0",),
        mlp_out="ffn.2",
        heads="n_head",
        kv_heads=None,
        ffn="dff",
        head_dim=None,
        attributes={},
    ),
)
FAMILIES.register(
    "mpt",
    Family(
        name="mpt",
        layers="transformer.blocks",
        attention="attn",
        q="attn.Wqkv",
        k="attn.Wqkv",
        v="attn.Wqkv",
        o="attn.out_proj",
        mlp_in=("ffn.up_proj",),
        mlp_out="ffn.down_proj",
        heads="n_heads",
        kv_heads=None,
        ffn=None,
        head_dim=None,
        attributes={},
        no_heads=_ALIBI,
        in_tuple=True,
    ),
)
FAMILIES.register(
    "modernbert-decoder",
    Family(
        name="modernbert-decoder",
        attention="attn",
        q="attn.q_proj",
        k="attn.k_proj",
        v="attn.v_proj",
        o="attn.Wo",
        mlp_in=("mlp.Wi", "mlp.Wi"),
        mlp_out="mlp.Wo",
        kv_heads=None,
        head_dim=None,
        attributes={},
    ),
)
