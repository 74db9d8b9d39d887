"""Which family a model is of: by its type, by the user's word, or by what its modules look like."""

from torch import nn
from transformers import PreTrainedModel

from ..system.errors import InputError
from .discovery import check_text_model, find_units
from .families import FAMILIES, Family, family_of
from .layout import LayerShape, check_layout


def family_for(model: nn.Module, model_type: str, override: str | Family | None = None) -> Family:
    """The layout of a model, or the one that the user names.

    Raises:
        InputError: the model type is not known; says what layout the model looks like; as `check_text_model`.
    """
    if isinstance(model, PreTrainedModel) and not isinstance(override, Family):
        check_text_model(model.config)
    if override is None and model_type and model_type not in FAMILIES and (alike := _looks_like(model)):
        raise InputError(
            f"unknown model type {model_type!r}, whose modules look like the {alike} layout: pass --family {alike} to "
            "try it (a result that computes something else is never kept), or write its own (docs/add-a-family.md)."
        )
    family = family_of(model_type, override)
    check_layout(family)
    return family


def _looks_like(model: nn.Module) -> str | None:
    """The first known layout whose modules and sizes the model has."""
    for name, family in FAMILIES.items():
        if family.recurrent or family.layers_vary:  # what they need not have, other models have not
            continue
        try:
            shape = find_units(model, family).shapes[0]
        except (InputError, AttributeError):
            continue
        attention = model.get_submodule(f"{family.layers}.0.{family.attention}")
        known = all(hasattr(attention, key.split(".")[0]) for key in family.attributes)
        heads_alone = family.no_heads or not _runs_over_heads(attention, family, shape)
        if known and heads_alone and not _runs_over_channels(model, family, shape):
            return name
    return None


def _runs_over_heads(attention: nn.Module, family: Family, shape: LayerShape) -> bool:
    """Whether an attention module has a parameter over all heads that the layout does not name (OLMo's norms)."""
    lengths = {shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim} - {shape.head_dim}
    linears = tuple(f"{path.removeprefix(family.attention + '.')}." for path in family.attention_linears)
    return any(
        not name.startswith(linears) and not lengths.isdisjoint(parameter.shape)
        for name, parameter in attention.named_parameters()
    )


def _runs_over_channels(model: nn.Module, family: Family, shape: LayerShape) -> bool:
    """Whether a layer's FFN has a parameter over all channels that the layout does not name (BitNet's norm)."""
    layer = model.get_submodule(f"{family.layers}.0")
    place = family.mlp_out.rpartition(".")[0]
    linears = tuple(f"{path}." for path in (*family.ffn_linears, *family.attention_linears))
    return any(
        name.startswith(place) and not name.startswith(linears) and shape.ffn in parameter.shape
        for name, parameter in layer.named_parameters()
    )
