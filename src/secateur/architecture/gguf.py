"""GGUF files: what transformers takes of one, and whether that is all that makes its model what it is.

transformers reads a file's keys by a table of a dozen names an architecture, and its tensors by the names that its
model has; the rest it drops without a word. Here the rest is applied (`settle_`) or refused.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig
from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS

# Private, and the same from transformers 5.17 to 5.23: gguf-py's own reader takes seconds over a large vocabulary.
from transformers.integrations.gguf.reader import _mapped, _read_metadata, _read_tensor_table
from transformers.modeling_gguf_pytorch_utils import (
    GGUF_SUPPORTED_ARCHITECTURES,
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)

from ..system.errors import InputError
from ..system.reading import damaged, is_pointer
from .gguf_keys import ROTARY, SPECIAL, keys_left, rope_from_tensor, settle_keys_

NAMES = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "gpt-oss": "gpt_oss", "minimax-m2": "minimax_m2"}
"""Architecture of a file -> transformers' name for it, where they differ."""
ORIGINAL = "Give the original checkpoint, a folder with safetensors."
PROJECTIONS = {
    "attention_bias": ("attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias"),
    "mlp_bias": ("ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"),
}
"""Llama's switches, which no key of a file tells -> the tensors that do."""


@dataclass(frozen=True)
class Gguf:
    """The head of a GGUF file."""

    path: Path
    metadata: dict[str, Any]
    """Key -> value; of a list of texts its length."""
    kinds: dict[str, int]
    """Tensor name -> ggml's number of its kind."""
    places: dict[str, tuple[int, tuple[int, ...]]]
    """Tensor name -> its first byte and its shape, as torch has it."""

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    @property
    def own(self) -> dict[str, Any]:
        """The architecture's keys without its name."""
        start = self.architecture + "."
        return {key.removeprefix(start): value for key, value in self.metadata.items() if key.startswith(start)}


def head_of(path: Path) -> Gguf:
    """A file's head as it is: transformers may take none of it.

    Raises:
        InputError: it is damaged.
    """
    status = path.stat()
    return _read(path, status.st_size, status.st_mtime_ns)


def check_gguf(path: Path) -> Gguf:
    """Read a file's head (milliseconds): whole, a model, all of it, and of kinds that can be dequantised.

    Raises:
        InputError: names what it is instead, and the remedy.
    """
    file, status = head_of(path), path.stat()
    kind = file.metadata.get("general.type", "model")
    if kind != "model":
        raise InputError(f"{path}: general.type is {kind!r}, so it is no model: give the model's own GGUF file.")
    parts = int(file.metadata.get("split.count", 0))
    if parts > 1:
        raise InputError(
            f"{path}: split.count is {parts}, so it is one of {parts} parts, and transformers reads single files: "
            "join them with llama.cpp's `llama-gguf-split --merge`, and give what comes of it."
        )
    architecture = file.architecture
    name = NAMES.get(architecture, architecture)
    if architecture not in GGUF_CONFIG_ARCHS and (
        name not in GGUF_SUPPORTED_ARCHITECTURES or name not in CONFIG_MAPPING
    ):
        raise InputError(f"{path}: transformers reads no GGUF file of the architecture {architecture!r}. {ORIGINAL}")
    for key in ("attention.head_count", "attention.head_count_kv", "feed_forward_length"):
        if isinstance(file.own.get(key), list) and architecture not in SPECIAL:
            raise InputError(f"{path}: {architecture}.{key} differs between layers, which its class cannot. {ORIGINAL}")
    _check_token_numbers(file)
    for name, number in file.kinds.items():
        if not _can_be_read(number):
            raise InputError(
                f"{path}: {name} is of the kind {_name_of(number)}, which cannot be dequantised: give the file in "
                "another quantisation, or the original checkpoint."
            )
        start, shape = file.places[name]
        elements, size = GGML_QUANT_SIZES[GGMLQuantizationType(number)]
        if start + math.prod(shape) // elements * size > status.st_size:
            raise InputError(f"{path} is truncated: {name} lies beyond its end: copy or download it again.")
    return file


def settle_(config: PreTrainedConfig, path: Path) -> None:
    """Put into `config` what a file says of its model and transformers leaves out.

    Raises:
        InputError: a key or a tensor changes what the model computes and cannot be put there; names it.
    """
    file = check_gguf(path)
    settle_keys_(config, file.architecture, file.own)
    left = keys_left(config, NAMES.get(file.architecture, file.architecture), file.own)
    tensors = dict.fromkeys(file.kinds)
    if "rope_freqs.weight" in tensors:
        found = rope_from_tensor(config, _values(file, "rope_freqs.weight"), file.own)
        left += [] if found else ["rope_freqs.weight"]
        del tensors["rope_freqs.weight"]
    if config.model_type == "llama":
        for switch, names in PROJECTIONS.items():
            if any(f"blk.0.{name}" in tensors for name in names):
                setattr(config, switch, True)
    if left:
        value = file.own.get(left[0], "there")
        key = left[0] if left[0] in file.kinds else f"{file.architecture}.{left[0]}"
        raise InputError(
            f"{path}: {key} is {value}, which transformers leaves out as it reads a GGUF file, and the model would be "
            f"another one. {ORIGINAL}"
        )
    if file.architecture not in GGUF_CONFIG_ARCHS:  # of those, transformers tells what it did not take
        _check_tensors(config, file, list(tensors))


