"""Decoders with one FFN a layer, whose modules are named as Llama's or nearly so."""

from dataclasses import replace

from .family import FAMILIES, Family

NORMS_OVER_WIDTH = (
    "its query and key norms run over the whole width, so what is left of a smaller one would be scaled otherwise: the "
    "FFN takes all"
)
LIKE_LLAMA = (
    "mistral", "qwen2", "qwen3", "granite", "smollm3", "gemma", "gemma2", "gemma3_text", "olmo", "cohere2",
    "cwm", "ernie4_5", "exaone4", "hunyuan_v1_dense", "hyperclovax", "internlm3", "iquestcoder", "ministral",
    "ministral3", "seed_oss", "vaultgemma",
)  # fmt: skip
NO_GATE = {
    ("mlp.up_proj", "mlp.down_proj"): ("apertus", "arcee", "jais2", "nemotron"),
    ("mlp.c_fc", "mlp.c_proj"): ("starcoder2",),
    ("mlp.fc1", "mlp.fc2"): ("nanochat",),
}
"""The FFN's two linears -> the types that have them."""

FAMILIES.register("llama", Family(name="llama", twin="mistral"))
for _model_type in LIKE_LLAMA:
    FAMILIES.register(_model_type, Family(name=_model_type))
for (_into, _out), _model_types in NO_GATE.items():
    for _model_type in _model_types:
        FAMILIES.register(_model_type, Family(name=_model_type, mlp_in=(_into,), mlp_out=_out))
for _model_type in ("olmo2", "olmo3"):
    FAMILIES.register(_model_type, Family(name=_model_type, no_heads=NORMS_OVER_WIDTH))
for _model_type in ("glm", "glm4"):
    FAMILIES.register(_model_type, Family(name=_model_type, mlp_in=("mlp.gate_up_proj", "mlp.gate_up_proj")))
FAMILIES.register(
    "cohere",  # Command R+ has a norm for each head
    Family(
        name="cohere",
        otherwise=Family(
            name="cohere", no_heads="each head has norms of its own for queries and keys: the FFN takes all"
        ),
        otherwise_with="self_attn.q_norm",
    ),
)
FAMILIES.register("helium", Family(name="helium", head_dim=None))  # its output projection is as wide as the model
FAMILIES.register("cohere_compass_text", Family(name="cohere_compass_text", head_dim=None))
for _model_type, _reason in {
    "diffllama": "its heads work in pairs, one's attention less the other's: the FFN takes all",
    "doge": "each KV head has a gate of its own, which no linear holds: the FFN takes all",
    "stablelm": "its attention takes the size of a head from the width over the heads, and some models of this type "
    "have a norm for each head: the FFN takes all",
}.items():
    FAMILIES.register(_model_type, Family(name=_model_type, no_heads=_reason))
_PHI3 = FAMILIES.register(
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
FAMILIES.register("granite_swa", Family(name="granite_swa", by_head=("self_attn.sinks",)))
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
    "moshi",  # its text decoder; the one for sound has weights for each stream
    Family(
        name="moshi",
        q="self_attn.q_proj.linear",
        k="self_attn.k_proj.linear",
        v="self_attn.v_proj.linear",
        o="self_attn.o_proj.linear",
        mlp_in=("mlp.fc1", "mlp.fc1"),
        mlp_out="mlp.fc2",
        ffn="ffn_dim",
        ffn_times=2,
        heads_divide_width=True,
        attributes={"num_heads": "heads", "num_key_value_heads": "kv_heads", "num_key_value_groups": "groups"},
    ),
)
FAMILIES.register("phi4_multimodal", replace(_PHI3, name="phi4_multimodal"))
