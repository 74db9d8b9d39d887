"""What a checkpoint's files say that its config.json need not: the weights' precision, and whether the head is tied.

transformers takes both from config.json (or from the first tensor). Both are read from headers here, and from two
tensors where both of a tie are there, before a model is made; a configuration that says otherwise is corrected.
"""

from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ..architecture.gguf import check_gguf
from ..architecture.stock import OWN_HEAD, auto_class, has_class
from ..system.errors import InputError
from .checks import FLOATS, SCALES
from .files import folder_of, weight_files
from .guards import say_once
from .source import ModelSource

PRECISIONS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Names of kinds, in safetensors and GGUF alike -> the precisions that a result can have."""
TIES = {"lm_head.weight": "embed_tokens.weight"}
"""Of a class that transformers does not know."""
PACKED = ("bitsandbytes", "gptq", "awq", "fp8", "fbgemm_fp8", "mxfp4", "compressed-tensors")
"""Quantisations whose weights are never plain numbers in a file."""
HEAD = "lm_head.weight"
GGUF_TIE = {"output.weight": "token_embd.weight"}
ROWS = 1 << 14
"""Of an embedding, compared at a time."""


@dataclass(frozen=True)
class Tensors:
    """The tensors of a checkpoint's files."""

    kinds: dict[str, str]
    """Name -> kind, as the file calls it."""
    entries: dict[str, int]
    """Name -> number of entries."""
    bytes: dict[str, int]
    """Name -> what it takes in the file."""
    files: dict[str, Path]
    """Name -> its file."""

    @property
    def kind(self) -> str | None:
        """The kind that takes most of the bytes."""
        total: Counter[str] = Counter()
        for name, kind in self.kinds.items():
            total[kind] += self.bytes[name]
        return total.most_common(1)[0][0] if total else None

    @property
    def dtype(self) -> torch.dtype | None:
        """The precision that most of the bytes are in; None where they are packed in some other way."""
        return PRECISIONS.get(self.kind or "")


def stored_tensors(source: ModelSource) -> Tensors | None:
    """What the headers of a checkpoint's files list; None where there are none yet (of the hub), or damaged ones.

    What is wrong with them `check_checkpoint` says.
    """
    folder = folder_of(source)
    if folder is None:
        return None
    found = Tensors({}, {}, {}, {})
    try:
        if source.gguf_file:
            return _gguf_tensors(folder / source.gguf_file)
        for path in weight_files(folder):
            _add_header(found, path)
    except (InputError, SafetensorError, OSError, ValueError, KeyError, IndexError):
        return None
    return found


def follow_files_(config: PretrainedConfig, source: ModelSource) -> PretrainedConfig:
    """Make a configuration say what the checkpoint's files hold, and tell where it said something else.

    The precision is that of most of the bytes, but a narrower one that config.json names, which transformers then reads
    the weights in, stays. `tie_word_embeddings` becomes false where the files hold two tensors that differ.
    """
    stored = stored_tensors(source)
    if stored is None:
        return config
    if given := getattr(config, "quantization_config", None):
        if source.gguf_file or not _are_plain(stored, given):
            return config
        del config.quantization_config
        say_once(
            f"{source.name}: config.json has a quantization_config ({_method(given)}), and the weights in the "
            "file are plain numbers: they are read as these"
        )
    if stored.dtype is not None or source.gguf_file:
        config.dtype = _precision(source, config, stored)
    if getattr(config, "tie_word_embeddings", False) and (pair := _differing(config, source, stored)):
        head, embedding = pair
        if config.is_encoder_decoder:  # the rest of what its class ties stays so
            object.__setattr__(config, OWN_HEAD, True)
            return config
        config.tie_word_embeddings = False
        say_once(
            f"{source.name}: {head} and {embedding} differ in the file, though the configuration "
            "has tie_word_embeddings: they are two, and stay two"
        )
    return config


def _are_plain(stored: Tensors, given: Any) -> bool:
    """Whether a checkpoint has nothing of what its `quantization_config` would be for, such as one that was merged."""
    if _method(given) not in PACKED or not stored.kinds:
        return False
    return all(
        kind in FLOATS and "scale" not in name and not SCALES.search(name) for name, kind in stored.kinds.items()
    )


def _method(given: Any) -> str:
    named = given if isinstance(given, dict) else given.to_dict()
    bits = named.get("load_in_4bit") or named.get("load_in_8bit") or named.get("_load_in_4bit")
    return (
        str(named.get("quant_method") or ("bitsandbytes" if bits else None)).removeprefix("QuantizationMethod.").lower()
    )


def checkpoint_dtype(model_config: PretrainedConfig) -> torch.dtype:
    """The precision that a checkpoint is read in, and that of the result: of a configuration from `load_config`."""
    return model_config.dtype if isinstance(model_config.dtype, torch.dtype) else torch.float32


def stored_bytes(source: ModelSource) -> int | None:
    """Bytes that the weights take in the checkpoint's files, headers apart; None where not known."""
    stored = stored_tensors(source)
    return sum(stored.bytes.values()) if stored else None


