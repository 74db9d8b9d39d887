"""What a model must be for our commands, and what it is beyond its name; reads configurations and headers only."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from transformers import MODEL_FOR_MASKED_LM_MAPPING, PretrainedConfig

from ..system.errors import InputError
from ..system.reading import PARSER_ERRORS

WHOLE_NUMBERS = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "BOOL")
HEADER_BYTES = 1 << 20
"""Of a config.json, or of a GGUF file, whose names and shapes come first."""


def check_causal(name: str, config: PretrainedConfig) -> None:
    """Refuse what does not predict the next token: transformers would load an encoder as if it did.

    Raises:
        InputError: an encoder, or an encoder-decoder.
    """
    if config.is_encoder_decoder:
        raise InputError(
            f"model {name!r}: {config.model_type} is an encoder-decoder, and secateur's commands work on causal "
            "language models: prune it from Python (secateur.Pruner in your own training loop or Trainer)."
        )
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        raise InputError(
            f"model {name!r}: {config.model_type} is an encoder, and secateur's commands work on causal language "
            "models: give a decoder-only one, such as a Llama."
        )


def check_kinds(path: Path, kinds: dict[str, str]) -> None:
    """Weights are floating-point numbers, unless config.json says how they are packed.

    Args:
        kinds: tensor name -> its kind as safetensors calls it, of the file at `path`.
    Raises:
        InputError: some are not; buffers (positions, masks) may be whole numbers.
    """
    whole = [name for name, kind in kinds.items() if name.endswith(".weight") and kind in WHOLE_NUMBERS]
    if whole and not _is_quantised(path.parent):
        raise InputError(
            f"{path}: {whole[0]} and {len(whole) - 1} other weights are whole numbers ({kinds[whole[0]]}), and "
            "config.json names no quantization: give a checkpoint in float32, bfloat16 or float16."
        )


def hash_of_headers(folder: Path, files: Sequence[str]) -> str:
    """SHA-256 of config.json, of the weights' names, kinds, shapes and places, and of all sizes."""
    digest = hashlib.sha256()
    for name in files:
        path = folder / name
        digest.update(f"{name} {path.stat().st_size} ".encode())
        with path.open("rb") as file:
            weights = name.endswith(".safetensors")
            digest.update(file.read(int.from_bytes(file.read(8), "little") if weights else HEADER_BYTES))
    return digest.hexdigest()


def gated(name: str, repository: str) -> InputError:
    """The error for a hub model whose terms must be accepted first."""
    return InputError(
        f"model {name!r} is gated: accept its terms on https://huggingface.co/{repository}, log in with "
        "`hf auth login`, and try again; or give a local folder."
    )


def _is_quantised(folder: Path) -> bool:
    try:
        return "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, *PARSER_ERRORS, TypeError):
        return False
