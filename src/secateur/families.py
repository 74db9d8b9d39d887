"""Where each architecture keeps its layers, projections and sizes: data only.

The only place in secateur that knows module names. A family says how a layout is pruned; which model
types share it is one line in `FAMILIES`.
"""

from dataclasses import dataclass

from .errors import InputError
from .registry import Registry


@dataclass(frozen=True, kw_only=True)
class Family:
    """Module paths of one architecture. Projection paths are relative to a decoder layer."""

    name: str
    layers: str = "model.layers"
    attention: str = "self_attn"
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    o: str = "self_attn.o_proj"
    mlp_in: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    """Linears whose rows are FFN channels."""
    mlp_out: str = "mlp.down_proj"
    """The linear whose columns are the same channels."""
    heads: str = "num_attention_heads"
    """Config keys of the sizes that pruning changes; the next three likewise."""
    kv_heads: str = "num_key_value_heads"
    ffn: str = "intermediate_size"
    head_dim: str = "head_dim"
    repeats: str = "num_key_value_groups"
    """Attribute of the attention module that holds query heads per KV head."""
    twin: str | None = None
    """A model type with the same function and weights whose config accepts any head count."""

    @property
    def attention_linears(self) -> tuple[str, ...]:
        """The prunable linears of a layer's attention, in order of use."""
        return (self.q, self.k, self.v, self.o)

    @property
    def ffn_linears(self) -> tuple[str, ...]:
        """The prunable linears of a layer's FFN, in order of use."""
        return (*self.mlp_in, self.mlp_out)

    @property
    def linears(self) -> tuple[str, ...]:
        """All prunable linears of a layer, in order of use."""
        return self.attention_linears + self.ffn_linears


FAMILIES: Registry[Family] = Registry(
    "model type", "To prune another architecture of a known layout, pass --family with one of these."
)
FAMILIES.register("llama", Family(name="llama", twin="mistral"))
for _model_type in ("mistral", "qwen2", "qwen3", "granite", "smollm3", "gemma", "gemma2", "gemma3_text"):
    FAMILIES.register(_model_type, Family(name=_model_type))


def family_of(model_type: str, override: str | Family | None = None) -> Family:
    """The layout of a model type, or the one that the user names.

    Raises:
        InputError: the model type is not known (with the closest known one).
    """
    if isinstance(override, Family):
        return override
    if override is not None:
        return FAMILIES[override]
    if not model_type:
        raise InputError("the model's config.json has no model_type: add it, or pass --family.")
    return FAMILIES[model_type]
