"""Models and tokenizers by folder, GGUF file, hub id or embedded name."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..system.errors import InputError
from ..system.progress import safe
from .checks import check_causal, check_kinds, hash_of_headers
from .guards import check_hub, guarded
from .memory import LOAD_LESS, memory_for
from .source import ModelSource

log = logging.getLogger("secateur")

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PICKLED = ("*.bin", "*.pt", "*.pth")


def load_config(source: ModelSource, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The model's configuration; reads no weights.

    Raises:
        InputError: config.json is corrupt, the hub id is unknown or cannot be reached, code must be trusted.
    """
    check_hub(source)
    config = guarded(source, AutoConfig.from_pretrained, trust_remote_code, {"gguf_file": source.gguf_file})
    check_causal(source.name, config)
    return config


def check_checkpoint(source: ModelSource) -> None:
    """Read the headers of a local checkpoint's files (milliseconds): nothing missing, truncated or pickled.

    Raises:
        InputError: names the file and the remedy. A hub id is not checked here.
    """
    if not source.is_local:
        return
    folder = Path(source.path)
    if source.gguf_file:
        with (folder / source.gguf_file).open("rb") as file:
            if file.read(4) != b"GGUF":
                raise InputError(f"{folder / source.gguf_file} is not a GGUF file (corrupt?): get it again.")
        return
    for file_name in _weight_files(folder):
        path = folder / file_name
        if not path.is_file():
            raise InputError(f"{folder} is incomplete: {file_name}, named in {INDEX}, is missing: copy it again.")
        try:
            with safe_open(path, framework="pt") as tensors:
                kinds = {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is corrupt or truncated ({error}): copy or download it again.") from None
        check_kinds(path, kinds)


def contents_of(source: ModelSource, model_config: PretrainedConfig) -> str | None:
    """What a model is beyond its name: a hash of config.json and of its weights' names, kinds, shapes and places.

    Of a hub model the commit; None where neither is known. Reads headers only, so that it costs nothing.
    """
    if not source.is_local:
        return getattr(model_config, "_commit_hash", None)
    folder = Path(source.path)
    return hash_of_headers(folder, [source.gguf_file] if source.gguf_file else ["config.json", *_weight_files(folder)])


def load_model(
    source: ModelSource,
    *,
    dtype: str = "checkpoint",
    trust_remote_code: bool = False,
    quantising: dict[str, Any] | None = None,
) -> PreTrainedModel:
    """The causal language model in evaluation mode on the CPU.

    `dtype`: "checkpoint" keeps the checkpoint's own, else float32, bfloat16 or float16. A GGUF file is
    dequantised (float32 when the dtype is "checkpoint"). Only safetensors and GGUF are read, never a pickle.

    Args:
        quantising: `architecture.quantised.loading_options`, to quantise what is read, on the device that they name.
    Raises:
        InputError: a file is corrupt or missing, or weights and config.json do not fit each other.
    """
    check_hub(source)
    check_checkpoint(source)
    options: dict[str, Any] = {
        "dtype": "auto" if dtype == "checkpoint" else getattr(torch, dtype),
        "output_loading_info": True,
        # without this, shapes that differ raise an error that names none of them; they are refused below
        "ignore_mismatched_sizes": True,
    }
    if source.gguf_file:
        options |= {"gguf_file": source.gguf_file, "quantization_config": GgufConfig(dequantize=True)}
    else:
        options |= {"use_safetensors": True, **(quantising or {})}
    with memory_for(f"loading {source.name}", LOAD_LESS):
        model, info = guarded(source, AutoModelForCausalLM.from_pretrained, trust_remote_code, options)
    _refuse_unfit(source, model, info, trust_remote_code)
    return model.eval()


def load_tokenizer(source: ModelSource, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer beside the model, or out of its GGUF file.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    check_hub(source)
    names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")
    if source.is_local and not source.gguf_file and not any((Path(source.path) / n).is_file() for n in names):
        raise InputError(f"{source.path} has no tokenizer ({names[0]}): copy the base model's there.")
    options = {"gguf_file": source.gguf_file}
    return guarded(source, AutoTokenizer.from_pretrained, trust_remote_code, options, "tokenizer")


def _weight_files(folder: Path) -> list[str]:
    """Names of the safetensors files of a checkpoint folder."""
    if (folder / SINGLE).is_file():
        return [SINGLE]
    if (folder / INDEX).is_file():
        try:
            return sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{folder / INDEX} is corrupt: copy or download it again.") from None
    if ggufs := sorted(path.name for path in folder.glob("*.gguf")):
        raise InputError(f"{folder} has no safetensors but GGUF files: give one, such as {folder / ggufs[0]}.")
    if any(next(folder.glob(pattern), None) for pattern in PICKLED):
        raise InputError(
            f"{folder} has its weights as pickles only, which can run code when they are opened: where you trust "
            "them, convert once with model.save_pretrained(new_folder), which writes safetensors, and give that."
        )
    raise InputError(f"{folder} has no weights: expected {SINGLE}, or {INDEX} and its files.")


def _refuse_unfit(source: ModelSource, model: PreTrainedModel, info: dict[str, Any], trusted: bool) -> None:
    """Refuse what transformers only reports: weights that are missing, of another shape, or of further layers.

    A tied weight whose source is there does not count as missing: transformers takes it off the list.
    """
    hint = "copy or download config.json and the weights again, together."
    if not trusted and "AutoModelForCausalLM" in (getattr(model.config, "auto_map", None) or {}):
        hint = "the checkpoint ships a modelling file of its own: read it, and pass --trust-remote-code."
    if mismatched := sorted(info["mismatched_keys"]):
        key, found, expected = mismatched[0]
        raise InputError(
            f"model {source.name!r}: {len(mismatched)} weights do not have the shape that config.json says, "
            f"such as {key}: {tuple(found)} in the file, {tuple(expected)} in the model; {hint}"
        )
    if missing := sorted(info["missing_keys"]):
        raise InputError(
            f"model {source.name!r}: {len(missing)} weights are not in the checkpoint, such as {missing[0]}; {hint}"
        )
    unexpected = sorted(info["unexpected_keys"])
    shape_of_names = {re.sub(r"\d+", "N", key) for key in model.state_dict()}
    if further := [key for key in unexpected if re.sub(r"\d+", "N", key) in shape_of_names]:
        raise InputError(
            f"model {source.name!r}: the checkpoint has {len(further)} weights of layers that config.json "
            f"does not know, such as {further[0]}; {hint}"
        )
    if unexpected:
        log.warning(
            "%s: %d weights of the checkpoint are no part of the causal language model and left out, such as %s",
            safe(source.name),
            len(unexpected),
            safe(unexpected[0]),
        )


def checkpoint_dtype(model_config: PretrainedConfig) -> torch.dtype:
    """The precision of a checkpoint's weights: that of the result, too."""
    return model_config.dtype if isinstance(model_config.dtype, torch.dtype) else torch.float32
