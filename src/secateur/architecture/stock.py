"""What stock config classes accept: which sizes a plain transformers checkpoint can have."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..system.errors import InputError
from .families import FAMILIES, Family
from .families.keys import with_values
from .layout import LayerShape
from .nested import WHOLE

LAYERS_KEY = "secateur_layers"
"""Config key under which a checkpoint whose layers differ lists its layer shapes."""
FAMILY_KEY = "secateur_family"
"""Config key of such a checkpoint's layout, where its model type does not say it."""
DECILM = "nemotron-nas"
"""Model type of a checkpoint of ours in the form of NVIDIA's DeciLM (`--format vllm`)."""
NORMED_SO = ("llama", "mistral", "qwen2")
"""Model types that DeciLM's form is for."""
STOCK_TYPE_KEY = "secateur_model_type"
"""Config key of such a checkpoint: the model type that it is read as here."""
HETEROGENEOUS = ("per_layer_config", "allow_global_per_layer_attribute_access")
"""Config keys that say transformers' way what some layers have of their own; in a checkpoint of ours for engines."""


OWN_HEAD = "secateur_own_head"
"""Attribute of an encoder-decoder's configuration whose files hold an output head that is not the embedding; its class
ties the two whatever the configuration says, and transformers unties them when it meets both in a file."""


def auto_class(config: PreTrainedConfig) -> Any:
    """The class of transformers that makes a model of this kind: a decoder, or an encoder-decoder."""
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def task_of(config: PreTrainedConfig) -> str:
    """What PEFT calls this kind of model."""
    return "SEQ_2_SEQ_LM" if config.is_encoder_decoder else "CAUSAL_LM"


def has_class(config: PreTrainedConfig) -> bool:
    """Whether transformers itself has a class for the configuration."""
    return type(config) in auto_class(config)._model_mapping


def resized_config(
    config: PreTrainedConfig,
    family: Family,
    shape: LayerShape | None,
    model_class: str = "keep",
    widths: Sequence[int] = (),
) -> PreTrainedConfig:
    """A stock config with every layer of one shape.

    Args:
        shape: None leaves the sizes as they are.
        model_class: `keep`, or the family's twin (`mistral`), whose config takes any head count.
        widths: of each layer's FFN, where the config lists them and they differ.
    Raises:
        InputError: the config class refuses these sizes, or the family has no such twin.
    """
    changes = _changes(config, family, shape) if shape is not None else {}
    if widths and family.ffn is not None:
        changes[family.ffn] = list(widths)
    dropped = (
        "model_type",
        "architectures",
        "auto_map",
        "transformers_version",
        "_name_or_path",
        WHOLE,
        OWN_HEAD,
        LAYERS_KEY,
        FAMILY_KEY,
        *(() if family.layers_vary else HETEROGENEOUS),
    )
    values = {key: value for key, value in config.to_dict().items() if key not in dropped}
    model_type = config.model_type
    if model_class != "keep":
        if family.twin != model_class:
            raise InputError(
                f"--model-class {model_class}: a {family.name} model cannot be written as {model_class}; "
                "leave it at keep."
            )
        _check_twin(values, model_class)
        values["sliding_window"] = None
        model_type = model_class
    try:
        return AutoConfig.for_model(model_type, **with_values(values, changes))
    except Exception as error:  # strict dataclass validation raises its own classes, per transformers version
        reason = " ".join(str(error).split())
        sizes = f"{shape.heads} query heads, {shape.kv_heads} KV heads, FFN width {shape.ffn}" if shape else "its sizes"
        raise InputError(f"{model_type}'s config class refuses {sizes}: {reason}") from None


@dataclass(frozen=True)
class Verdict:
    """Whether a shape is possible; true or false as a condition."""

    refusal: str = ""
    """Why not."""

    def __bool__(self) -> bool:
        return not self.refusal


def accepts(config: PreTrainedConfig, family: Family, shape: LayerShape, model_class: str = "keep") -> Verdict:
    """Whether a stock checkpoint can have this shape in every layer."""
    try:
        resized_config(config, family, shape, model_class)
    except InputError as error:
        return Verdict(str(error))
    return Verdict()


