"""Mixtures with an attention of their own, whose heads stay: the experts take all."""

from dataclasses import replace

from .family import FAMILIES, Stacking
from .mixtures import DEEPSEEK, DENSE, SHARED

FAMILIES.register(
    "deepseek_v4",
    replace(
        DEEPSEEK,
        name="deepseek_v4",
        attention_of=("self_attn.q_a_proj", "self_attn.q_b_proj", "self_attn.kv_proj", "self_attn.o_b_proj"),
        attributes={"num_heads": "heads", "num_key_value_groups": "groups"},
        beside=(replace(SHARED, times=None, own_gate=True),),
        stacking=Stacking(own_gate=True),
        no_heads="its heads share one KV head, and groups of them the linear after them: the experts take all",
        experts_stay="its first layers choose experts by a table of tokens",
    ),
)
FAMILIES.register(
    "inkling_text",
    replace(
        DEEPSEEK,
        name="inkling_text",
        beside=(
            replace(SHARED, together=True),
            replace(DENSE, stock=None, mlp_in=("gate_proj", "up_proj"), mlp_out="down_proj"),
        ),
        no_heads="convolutions run over its keys and values, and layers with a window have heads of their own sizes: "
        "the FFNs take all",
        experts_stay="its router has rows for the shared experts behind those of the routed ones",
    ),
)
FAMILIES.register(
    "inkling2_text",
    replace(
        DEEPSEEK,
        name="inkling2_text",
        beside=(),
        stacking=Stacking(own_gate=True),
        no_heads="convolutions run over its keys and values, and each head has scales of its own: the experts take all",
    ),
)
