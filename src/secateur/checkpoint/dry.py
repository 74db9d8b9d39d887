"""Whether a result can be written, known before any training: its config, class and shapes, and what lies beside it."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..architecture.discovery import find_units
from ..architecture.experts import unstack_experts
from ..architecture.units import Units
from ..models.source import ModelSource
from ..models.surgery import merged_and_sliced
from ..system.errors import InputError, SecateurError, disk_is_full, out_of_memory
from ..system.output import scratch, trial
from ..system.quiet import quiet_transformers
from .card import plain_card
from .export import small_class
from .older_readers import add_older_keys
from .tokenizer_files import write_tokenizer


def check_export(empty: PreTrainedModel, units: Units, keep: dict[str, Tensor], model_class: str = "keep") -> None:
    """Whether the class that a result is written in has the tensors that it will be made of.

    Args:
        empty: the model without weights, its experts apart.
        keep: pool name -> (units,) bool; what might stay.
    Raises:
        InputError: no config takes the sizes, or the class builds others.
    """
    cls, config = small_class(empty.config, units.family, units.shapes_after(keep), model_class)
    check_config(config)
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


def check_config(config: PreTrainedConfig) -> None:
    """Whether a configuration can be written, and read back without code of its own.

    Raises:
        InputError: says what transformers says of it.
    """
    with scratch() as folder, _told("its config.json", "take out of the model's what is not needed there"):
        copied = copy.deepcopy(config)
        copied.save_pretrained(folder)
        add_older_keys(folder)
        AutoConfig.from_pretrained(folder)


def check_beside(output: Path, source: ModelSource, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write what lies beside the weights of a result where it will lie, read it back, and remove it.

    Raises:
        InputError: the place does not take it, or one of the model's files cannot be handed on.
    """
    with trial(output) as folder:
        with _told("the tokenizer", "check the model's tokenizer files"):
            write_tokenizer(tokenizer, folder)
        if not source.is_local or source.gguf_file:
            return
        place = Path(source.path)
        with _told("the model card", "correct the metadata in the model's README.md, or take it away"):
            plain_card(source.name, 0, "", "", place).encode()
        if (place / "generation_config.json").is_file():
            with _told("generation_config.json", "correct the model's"):
                GenerationConfig.from_pretrained(place).to_json_file(folder / "generation_config.json")
                GenerationConfig.from_pretrained(folder)


@contextmanager
def _told(what: str, remedy: str) -> Iterator[None]:
    try:
        with quiet_transformers():
            yield
    except Exception as error:  # of several libraries, each with classes of its own
        if isinstance(error, SecateurError) or disk_is_full(error) or out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"the result could not be written: {what} fails ({type(error).__name__}: {reason}): {remedy}."
        ) from error


def empty_copy(model: PreTrainedModel, units: Units) -> PreTrainedModel | None:
    """The model without weights, made from its config; None where its modules are not those of its class."""
    try:
        with torch.device("meta"):
            empty: PreTrainedModel = type(model)(copy.deepcopy(model.config))
        unstack_experts(empty, units.family)
        return empty if find_units(empty, units.family).shapes == units.shapes else None
    except (InputError, TypeError, ValueError, RuntimeError, AttributeError):
        return None
