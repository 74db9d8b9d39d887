"""Models by folder, GGUF file, hub id or embedded name."""

import logging
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from ..architecture.building import empty_model, own_code
from ..architecture.config_faults import token_warnings
from ..architecture.gguf import check_gguf, settle_
from ..architecture.layered import is_layered, layered_class, layered_family
from ..architecture.nested import RENAMED, forget_whole_, is_of_text, text_alone, whole_type
from ..architecture.quantised import check_rows, is_quantised
from ..architecture.quantised import settle_ as settle_packed_
from ..architecture.stock import auto_class, forget_layers_, stock_config_class
from ..system.errors import InputError
from ..system.progress import phase
from ..system.terminal.streams import safe
from ..system.voice import speaks_python
from .checks import TOGETHER, check_json_files, check_kind, unfit_shapes, why_harmless
from .devices import default_device
from .files import check_checkpoint, check_numbers, check_shapes
from .guards import check_hub, config_values, guarded, say_once
from .memory import LOAD_LESS, memory_for
from .source import ModelSource
from .stored import follow_files_, untie_

log = logging.getLogger("secateur")

ADAPTER = "adapter_config.json"
NOWHERE = "no-adapter"
"""A subfolder that no model has."""


def load_config(
    source: ModelSource, *, trust_remote_code: bool = False, encoder_decoders: bool = False
) -> PretrainedConfig:
    """The model's configuration, of which a model without weights was made as a proof; reads no weights.

    It is in agreement with the checkpoint's files (`stored.follow_files_`).

    Args:
        encoder_decoders: whether these are taken, too.
    Raises:
        InputError: config.json is corrupt or cannot be used, the files' tensors have other shapes than it says, the hub
            id is unknown or cannot be reached, code must be trusted; what transformers would read of the weights is not
            what they are (`check_numbers`, `settle_`).
    """
    config = _read_config(source, trust_remote_code, encoder_decoders)
    if not (trust_remote_code and own_code(config)):  # such code may need weights, or values, to be built
        check_shapes(source, empty_model(config))
    if whole := whole_type(config):
        say_once(
            f"model {source.name!r}: of this {whole} its text model is taken alone, a {config.model_type}; what reads "
            "pictures or sound is left out, here and in every figure and result."
        )
    if not trust_remote_code and (place := own_code(config)):
        say_once(
            f"model {source.name!r} has code of its own ({place}), which is not run: it is taken for a stock "
            f"{config.model_type}. Read it, and pass --trust-remote-code if you trust it."
        )
    for warning in token_warnings(config):
        say_once(f"model {source.name!r}: {warning}.")
    return config


def _read_config(source: ModelSource, trust_remote_code: bool, encoder_decoders: bool) -> PretrainedConfig:
    check_hub(source)
    check_json_files(source)
    check_numbers(source)
    file = Path(source.path) / source.gguf_file if source.gguf_file else None
    if file is not None:
        check_gguf(file)
    stock = stock_config_class(config_values(source)) if not source.gguf_file else None
    load = stock.from_pretrained if stock else AutoConfig.from_pretrained
    config = guarded(source, load, trust_remote_code, {"gguf_file": source.gguf_file})
    vars(config).pop("_model_name_or_path", None)  # transformers' name for a GGUF file's model, which no config has
    if not getattr(config, "return_dict", True):  # tuples are for TorchScript: a model's parts here are asked by name
        config.return_dict = True
    if source.is_local and not source.gguf_file and (Path(source.path) / ADAPTER).is_file():
        say_once(
            f"model {source.name!r} has a LoRA adapter beside its weights ({ADAPTER}), which is not read: give it as "
            "--adapter, in a folder of its own, where it is part of the model."
        )
    check_kind(source.name, forget_layers_(config), encoder_decoders=encoder_decoders)
    if file is not None:
        settle_(config, file)
    if not (trust_remote_code and own_code(config)):
        config = text_alone(config)
    for each in (config, config.get_text_config(decoder=True)):  # what a caller gets beside logits, which we ask for
        each.return_dict, each.output_attentions, each.output_hidden_states = True, False, False
    return follow_files_(config, source)


