"""Decoders whose layers differ in size from the start, or share keys and values."""

from .family import FAMILIES, Family

_SHARED = "layers have heads of several sizes, and some use the keys and values of others: the FFN takes all"

FAMILIES.register(
    "gemma3n_text",
    Family(
        name="gemma3n_text",
        no_heads="some layers use the keys and values of others: the FFN takes all",
        layers_vary=True,
        ffn_listed=True,
        ffn_stays="mlp.activation_sparsity",
    ),
)
for _model_type in ("gemma4_text", "gemma4_unified_text"):
    FAMILIES.register(_model_type, Family(name=_model_type, no_heads=_SHARED, layers_vary=True))