def stock_class_of(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The language model class that transformers has for a config."""
    return cast(type[PreTrainedModel], auto_class(config)._model_mapping[type(config)])


def body_class_of(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class that transformers has for a config's model without its head."""
    return cast(type[PreTrainedModel], AutoModel._model_mapping[type(config)])


def stock_config_class(values: dict[str, Any]) -> type[PreTrainedConfig] | None:
    """The configuration class to read config.json with where its model type is an engine's; None of all others.

    Args:
        values: of config.json.
    """
    stock = str(values.get(STOCK_TYPE_KEY))
    if values.get("model_type") != DECILM or not values.get(LAYERS_KEY) or stock not in CONFIG_MAPPING:
        return None
    return cast(type[PreTrainedConfig], CONFIG_MAPPING[stock])


def forget_layers_(config: PreTrainedConfig) -> PreTrainedConfig:
    """Take what a layered checkpoint says to engines out of its configuration: `LAYERS_KEY` says it here."""
    vary = config.model_type in FAMILIES and FAMILIES[config.model_type].layers_vary
    if getattr(config, LAYERS_KEY, None) and not vary:
        if getattr(config, "is_heterogeneous", False):
            config.per_layer_config = None
        for key in (HETEROGENEOUS[1], STOCK_TYPE_KEY, "block_configs"):
            config.__dict__.pop(key, None)
        if config.__dict__.get("model_type") == DECILM:
            del config.__dict__["model_type"]
    return config


def unused_norms(config: PreTrainedConfig, family: Family, layers: str = "") -> list[str]:
    """Tensors of norms before what is gone, which DeciLM's form leaves out; `layers`: where, if not as the family."""
    norms = {"num_attention_heads": "input_layernorm", "intermediate_size": "post_attention_layernorm"}
    sizes = enumerate(getattr(config, LAYERS_KEY, None) or () if config.model_type in NORMED_SO else ())
    names = [(number, norm) for number, size in sizes for key, norm in norms.items() if not size[key]]
    return [f"{layers or family.layers}.{number}.{norm}.weight" for number, norm in names]


def is_whole(config: PreTrainedConfig) -> bool:
    """Whether no layer lost its attention or its FFN: of a checkpoint with layers that differ some may have, which says
    0. What a hybrid's layer never had has no key."""
    sizes: list[dict[str, int]] = getattr(config, LAYERS_KEY, None) or []
    return all(all(size.values()) for size in sizes)


def said_once(config: PreTrainedConfig, key: str) -> Any:
    """What a config says of all layers alike; None where it says nothing, or has values of its own for some layers."""
    try:
        return getattr(config, key, None)
    except RuntimeError:  # transformers': an attribute may vary across layers (`per_layer_config`)
        return None


def head_dim_of(config: PreTrainedConfig, family: Family, layer: int = 0) -> int:
    """Entries of a head of the stock model; `layer` tells where they vary."""
    if family.latent is not None:
        return int(config.qk_head_dim)
    if family.layers_vary:
        config = config.per_layer_config[layer]
    told = getattr(config, family.head_dim, None) if family.head_dim else None
    assert family.heads is not None
    return int(told or config.hidden_size // getattr(config, family.heads))


def latent_of(config: PreTrainedConfig, family: Family) -> tuple[int, int]:
    """`LayerShape.latent` of the stock model."""
    nope, value = (int(getattr(config, name)) for name in family.latent) if family.latent else (0, 0)
    return nope, value


def window_of(config: PreTrainedConfig) -> int | None:
    """How many tokens back a model sees where every layer's attention slides; None where some layer sees all."""
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None)
    if not window or getattr(text, "use_sliding_window", None) is False:
        return None
    return int(window) if not kinds or set(kinds) == {"sliding_attention"} else None


def _changes(config: PreTrainedConfig, family: Family, shape: LayerShape) -> dict[str, Any]:
    """The config's keys for these sizes.

    Raises:
        InputError: it has no word for them, so the class would build others.
    """
    width = config.hidden_size
    if family.no_heads is None:
        _check_width(config, family, shape)
    if family.ffn is None and shape.ffn != family.ffn_of_width * width:
        raise InputError(f"a stock {config.model_type} has an FFN of {family.ffn_of_width} times its width ({width})")
    heads = {family.heads: shape.heads, family.kv_heads: shape.kv_heads, family.head_dim: shape.head_dim}
    sizes: dict[str | None, Any] = heads if family.no_heads is None else {}
    if shape.ffn or family.experts is None:  # 0: of a layer without experts
        sizes = sizes | {family.ffn: shape.ffn * family.ffn_times}
    known = {key: value for key, value in sizes.items() if key is not None}
    return known | _widths(config, family, shape) | family.fixed


def _check_width(config: PreTrainedConfig, family: Family, shape: LayerShape) -> None:
    """Where a class takes the size of a head from the width, the heads must be as many as make it."""
    if family.heads_divide_width and config.hidden_size % shape.heads:
        raise InputError(
            f"a stock {config.model_type} takes numbers of heads that divide its width ({config.hidden_size}), which "
            f"{shape.heads} does not"
        )
    derived = family.head_dim is None or bool(getattr(config, family.head_dim_derived_if or "", False))
    if family.latent is None and derived and shape.heads * shape.head_dim != config.hidden_size:
        raise InputError(
            f"a stock {config.model_type} takes the size of a head from the width over the heads, so with "
            f"{shape.heads} heads of {shape.head_dim} the width cannot be {config.hidden_size}"
        )


def _widths(config: PreTrainedConfig, family: Family, shape: LayerShape) -> dict[str, int]:
    """Config key -> width, of FFNs beside routed experts.

    Raises:
        InputError: one key is of several that were cut differently.
    """
    widths, found = dict(shape.beside), {family.ffn: shape.ffn} if shape.ffn else {}
    for beside in (beside for beside in family.beside if beside.name in widths):
        times, width = int(getattr(config, beside.times or "", 1)), widths[beside.name]
        if width % times or found.setdefault(beside.ffn, width // times) != width // times:
            raise InputError(
                f"a stock {config.model_type} has one size in its config ({beside.ffn}) for its routed experts and its "
                f"{beside.name} ones, {times} times as wide, so with experts of {shape.ffn} channels these cannot have "
                f"{width}"
            )
    return {key: value for key, value in found.items() if key is not None and key != family.ffn}


def _check_twin(values: dict[str, Any], model_class: str) -> None:
    """A Mistral has no biases in its linears; a Llama that does cannot be written as one."""
    for key in ("attention_bias", "mlp_bias"):
        if values.pop(key, False):
            raise InputError(
                f"--model-class {model_class}: the model has {key}=True, which {model_class} has not; leave it at keep."
            )
    values.pop("pretraining_tp", None)
