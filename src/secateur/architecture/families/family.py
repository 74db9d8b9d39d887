"""What is known of an architecture's layout: module paths, and the config's words for sizes."""

from dataclasses import dataclass, field

from ...config.formats import FORMATS, STOCK
from ...system.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Beside:
    """An FFN that some layers of a mixture have beside their routed experts, or in their place; paths are relative to
    the layer."""

    name: str
    """What its pools are called: `shared`, `dense`."""
    at: str
    """Its module."""
    ffn: str
    """Config key of its width."""
    times: str | None = None
    """Config key of the number that its width is of the value under `ffn`; None: one."""
    stock: tuple[str, str, str] | None = ("gate_proj", "up_proj", "down_proj")
    """The class's names of its linears, which `unstack_experts` puts others in the place of; None: it has those of
    `mlp_in` and `mlp_out`, and keeps them."""
    mlp_in: tuple[str, ...] = ("gate_up", "gate_up")
    """Names of the linears whose rows are its channels, after `unstack_experts`, and of that whose columns they are."""
    mlp_out: str = "down"
    activation: str = "act_fn"
    """Attribute of its module that is the activation."""
    own_gate: bool = False
    """What down reads is what the class's routed experts say in `_apply_gate`."""
    together: bool = False
    """Tensors of three dimensions hold so many FFNs of one width, as the config says under `times`, and the router
    weighs each: they become one FFN, whose channels are those of the first, then those of the next."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Paths of the linears whose rows are its channels."""
        return tuple(f"{self.at}.{name}" for name in self.mlp_in)

    @property
    def output(self) -> str:
        """Path of the linear whose columns they are."""
        return f"{self.at}.{self.mlp_out}"

    @property
    def linears(self) -> tuple[str, ...]:
        """Its linears, in order of use, each once."""
        return tuple(dict.fromkeys((*self.inputs, self.output)))


