"""A text model inside another, which reads pictures or sound too: its configuration, and its weights' names there."""

import copy
import re

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from ..system.errors import InputError
from ..system.quiet import quiet_transformers
from .families import FAMILIES, REFUSED

AS = {
    "qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3", "qwen3_vl_moe_text": "qwen3_moe",
    "emu3_text_model": "llama",
}  # fmt: skip
"""Text models without a class of their own -> the type that computes the same from text alone: positions by height,
width and time are then one and the same."""
ROPE = ("rope_type", "rope_theta", "factor", "original_max_position_embeddings")
"""Of the rotation, what is not about height, width and time."""
RENAMED = {
    r"^(?:model\.)?(?:language|text)_model\.model\.": "model.",
    r"^(?:model\.)?(?:language|text)_model\.lm_head\.": "lm_head.",
    r"^model\.(?:language|text)_model\.": "model.",
    r"^language_model\.(?!model\.|lm_head\.)": "model.",
}
"""Names of a text model's weights in the files of whole models -> those that it has alone."""
OF_TEXT = (
    r"^(lm_head\.|model\.(decoder|layers|embeddings|embed_tokens(_per_layer)?|(embedding_)?norm|norm_f|"
    r"final_layernorm|final_input|hyper_connection_mixer|per_layer_(model_projection|projection_norm))\b)"
)
WHOLE = "secateur_whole"
"""Attribute of a configuration that was taken out: the type of the whole model."""


def text_alone(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of the text model that lies inside another one, in a class that transformers has for it; of
    what is a text model itself, or is a text model in some other way, the same one.

    Raises:
        InputError: there is no such class, nor one for the whole.
    """
    inner = config.get_text_config(decoder=True)
    classes = AutoModelForCausalLM._model_mapping
    if inner is config or config.is_encoder_decoder:
        return config
    if type(inner) not in classes and inner.model_type not in AS:
        if type(config) in classes:
            return config
        raise InputError(
            f"model {config._name_or_path!r}: a {config.model_type} holds its text model ({inner.model_type}) beside "
            "others, and transformers has no class for that one alone: give a text model, or prune this one from "
            "Python (secateur.Pruner)."
        )
    values = copy.deepcopy(inner).to_dict()
    if twin := AS.get(str(inner.model_type)):
        values = {key: value for key, value in values.items() if key not in ("model_type", "architectures")}
        rope = values.get("rope_parameters") or {}
        if "mrope_section" in rope:
            values["rope_parameters"] = {key: rope[key] for key in ROPE if key in rope} | {"rope_type": "default"}
        inner = AutoConfig.for_model(twin, **values)
    else:
        inner = type(inner).from_dict(values)
    inner._name_or_path = config._name_or_path
    # The whole model goes by its own word, if it has any.
    inner.tie_word_embeddings = getattr(config, "tie_word_embeddings", getattr(inner, "tie_word_embeddings", False))
    inner.dtype = inner.dtype or config.dtype
    inner.architectures = [str(getattr(classes[type(inner)], "__name__", ""))]
    if quantised := getattr(config, "quantization_config", None):
        inner.quantization_config = quantised
    object.__setattr__(inner, WHOLE, str(config.model_type))
    return inner


def whole_types() -> dict[str, str]:
    """Types of transformers whose models hold a text model that can be taken out and pruned -> the type of that one,
    which some leave to each model's configuration: then of the default one."""
    found = {}
    with quiet_transformers():
        for name in sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}):
            if name in FAMILIES or name in REFUSED:
                continue
            inner = CONFIG_MAPPING[name].sub_configs.get("text_config")
            if inner is AutoConfig:
                inner = type(CONFIG_MAPPING[name]().get_text_config(decoder=True))
            kind = AS.get(inner.model_type, inner.model_type) if inner else ""
            if kind in FAMILIES and not FAMILIES[kind].encoder_decoder:
                found[name] = kind
    return found


def whole_type(config: PreTrainedConfig) -> str:
    """The type of the model that a text model was taken out of; an empty string where it was not."""
    return str(vars(config).get(WHOLE, ""))


def forget_whole_(model: PreTrainedModel) -> None:
    """Make a model one that was never inside another: transformers would save its weights under the whole's names."""
    if whole_type(model.config):
        vars(model.config).pop(WHOLE)
        vars(model).pop("_weight_conversions", None)


def check_adapter_fits_whole(config: PreTrainedConfig, *, merged: bool) -> None:
    """Refuse an adapter whose modules have other names in the whole model that its `adapter_config.json` would name.

    Raises:
        InputError: how to take the text model out first.
    """
    if merged or not (whole := whole_type(config)):
        return
    classes = AutoModelForCausalLM._model_mapping
    outer = CONFIG_MAPPING[whole]
    if outer in classes and getattr(classes[outer], "config_class", None) is type(config):
        return  # transformers itself takes the text model alone
    raise InputError(
        f"model {config._name_or_path!r}: an adapter for the text model inside a {whole} would name modules that the "
        f"whole one has not. Take it out, and train on that: secateur extract-text {config._name_or_path} TEXT. "
        "Or pass --merge."
    )


def is_of_text(name: str) -> bool:
    """Whether a tensor of a whole model's files belongs to its text model."""
    for pattern, replacement in RENAMED.items():
        name = re.sub(pattern, replacement, name)
    return re.match(OF_TEXT, name) is not None