def _check_tensors(config: PreTrainedConfig, file: Gguf, names: list[str]) -> None:
    """Every tensor must be one that transformers' loader takes for a model of this config.

    Raises:
        InputError: names the first that is not, or that is not in the file.
    """
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    processor = TENSOR_PROCESSORS.get(file.architecture, TensorProcessor)(config=config.to_dict())
    taken = get_gguf_hf_weights_map(empty, processor)
    alone = {"output.weight"} if file.architecture == "gpt2" else set()
    dropped = [name for name in names if not {name, name.removesuffix(".weight")} & {*taken, *alone}]
    dropped = [name for name in dropped if not name.endswith((".attn_rot_embd", ".rope_freqs.weight"))]
    if dropped:
        raise InputError(
            f"{file.path}: transformers leaves out {len(dropped)} tensors of this {file.architecture} file, such as "
            f"{dropped[0]}, and the model would be another one. {ORIGINAL}"
        )
    if config.model_type in (*ROTARY, "gemma2", "gemma3_text", "phi3"):
        _check_sizes(file, taken, {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()})


def _check_sizes(file: Gguf, taken: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> None:
    """The file's tensors are those of the model that its keys describe, each of its size.

    Args:
        taken: name of a tensor -> of the model's weight.
        shapes: of the model's weights.
    Raises:
        InputError: names the first that is missing, or of another size.
    """
    again = "get the file again, or give the original checkpoint, a folder with safetensors."
    held = {taken[name] for name in file.kinds if name in taken}
    for name, weight in taken.items():
        if weight not in shapes or "_exps" in name:
            continue
        shape = file.places[name][1] if name in file.places else None
        if shape is not None and math.prod(shape) != math.prod(shapes[weight]):
            raise InputError(
                f"{file.path}: {name} does not have the shape that its metadata says: {shape} in the file, "
                f"{shapes[weight]} in the model; {again}"
            )
        if weight not in held and weight != "lm_head.weight":
            raise InputError(f"{file.path}: {name} is not in the file, though its metadata says so; {again}")


@lru_cache(maxsize=2)
def _read(path: Path, size: int, changed_ns: int) -> Gguf:
    try:
        blob = _mapped(str(path))
        if bytes(blob[:4]) != b"GGUF":
            raise damaged(path, "") if is_pointer(path) else InputError(f"{path} is not a GGUF file: get it again.")
        metadata, count, place = _read_metadata(blob, str(path))
        table, place = _read_tensor_table(blob, count, place)
    except InputError:
        raise
    except Exception as error:  # whatever reading past the end, or beside the point, comes to
        raise damaged(path, error) from None
    alignment = int(metadata.get("general.alignment", 32)) or 32
    start = -(-place // alignment) * alignment
    return Gguf(
        path,
        metadata,
        {name: kind for name, _, kind, _ in table},
        {name: (start + offset, tuple(shape)) for name, shape, _, offset in table},
    )


def _check_token_numbers(file: Gguf) -> None:
    count = file.metadata.get("tokenizer.ggml.tokens")
    for key in ("bos", "eos", "unknown", "padding", "separator"):
        number = file.metadata.get(name := f"tokenizer.ggml.{key}_token_id")
        if isinstance(count, int) and isinstance(number, int) and number >= count:
            raise InputError(
                f"{file.path}: {name} is {number}, and it has {count} tokens: correct it with gguf-py's "
                f"gguf_set_metadata.py, or give the original checkpoint."
            )


@lru_cache
def _can_be_read(number: int) -> bool:
    """Whether gguf-py knows how to dequantise tensors of this kind: it is tried on a block of zeros."""
    try:
        kind = GGMLQuantizationType(number)
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), dtype=np.uint8), kind)
    except (ValueError, KeyError, NotImplementedError):
        return False
    return True


def _name_of(number: int) -> str:
    try:
        return GGMLQuantizationType(number).name
    except ValueError:
        return str(number)


def _values(file: Gguf, name: str) -> np.ndarray:
    """A tensor in float32."""
    start, shape = file.places[name]
    kind = GGMLQuantizationType(file.kinds[name])
    elements, size = GGML_QUANT_SIZES[kind]
    data = np.fromfile(file.path, dtype=np.uint8, count=math.prod(shape) // elements * size, offset=start)
    return np.asarray(dequantize(data, kind), dtype=np.float32)