@dataclass(frozen=True, kw_only=True)
class Stacking:
    """How a class holds a layer's experts in one tensor."""

    turned: bool = False
    """(experts, in, out) instead of (experts, out, in)."""
    interleaved: bool = False
    """Gate and up take turns, channel by channel, instead of all of gate before all of up."""
    own_gate: bool = False
    """The class says in `_apply_gate` what down reads."""
    at: str | None = None
    """The module of the layer that has the tensors, where that is not the one in whose place the list goes."""
    tensors: tuple[str, ...] = ("gate_up_proj", "down_proj")
    """Their names in it: gate and up in one and down, or each for itself."""
    flat: bool = False
    """All experts' channels are the rows of a tensor of two dimensions, also of down."""
    routes: bool = False
    """The module at `at` chooses the experts, too, so that there is none for the list: it has `router` and `bias`."""
    hands_on: bool = False
    """The router also chooses among experts that hand on what they read; gate and up have unused entries for them."""
    activation: str = "act_fn"
    """The attribute that is the activation."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Module paths of one architecture. Projection paths are relative to a decoder layer.

    A linear that holds several projections is named once for each of them: `q`, `k` and `v` all
    `attn.qkv_proj`, or `mlp_in` twice `mlp.gate_up_proj`.
    """

    name: str
    layers: str = "model.layers"
    attention: str = "self_attn"
    attention_of: tuple[str, ...] = ()
    """The linears of an attention whose heads stay, where q, k, v and o do not describe it; `attributes` then say where
    it has its numbers of heads."""
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    o: str = "self_attn.o_proj"
    interleaved: bool = False
    """How one linear holds q, k and v: all of q, all of k, all of v; or, interleaved, each KV head's q, k and v."""
    query_rows: int = 1
    """Rows of q for each head, over the size of a head: 2 where a head's query is followed by its gate."""
    value_gate: bool = False
    """A head's query is followed by a gate of the size of its value."""
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
    ffn_listed: bool = False
    """The config has an FFN width for each layer, so that layers that differ are stock."""
    ffn_stays: str | None = None
    """A number in a layer: where it is not 0, an FFN looks at all of its channels together, and all of them stay."""
    ffn_multiple: int = 1
    """What the FFN's width must be a multiple of for transformers' kernels."""
    ffn_times: int = 1
    """What the config says of the FFN's width, over the width that a layer has."""
    fixed: dict[str, object] = field(default_factory=dict)
    """What a stock config must say beside its sizes, so that they are taken as they are."""
    ffn_of_width: int = 4
    """Where `ffn` is None: the FFN's width over the model's."""
    head_dim: str | None = "head_dim"
    """Config key of the size of a head. None: it is the width over the heads, so a stock checkpoint has all of them."""
    head_dim_derived_if: str | None = None
    """Config key that, when it is set, makes a part of the attention take the size of a head from the width."""
    heads_divide_width: bool = False
    """The class takes only numbers of heads that divide the model's width, which its config does not check."""
    head_dim_at: str = "head_dim"
    """Attribute of the attention module that holds the size of a head; or `A // B`: one attribute over another."""
    value_dim_at: str | None = None
    """The same of the size of a head's value, where that is another."""
    latent: tuple[str, str] | None = None
    """Of attention whose keys and values are made from a latent vector: attributes of the module, and keys of the
    config, for the entries of a key that do not depend on its position, and of a value. `k` and `v` are one linear, in
    which each head's key comes before its value; heads go alone, and the latent vectors stay as they are."""
    by_head: tuple[str, ...] = ()
    """What goes with query heads beside the projections: linears whose rows, and vectors whose entries, are theirs (a
    gate on what attention gives, a sink). They are not scored, and get no LoRA."""
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
    by_expert: tuple[str, ...] = ()
    """Further tensors of a layer with an entry for each expert: the router's bias, a correction of its choice."""
    experts_stay: str | None = None
    """Why whole experts cannot go; None: they can."""
    weighs_inputs: bool = False
    """The router's weights are in what its experts read, and not in what is added up of what they say."""
    stacking: Stacking = Stacking()
    """How the class holds a layer's experts."""
    beside: tuple[Beside, ...] = ()
    """FFNs that some layers have beside the routed experts, or in their place."""
    recurrent: str | None = None
    """Of a hybrid: what layers have in place of attention or beside it, which stays. A layer may lack an FFN too."""
    shared: str | None = None
    """A module that layers share by tied weights, so that what goes in one goes in all of them."""
    by_channel: str | None = None
    """A list with parts whose last linear's rows are those of gate and up, where they are no `Identity`."""
    dense_only: str | None = None
    """A module of layers with experts, whose width is that of the dense FFNs in the config: no such model is pruned."""
    chooser: str | None = None
    """A module that says by the values of tokens which of them a layer looks at: a mask like its third argument."""
    layers_vary: bool = False
    """Layers have heads of several sizes from the start, and some use the keys and values of others."""
    layers_stay: str | None = None
    """Why whole layers cannot go; None: they can."""
    stacks: tuple["Family", ...] = ()
    """An encoder-decoder's stacks of layers, each with a layout of its own, under one config; or the parts of layers
    that have two of everything; otherwise none."""
    head_bias: str | None = None
    """An embedding in the first layer with a column for each head, whose bias all layers share: heads go together."""
    own_head_bias: bool = False
    """Each layer has such an embedding of its own."""
    in_tuple: bool = False
    """Layers return their hidden states in a tuple."""
    otherwise: "Family | None" = None
    """The layout of models that have other modules than this one under the same model type."""
    otherwise_with: str | None = None
    """A module of layers that only models of that layout have; None: those have it that lack linears of this one."""
    otherwise_without: str | None = None
    """Config key whose absence says that a model has that layout, where its config says it."""

    @property
    def attention_linears(self) -> tuple[str, ...]:
        """The linears of a layer's attention, in order of use, each once."""
        return self.attention_of or tuple(dict.fromkeys((self.q, self.k, self.v, self.o)))

    @property
    def ffn_linears(self) -> tuple[str, ...]:
        """The linears of a layer's FFN, in order of use, each once; none in a layer of attention alone."""
        return tuple(dict.fromkeys((*self.mlp_in, self.mlp_out))) if self.mlp_in else ()

    @property
    def linears(self) -> tuple[str, ...]:
        """All linears of a layer that count, in order of use."""
        own = () if self.stacks else self.attention_linears + self.ffn_linears
        further = [part.linears for part in self.stacks] + [part.linears for part in self.beside]
        return own + tuple(dict.fromkeys(path for linears in further for path in linears))

    @property
    def encoder_decoder(self) -> bool:
        """Whether there is more than one stack of layers."""
        return len({stack.layers for stack in self.stacks}) > 1

    @property
    def alike_only(self) -> bool:
        """Whether all layers must lose alike: one size in the config stands for places that differ in kind."""
        return bool(self.stacks or self.experts or self.shared)

    @property
    def in_part(self) -> bool:
        """Whether a layer may lack attention or an FFN from the start, and go with those that have both."""
        return self.alike_only or self.recurrent is not None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of units that can go."""
        grouped = self.kv_heads is not None and self.latent is None
        return (*(() if self.no_heads else ("kv_group", *(("query_head",) if grouped else ()))), "ffn")

    @property
    def _tied(self) -> str:
        """Which FFNs have to lose channels with the routed experts, in words."""
        return " and ".join(f"{beside.name} ones lose alike" for beside in self.beside if beside.ffn == self.ffn)

    @property
    def notes(self) -> tuple[str, ...]:
        """What else a user should know: one line each."""
        derived = self.head_dim_derived_if
        found = {
            f"no heads: {self.no_heads}": self.no_heads,
            f"{self.recurrent} stay": self.recurrent,
            f"with {derived} in its config no head goes in stock format": derived,
            "latent attention: the latent vectors keep their sizes": self.latent,
            "one block for several layers: what goes in one goes in all": self.shared,
            "whole experts, before training: --experts (stock)": self.experts and not self.experts_stay,
            f"no whole experts: {self.experts_stay}": self.experts_stay,
            f"one size in its config ({self.ffn}): {self._tied} as the routed experts do": self._tied,
            f"widths of experts in steps of {self.ffn_multiple}": self.ffn_multiple > 1,
            "an FFN that chooses among its channels by all of them stays": self.ffn_stays,
            "an encoder-decoder: prune, plan, eval, bench, sample; data of pairs": self.encoder_decoder,
        }
        return tuple(note for note, holds in found.items() if holds)

    @property
    def formats(self) -> dict[str, tuple[str, ...]]:
        """Kind of unit -> how a model without some can be written, of `FORMATS`."""
        if self.alike_only or self.ffn_listed:
            return dict.fromkeys(self.kinds, (STOCK,))
        own = tuple(name for name, format in FORMATS.items() if name != STOCK and format.of_any_family)
        heads, channels = (((STOCK,) if key else ()) + own for key in (self.head_dim or self.latent, self.ffn))
        return {kind: channels if kind == "ffn" else heads for kind in self.kinds}


FAMILIES: Registry[Family] = Registry(
    "model type",
    "To prune another architecture of a known layout, pass --family with one of these; to add a layout, see "
    "docs/add-a-family.md.",
    "secateur families",
)
