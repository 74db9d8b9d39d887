"""Latent attention: keys and values made from one vector a token, whose size stays."""

from dataclasses import replace
from typing import Any

from .family import FAMILIES, Family

LATENT: dict[str, Any] = {
    "q": "self_attn.q_b_proj",
    "k": "self_attn.kv_b_proj",
    "v": "self_attn.kv_b_proj",
    "latent": ("qk_nope_head_dim", "v_head_dim"),
    "head_dim": None,
    "head_dim_at": "qk_head_dim",
    "attributes": {"num_heads": "heads"},
}
"""What a family with it has of its own (DeepSeek-V2, arXiv 2405.04434)."""


def without_query_rank(family: Family) -> Family:
    """A layout with its variant of queries that are made in one step (`q_lora_rank` is null)."""
    return replace(family, otherwise=replace(family, q="self_attn.q_proj"), otherwise_without="q_lora_rank")


for _model_type in ("minicpm3", "youtu"):
    FAMILIES.register(_model_type, without_query_rank(Family(name=_model_type, **LATENT)))
