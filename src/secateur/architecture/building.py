"""A model's modules from its configuration alone, on the meta device: what shows whether a configuration is sound."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ..system.errors import InputError, out_of_memory
from .config_faults import config_error, fault_in_words, size_faults, values_in
from .layered import is_layered, layered_class, layered_family, layered_shapes
from .stock import OWN_HEAD, auto_class, stock_class_of


def empty_model(config: PretrainedConfig, *, trust_remote_code: bool = False, **options: Any) -> PreTrainedModel:
    """The language model of a configuration, without weights.

    A configuration that secateur wrote for layers that differ gives the class that comes with it; none of the
    checkpoint's code runs for it.

    Args:
        trust_remote_code: run the checkpoint's own code where it comes with some.
        options: of `from_config`, such as `dtype`.
    Raises:
        InputError: no model can be made of it; names the key and its value.
    """
    name = str(config._name_or_path) or str(config.model_type)
    if faults := size_faults(config):
        raise config_error(name, *faults)
    try:
        with torch.device("meta"):
            return built(config, trust_remote_code=trust_remote_code, **options)
    except InputError:
        raise
    except Exception as error:  # a model's class raises whatever its parts do
        if out_of_memory(error):
            raise
        if trust_remote_code and (place := own_code(config)):
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise InputError(
                f"model {name!r}: its own code ({place}) cannot make it without weights ({reason})."
            ) from error
        raise config_error(name, fault_in_words(error, values_in(name) or config.to_dict())) from error


def built(config: PretrainedConfig, *, trust_remote_code: bool = False, **options: Any) -> PreTrainedModel:
    """The model of a configuration with the values it starts from, on whatever device is the default."""
    if is_layered(config, trust_remote_code=trust_remote_code):
        layered_shapes(config)
        return layered_class(config, layered_family(config))._from_config(config, **options)
    model: PreTrainedModel = auto_class(config).from_config(config, trust_remote_code=trust_remote_code, **options)
    if vars(config).get(OWN_HEAD):
        untie_(model, "lm_head.weight")
    return model


def untied_(model: PreTrainedModel, name: str, tensor: Tensor) -> bool:
    """Untie a weight of an encoder-decoder where what is to go there is not what it is tied to, which is there already;
    whether that was so."""
    other = model.all_tied_weights_keys.get(name)
    if other is None or torch.equal(tensor.to(model.dtype).cpu(), model.get_parameter(other).cpu()):
        return False
    untie_(model, name)
    return True


def untie_(model: PreTrainedModel, name: str) -> None:
    """Give a tied weight of an encoder-decoder (its head) an entry of its own, with the values that it has."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    tied = getattr(module, leaf)
    setattr(module, leaf, nn.Parameter(tied.detach().clone(), requires_grad=tied.requires_grad))
    model.all_tied_weights_keys = {key: to for key, to in model.all_tied_weights_keys.items() if key != name}


def own_code(config: PretrainedConfig) -> str:
    """Where a checkpoint's own classes are, such as `modeling_x.py`; an empty string where it brings none.

    The class that comes with layers that differ is made here, and counts as none.
    """
    given = getattr(config, "auto_map", None)
    if not isinstance(given, dict) or is_layered(config):
        return ""
    files = []
    for key in ("AutoModelForCausalLM", "AutoModel", "AutoConfig"):
        if isinstance(place := given.get(key), str) and "." in place:
            repository, _, name = place.rpartition("--")
            file = f"{name.rpartition('.')[0].replace('.', '/')}.py"
            files.append(f"{file} of {repository}" if repository else file)
    return ", ".join(dict.fromkeys(files))


def runs_code(config: PretrainedConfig, trust_remote_code: bool) -> bool:
    """Whether others need `trust_remote_code` to load the model as it is read here."""
    return is_layered(config) or (trust_remote_code and bool(own_code(config)))


def brings_code(cls: type[PreTrainedModel]) -> bool:
    """Whether `save_pretrained` puts the class's own code beside the weights: a checkpoint's, or that of a user who has
    called `register_for_auto_class`."""
    return cls.__module__.startswith("transformers_modules.") or cls._auto_class is not None


def check_read_elsewhere(config: PretrainedConfig) -> None:
    """Refuse a type whose class was registered in this process and leaves no code beside its weights.

    Raises:
        InputError: what leaves it there.
    """
    cls = stock_class_of(config)
    if not cls.__module__.startswith("transformers.") and not brings_code(cls):
        raise InputError(
            f"{cls.__name__} is a class of this process alone, so no other could read the result: call "
            f'{cls.__name__}.register_for_auto_class("AutoModelForCausalLM"), and register_for_auto_class() of its '
            "configuration, which leave their file beside the weights."
        )


def check_from_transformers(config: PretrainedConfig) -> None:
    """Refuse layers that differ of a class that is not transformers' own, whose module a modelling file would name.

    Raises:
        InputError: it is another.
    """
    if not stock_class_of(config).__module__.startswith("transformers."):
        raise InputError(
            f"layers that differ are written in a class made of one of transformers', and a {config.model_type} has "
            "another: use --allocation uniform."
        )
