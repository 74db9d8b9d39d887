"""Whether a result can be written, known before any training: the small model's config, class and shapes alone."""

import copy

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..architecture.discovery import find_units
from ..architecture.experts import unstack_experts
from ..architecture.units import Units
from ..models.surgery import merged_and_sliced
from ..system.errors import InputError
from .export import small_class


def check_export(empty: PreTrainedModel, units: Units, keep: dict[str, Tensor], model_class: str = "keep") -> None:
    """Whether the class that a result is written in has the tensors that it will be made of.

    Args:
        empty: the model without weights, its experts apart.
        keep: pool name -> (units,) bool; what might stay.
    Raises:
        InputError: no config takes the sizes, or the class builds others.
    """
    cls, config = small_class(empty.config, units.family, units.shapes_after(keep), model_class)
    with torch.device("meta"):
        small = cls._from_config(config)
    places = {name: tuple(tensor.shape) for name, tensor in small.state_dict().items()}
    absent = set(places) - set(small.all_tied_weights_keys)
    for name, tensor in merged_and_sliced(empty, units, keep):
        if places.get(name) != tuple(tensor.shape):
            has = f"of {places[name]}" if name in places else "not at all"
            raise InputError(
                f"the result could not be written: the {units.family.name} layout leaves {name} with "
                f"{tuple(tensor.shape)}, and a {cls.__name__} has it {has}: use --attention none, or --allocation "
                "protected or global, whose modelling file sets each layer's sizes; or another --family."
            )
        absent.discard(name)
    if absent:
        raise InputError(
            f"the result could not be written: a {cls.__name__} also has {min(absent)}, which the model has not: use "
            "another --family."
        )


def empty_copy(model: PreTrainedModel, units: Units) -> PreTrainedModel | None:
    """The model without weights, made from its config; None where its modules are not those of its class."""
    try:
        with torch.device("meta"):
            empty: PreTrainedModel = type(model)(copy.deepcopy(model.config))
        unstack_experts(empty, units.family)
        return empty if find_units(empty, units.family).shapes == units.shapes else None
    except (InputError, TypeError, ValueError, RuntimeError, AttributeError):
        return None