@speaks_python()
def load_model(
    source: ModelSource,
    *,
    dtype: str = "checkpoint",
    trust_remote_code: bool = False,
    quantising: dict[str, Any] | None = None,
) -> PreTrainedModel:
    """The language model, causal or an encoder-decoder, in evaluation mode on the CPU.

    `dtype`: "checkpoint" keeps the checkpoint's own (`stored.checkpoint_dtype`), else float32, bfloat16 or float16. A
    GGUF file is dequantised. Only safetensors and GGUF are read, never a pickle.

    Args:
        quantising: `architecture.quantised.loading_options`, to quantise what is read, on the device that they name.
    Raises:
        InputError: a file is corrupt or missing, or weights and config.json do not fit each other.
    """
    check_hub(source)
    check_checkpoint(source)
    config = _read_config(source, trust_remote_code, encoder_decoders=True)
    options: dict[str, Any] = {
        "config": config,
        "dtype": "auto" if dtype == "checkpoint" else getattr(torch, dtype),
        "output_loading_info": True,
        # without this, shapes that differ raise an error that names none of them; they are refused below
        "ignore_mismatched_sizes": True,
        # else transformers puts an adapter of the same folder on top, or reads the model that this one names
        "adapter_kwargs": {"subfolder": NOWHERE},
    }
    if source.gguf_file:
        options |= {"gguf_file": source.gguf_file, "quantization_config": GgufConfig(dequantize=True)}
    else:
        options |= {"use_safetensors": True, **(quantising or {})}
    if whole_type(config):
        options["key_mapping"] = RENAMED
    with memory_for(f"loading {source.name}", LOAD_LESS), phase(f"{_doing(source)} {source.name}"):
        model, info = guarded(source, _loader(config, trust_remote_code), trust_remote_code, options)
    if not source.is_local:
        check_numbers(source)  # its files are in the hub's cache by now
    refuse_unfit(source, model, info, trusted=trust_remote_code)
    if not quantising and is_quantised(model):
        settle_packed_(model)
        if default_device().type == "cpu":
            check_rows(model)
    untie_(model)
    forget_whole_(model)
    return model.eval()


def _doing(source: ModelSource) -> str:
    """What loading is called: a model of the hub comes over the network first, unless it is in the cache."""
    from huggingface_hub import try_to_load_from_cache

    files = ("model.safetensors", "model.safetensors.index.json")
    there = source.is_local or any(isinstance(try_to_load_from_cache(source.path, file), str) for file in files)
    return "loading" if there else "downloading and loading"


def _loader(config: PretrainedConfig, trust_remote_code: bool) -> Callable[..., Any]:
    """The `from_pretrained` that reads a model's weights."""
    if is_layered(config, trust_remote_code=trust_remote_code):
        return layered_class(config, layered_family(config)).from_pretrained
    return auto_class(config).from_pretrained


def refuse_unfit(
    source: ModelSource, model: PreTrainedModel, info: Mapping[str, Collection[Any]], *, trusted: bool
) -> None:
    """Refuse what transformers only reports: weights that are missing, of another shape, or that it does not take.

    A tied weight whose source is there does not count as missing: transformers takes it off the list.

    Args:
        info: of a `from_pretrained`.
        trusted: the model's own code was run, where it comes with some.
    Raises:
        InputError: names one of them. Of what is known not to belong to the function (`HARMLESS`), a warning is given.
    """
    hint, says = TOGETHER, "config.json"
    if source.gguf_file:
        hint, says = "get the file again, or give the original checkpoint, a folder with safetensors.", "its metadata"
    elif not trusted and "AutoModelForCausalLM" in (getattr(model.config, "auto_map", None) or {}):
        hint = "the checkpoint ships a modelling file of its own: read it, and pass --trust-remote-code."
    place = f"model {source.name!r}"
    if mismatched := sorted(info["mismatched_keys"]):
        key, found, expected = mismatched[0]
        raise unfit_shapes(source.name, model.config, len(mismatched), key, found, expected, hint, says)
    if missing := sorted(info["missing_keys"]):
        if not source.gguf_file and set(missing) <= set(getattr(model, "_tied_weights_keys", None) or ()):
            hint = (
                "if the model's output embedding is its input embedding, say so: tie_word_embeddings: true in "
                "config.json."
            )
        if wrapped := [key for key in info["unexpected_keys"] if key.endswith(f".{missing[0]}")]:
            hint = (
                f"the file has it as {wrapped[0]}, as a wrapper around the model calls it: save the model inside the "
                "wrapper (after merge_and_unload() where it is PEFT's), or rename the tensors."
            )
        raise InputError(f"{place}: {len(missing)} weights are not in the checkpoint, such as {missing[0]}; {hint}")
    reasons: dict[str, list[str]] = {}
    whole = whole_type(model.config)
    for key in sorted(info["unexpected_keys"]):
        if whole and not is_of_text(key):
            continue  # said when the configuration was read
        reasons.setdefault(why_harmless(key, model.config) or "", []).append(key)
    others = reasons.pop("", [])
    shape_of_names = {re.sub(r"\d+", "N", key) for key in model.state_dict()}
    if further := [key for key in others if re.sub(r"\d+", "N", key) in shape_of_names]:
        raise InputError(
            f"{place}: the checkpoint has {len(further)} weights of layers that {says} does not know, such as "
            f"{further[0]}; {hint}"
        )
    if others:
        raise InputError(
            f"{place}: {len(others)} tensors of the checkpoint have no place in a {type(model).__name__}, such as "
            f"{others[0]}: without them it would be another model; {hint}"
        )
    for reason, keys in reasons.items():
        log.warning(
            "%s: %d weights of the checkpoint are no part of the causal language model and left out (%s), such as %s",
            safe(source.name), len(keys), reason, safe(keys[0]),
        )  # fmt: skip