def untie_(model: PreTrainedModel) -> None:
    """Make a model and its configuration agree on whether weights are tied, as the model has them.

    transformers leaves weights apart that differ in the file, and `tie_word_embeddings` as it was: what is made from
    the configuration then has one weight for two.
    """
    config, ties = model.config, model._tied_weights_keys
    if not getattr(config, "tie_word_embeddings", False) or not isinstance(ties, dict) or config.is_encoder_decoder:
        return
    held = dict(model.named_parameters(remove_duplicate=False))
    pairs = [(head, other) for head, other in ties.items() if head in held and other in held]
    if all(held[head] is held[other] for head, other in pairs):
        return
    config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}
    for head, other in pairs:  # the others of several ties
        if held[head] is held[other]:
            path, _, leaf = head.rpartition(".")
            copied = nn.Parameter(held[head].detach().clone(), requires_grad=held[head].requires_grad)
            setattr(model.get_submodule(path), leaf, copied)


def _add_header(found: Tensors, path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            part = file.get_slice(name)
            kind = part.get_dtype()
            found.kinds[name], found.files[name] = kind, path
            entries = prod(part.get_shape())
            found.entries[name] = entries
            found.bytes[name] = entries * (PRECISIONS[kind].itemsize if kind in PRECISIONS else 1)


def _gguf_tensors(path: Path) -> Tensors:
    file = check_gguf(path)
    kinds = {name: GGMLQuantizationType(number) for name, number in file.kinds.items()}
    entries = {name: prod(shape) for name, (_, shape) in file.places.items()}
    sizes = {
        name: entries[name] // GGML_QUANT_SIZES[kind][0] * GGML_QUANT_SIZES[kind][1] for name, kind in kinds.items()
    }
    return Tensors({name: kind.name for name, kind in kinds.items()}, entries, sizes, dict.fromkeys(kinds, path))


def _precision(source: ModelSource, config: PretrainedConfig, stored: Tensors) -> torch.dtype:
    """What the weights are read in, and a result is written in."""
    named = config.dtype if isinstance(config.dtype, torch.dtype) else None
    held = stored.dtype or torch.float32  # packed in a GGUF: they become float32 when they are unpacked
    narrower = named in PRECISIONS.values() and named is not None and named.itemsize < held.itemsize
    chosen = named if narrower and named is not None else held
    name, words = source.name, {dtype: str(dtype).removeprefix("torch.") for dtype in (named, held, chosen)}
    if named not in (None, held) and stored.dtype is not None:
        does = "read, and a result is written, in that" if narrower else f"they stay {words[held]}"
        say_once(f"{name}: the weights are {words[held]} and config.json says {words[named]}: {does}")
    others = [n for n, kind in stored.kinds.items() if kind in PRECISIONS and kind != stored.kind and _is_weight(n)]
    if others and stored.dtype is not None:
        share = sum(stored.bytes[n] for n in others) / sum(stored.bytes.values())
        kinds = " and ".join(sorted({str(PRECISIONS[stored.kinds[n]]).removeprefix("torch.") for n in others}))
        say_once(
            f"{name}: {len(others)} of {len(stored.kinds)} tensors ({share:.1%} of the bytes) are {kinds}, the others "
            f"{words[held]}: all are read, and a result is written, in {words[chosen]}"
        )
    return chosen


def _is_weight(name: str) -> bool:
    return name.endswith((".weight", ".bias"))


def _differing(config: PretrainedConfig, source: ModelSource, stored: Tensors) -> tuple[str, str] | None:
    """The names, in the files, of two tensors that the configuration ties and that differ."""
    if source.gguf_file:
        ties = GGUF_TIE
    else:
        model_class: Any = auto_class(config)._model_mapping[type(config)] if has_class(config) else None
        declared = getattr(model_class, "_tied_weights_keys", None)
        ties = declared if isinstance(declared, dict) else TIES
        if config.is_encoder_decoder:
            ties = {head: other for head, other in ties.items() if head == HEAD}
    for head, other in ties.items():
        one, two = _stored_as(head, stored), _stored_as(other, stored)
        if one and two and one != two and not _equal(one, two, stored, config.dtype):
            return one, two
    return None


def _stored_as(name: str, stored: Tensors) -> str | None:
    """A parameter's name in the files, which may lack or have a prefix: the one that ends as it does."""
    if name in stored.kinds:
        return name
    end = ".".join(name.split(".")[-2:])
    found = [each for each in stored.kinds if each == end or each.endswith(f".{end}")]
    return found[0] if len(found) == 1 else None


def _equal(one: str, two: str, stored: Tensors, dtype: Any) -> bool:
    """Whether two tensors hold the same in the precision that they are read in; stops at the first that differs."""
    if stored.entries[one] != stored.entries[two]:
        return False
    if stored.files[one].suffix == ".gguf":
        from gguf import GGUFReader

        packed = {tensor.name: tensor for tensor in GGUFReader(stored.files[one]).tensors if tensor.name in (one, two)}
        return stored.kinds[one] == stored.kinds[two] and bool((packed[one].data == packed[two].data).all())
    with safe_open(stored.files[one], framework="pt") as first, safe_open(stored.files[two], framework="pt") as second:
        a, b = first.get_slice(one), second.get_slice(two)
        shape = a.get_shape()
        if shape != b.get_shape():
            return False
        wide = dtype if isinstance(dtype, torch.dtype) else torch.float32
        return all(
            torch.equal(a[start : start + ROWS].to(wide), b[start : start + ROWS].to(wide))
            for start in range(0, shape[0], ROWS)
        )
