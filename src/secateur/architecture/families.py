"""Where each architecture keeps its layers, projections and sizes: data only.

The only place in secateur that knows module names. A family says how a layout is pruned; which model
types share it is one line in `FAMILIES`.
"""

from dataclasses import dataclass, field, replace

from ..config.formats import FORMATS, STOCK
from ..system.errors import InputError
from ..system.registry import Registry


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
    ffn_multiple: int = 1
    """What the FFN's width must be a multiple of for transformers' kernels."""
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
    experts: str | None = None
    """The list of a layer's experts; `{}` in the FFN's paths is an expert's number. A layer without is left alone."""
    router: str = ""
    """The module that chooses experts: `weight` has a row for each, `num_experts` counts them."""
    num_experts: str = "num_experts"
    """Config key of the number of experts."""
    stacks: tuple["Family", ...] = ()
    """An encoder-decoder's stacks of layers, each with a layout of its own, under one config; otherwise none."""
    head_bias: str | None = None
    """An embedding in the first layer with a column for each head, whose bias all layers share: heads go together."""
    in_tuple: bool = False
    """Layers return their hidden states in a tuple."""
    otherwise: "Family | None" = None
    """The layout of models that have other modules than this one under the same model type."""

    @property
    def attention_linears(self) -> tuple[str, ...]:
        """The linears of a layer's attention, in order of use, each once."""
        return tuple(dict.fromkeys((self.q, self.k, self.v, self.o)))

    @property
    def ffn_linears(self) -> tuple[str, ...]:
        """The linears of a layer's FFN, in order of use, each once; none in a layer of attention alone."""
        return tuple(dict.fromkeys((*self.mlp_in, self.mlp_out))) if self.mlp_in else ()

    @property
    def linears(self) -> tuple[str, ...]:
        """All linears of a layer that count, in order of use."""
        own = () if self.stacks else self.attention_linears + self.ffn_linears
        return own + tuple(dict.fromkeys(path for stack in self.stacks for path in stack.linears))

    @property
    def alike_only(self) -> bool:
        """Whether all layers must lose alike: one size in the config stands for places that differ in kind."""
        return bool(self.stacks or self.experts)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of units that can go."""
        grouped = self.kv_heads is not None
        return (*(() if self.no_heads else ("kv_group", *(("query_head",) if grouped else ()))), "ffn")

    @property
    def notes(self) -> tuple[str, ...]:
        """What else a user should know: one line each."""
        derived = self.head_dim_derived_if
        found = {
            f"no heads: {self.no_heads}": self.no_heads,
            f"with {derived} in its config no head goes in stock format": derived,
            "whole experts, before training: --experts (stock)": self.experts,
            f"widths of experts in steps of {self.ffn_multiple}": self.ffn_multiple > 1,
            "from Python only: the commands train causal language models": self.stacks,
        }
        return tuple(note for note, holds in found.items() if holds)

    @property
    def formats(self) -> dict[str, tuple[str, ...]]:
        """Kind of unit -> how a model without some can be written, of `FORMATS`."""
        if self.alike_only:
            return dict.fromkeys(self.kinds, (STOCK,))
        own = tuple(name for name, format in FORMATS.items() if name != STOCK and format.of_any_family)
        heads, channels = (((STOCK,) if key else ()) + own for key in (self.head_dim, self.ffn))
        return {kind: channels if kind == "ffn" else heads for kind in self.kinds}


FAMILIES: Registry[Family] = Registry(
    "model type",
    "To prune another architecture of a known layout, pass --family with one of these; to add a layout, see "
    "docs/add-a-family.md.",
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


for _model_type, _ffn, _count in (
    ("mixtral", "intermediate_size", "num_local_experts"),
    ("qwen2_moe", "moe_intermediate_size", "num_experts"),
    ("qwen3_moe", "moe_intermediate_size", "num_experts"),
    ("olmoe", "intermediate_size", "num_experts"),
):
    FAMILIES.register(
        _model_type,
        Family(
            name=_model_type,
            # Not `down_proj`: PEFT takes targets of that name for a mixture's stacked experts.
            mlp_in=("mlp.experts.{}.gate_up", "mlp.experts.{}.gate_up"),
            mlp_out="mlp.experts.{}.down",
            ffn=_ffn,
            ffn_multiple=8,  # its grouped matmul takes rows of whole 16 bytes
            experts="mlp.experts",
            router="mlp.gate",
            num_experts=_count,
            no_heads="its query and key norms run over the whole width: the experts take all"
            if _model_type == "olmoe"
            else None,
        ),
    )


def _t5(mlp_in: tuple[str, ...]) -> Family:
    """T5's three kinds of layers, with a gated or a plain FFN."""
    encoder = Family(
        name="t5",
        layers="encoder.block",
        attention="layer.0.SelfAttention",
        q="layer.0.SelfAttention.q",
        k="layer.0.SelfAttention.k",
        v="layer.0.SelfAttention.v",
        o="layer.0.SelfAttention.o",
        mlp_in=tuple(f"layer.1.DenseReluDense.{name}" for name in mlp_in),
        mlp_out="layer.1.DenseReluDense.wo",
        heads="num_heads",
        kv_heads=None,
        ffn="d_ff",
        head_dim="d_kv",
        head_dim_at="key_value_proj_dim",
        attributes={"n_heads": "heads", "inner_dim": "width"},
        head_bias="layer.0.SelfAttention.relative_attention_bias",
    )
    decoder = replace(
        encoder,
        layers="decoder.block",
        mlp_in=tuple(f"layer.2.DenseReluDense.{name}" for name in mlp_in),
        mlp_out="layer.2.DenseReluDense.wo",
    )
    cross = replace(
        encoder,
        layers="decoder.block",
        attention="layer.1.EncDecAttention",
        q="layer.1.EncDecAttention.q",
        k="layer.1.EncDecAttention.k",
        v="layer.1.EncDecAttention.v",
        o="layer.1.EncDecAttention.o",
        mlp_in=(),
        head_bias=None,
    )
    return replace(encoder, stacks=(encoder, decoder, cross))


FAMILIES.register("t5", replace(_t5(("wi_0", "wi_1")), otherwise=_t5(("wi",))))

BUILT_IN = frozenset(FAMILIES)
"""The model types whose layouts are tested here; the others are registered by users."""


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
