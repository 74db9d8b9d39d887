"""What stock config classes accept: which sizes a plain transformers checkpoint can have."""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from .errors import InputError
from .families import Family
from .units import LayerShape

LAYERS_KEY = "secateur_layers"
"""Config key under which a checkpoint whose layers differ lists its layer shapes."""


def resized_config(
    config: PreTrainedConfig, family: Family, shape: LayerShape, model_class: str = "keep"
) -> PreTrainedConfig:
    """A stock config with every layer of one shape.

    Args:
        model_class: `keep`, or the family's twin (`mistral`), whose config takes any head count.
    Raises:
        InputError: the config class refuses these sizes, or the family has no such twin.
    """
    changes: dict[str, Any] = {
        family.heads: shape.heads,
        family.kv_heads: shape.kv_heads,
        family.ffn: shape.ffn,
        family.head_dim: shape.head_dim,
    }
    dropped = ("model_type", "architectures", "auto_map", "transformers_version", "_name_or_path", LAYERS_KEY)
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
        return AutoConfig.for_model(model_type, **{**values, **changes})
    except Exception as error:  # strict dataclass validation raises its own classes, per transformers version
        reason = " ".join(str(error).split())
        raise InputError(
            f"{model_type}'s config class refuses {shape.heads} query heads, {shape.kv_heads} KV heads, "
            f"FFN width {shape.ffn}: {reason}"
        ) from None


def accepts(config: PreTrainedConfig, family: Family, shape: LayerShape, model_class: str = "keep") -> bool:
    """Whether a stock checkpoint can have this shape in every layer."""
    try:
        resized_config(config, family, shape, model_class)
    except InputError:
        return False
    return True


def _check_twin(values: dict[str, Any], model_class: str) -> None:
    """A Mistral has no biases in its linears; a Llama that does cannot be written as one."""
    for key in ("attention_bias", "mlp_bias"):
        if values.pop(key, False):
            raise InputError(
                f"--model-class {model_class}: the model has {key}=True, which {model_class} has not; leave it at keep."
            )
    values.pop("pretraining_tp", None)
