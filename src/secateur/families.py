"""Where each architecture keeps its layers, projections and sizes: data only.

The only place in secateur that knows module names. A family says how a layout is pruned; which model
types share it is one line in `FAMILIES`.
"""

from dataclasses import dataclass, field

from .errors import InputError
from .registry import Registry


@dataclass(frozen=True, kw_only=True)
class Family:
    """Module paths of one architecture. Projection paths are relative to a decoder layer.

    A linear that holds several projections is named once for each of them: `q`, `k` and `v` all
    `attn.qkv_proj`, or `mlp_in` twice `mlp.gate_up_proj`.
    """

    name: str
    layers: str = "model.layers"
    attention: str = "self_attn"
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    o: str = "self_attn.o_proj"
    interleaved: bool = False
    """How one linear holds q, k and v: all of q, all of k, all of v; or, interleaved, each KV head's q, k and v."""
    transposed: bool = False
    """The linears are `Conv1D`, whose weights are stored (in, out)."""
    mlp_in: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    """Linears whose rows are FFN channels."""
    mlp_out: str = "mlp.down_proj"
    """The linear whose columns are the same channels."""
    heads: str | None = "num_attention_heads"
    """Config keys of the sizes that pruning changes; the next two likewise. None: the config has no such key."""
    kv_heads: str | None = "num_key_value_heads"
    ffn: str | None = "intermediate_size"
    ffn_of_width: int = 4
    """Where `ffn` is None: the FFN's width over the model's."""
    head_dim: str | None = "head_dim"
    """Config key of the size of a head. None: it is the width over the heads, so a stock checkpoint has all of them."""
    head_dim_derived_if: str | None = None
    """Config key that, when it is set, makes a part of the attention take the size of a head from the width."""
    head_dim_at: str = "head_dim"
    """Attribute of the attention module that holds the size of a head."""
    attributes: dict[str, str] = field(default_factory=lambda: {"num_key_value_groups": "groups"})
    """Attribute of the attention module -> the size it holds (`LayerShape.sizes`); `config.KEY`: its config's."""
    no_heads: str | None = None
    """Why attention heads cannot be pruned, and what can be done instead; None: they can."""
    twin: str | None = None
    """A model type with the same function and weights whose config accepts any head count."""

    @property
    def attention_linears(self) -> tuple[str, ...]:
        """The linears of a layer's attention, in order of use, each once."""
        return tuple(dict.fromkeys((self.q, self.k, self.v, self.o)))

    @property
    def ffn_linears(self) -> tuple[str, ...]:
        """The linears of a layer's FFN, in order of use, each once."""
        return tuple(dict.fromkeys((*self.mlp_in, self.mlp_out)))

    @property
    def linears(self) -> tuple[str, ...]:
        """All linears of a layer that count, in order of use."""
        return self.attention_linears + self.ffn_linears

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of units that can go."""
        grouped = self.kv_heads is not None
        return (*(() if self.no_heads else ("kv_group", *(("query_head",) if grouped else ()))), "ffn")

    @property
    def formats(self) -> dict[str, tuple[str, ...]]:
        """Kind of unit -> how a model without some can be written: `stock`, `layered`, `padded`."""
        everywhere = ("stock", "layered", "padded")
        heads = everywhere if self.head_dim else everywhere[1:]
        channels = everywhere if self.ffn else everywhere[1:]
        return {kind: channels if kind == "ffn" else heads for kind in self.kinds}


FAMILIES: Registry[Family] = Registry(
    "model type", "To prune another architecture of a known layout, pass --family with one of these."
)
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
    ),
)


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
