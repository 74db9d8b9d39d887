"""What a model must be for our commands, and what it is beyond its name; reads configurations and headers only."""

import hashlib
import json
from codecs import BOM_UTF8
from collections.abc import Sequence
from math import prod
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import MODEL_FOR_MASKED_LM_MAPPING, GenerationConfig, PretrainedConfig, PreTrainedModel

from ..architecture.config_faults import SIZES, SPECIAL, fault_in_words
from ..system.errors import InputError
from ..system.quiet import quiet_transformers
from ..system.reading import PARSER_ERRORS, parse_json, read_text
from .source import ModelSource

WHOLE_NUMBERS = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "BOOL")
TOGETHER = "copy or download config.json and the weights again, together."
KINDS: dict[str, tuple[type, str]] = {
    "model_type": (str, "a name"),
    "quantization_config": (dict, "an object"),
    "text_config": (dict, "an object"),
}
"""Keys of config.json of which transformers takes the kind for granted."""
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


def check_json_files(source: ModelSource) -> None:
    """A local model's configurations are JSON objects, and the numbers of tokens in them are numbers.

    Raises:
        InputError: names the file and what is wrong in it.
    """
    if not source.is_local or source.gguf_file:
        return
    for name in ("config.json", "generation_config.json"):
        path = Path(source.path) / name
        if not path.exists():
            continue
        text = read_text(path, str(path))
        if path.read_bytes()[:3] == BOM_UTF8:
            raise InputError(f"{path} begins with a byte-order mark, which transformers cannot read: save it without.")
        values = parse_json(text, str(path), "copy or download it again.")
        if not isinstance(values, dict):
            raise InputError(f"{path} is no JSON object but {text.strip()[:40]}: copy or download it again.")
        for key in SPECIAL:
            value = values.get(key)
            tokens = value if isinstance(value, list) else [value]
            if not all(token is None or (isinstance(token, int) and not isinstance(token, bool)) for token in tokens):
                raise InputError(f"{path}: {key} is {value!r}, and a token is given by its number: correct it.")
        for key, (kind, words) in KINDS.items() if name == "config.json" else ():
            if values.get(key) is not None and not isinstance(values[key], kind):
                raise InputError(f"{path}: {key} is {json.dumps(values[key])[:80]}, and must be {words}: correct it.")
        code = values.get("auto_map")
        if isinstance(code, dict) and not all(isinstance(place, str | list | None) for place in code.values()):
            raise InputError(f"{path}: auto_map is {json.dumps(code)[:80]}, and must name classes: correct it.")
    if (Path(source.path) / "generation_config.json").is_file():
        try:
            with quiet_transformers():
                GenerationConfig.from_pretrained(source.path)
        except Exception as error:  # it checks what it reads, with errors of several classes
            reason = fault_in_words(error, {})
            raise InputError(f"{source.path}/generation_config.json cannot be used: {reason}. Correct it.") from None


def check_shapes(source: ModelSource, empty: PreTrainedModel) -> None:
    """Tensors whose size is not the one that config.json says, found before the memory for either is taken.

    Files that are not there or cannot be read are not this check's; nor are packed weights.

    Args:
        empty: the model without weights.
    Raises:
        InputError: names the tensor, both shapes and the keys that say otherwise.
    """
    if not source.is_local or source.gguf_file or getattr(empty.config, "quantization_config", None):
        return
    expected = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    for path in sorted(Path(source.path).glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as tensors:
                found = {n: tuple(tensors.get_slice(n).get_shape()) for n in tensors.keys() if n in expected}  # noqa: SIM118
        except (SafetensorError, OSError):
            continue
        if other := [name for name, shape in found.items() if prod(shape) != prod(expected[name])]:
            name = other[0]
            raise unfit_shapes(source.name, empty.config, len(other), name, found[name], expected[name])


def unfit_shapes(
    name: str,
    config: PretrainedConfig,
    count: int,
    key: str,
    found: Sequence[int],
    expected: Sequence[int],
    hint: str = TOGETHER,
) -> InputError:
    """The error for weights of another shape than config.json says.

    Args:
        count: how many there are; `key` is one of them.
    """
    sizes = {size for size, other in zip(expected, found, strict=False) if size != other}
    text = config.get_text_config(decoder=True)
    keys = [key for key in SIZES if getattr(text, key, None) in sizes]
    said = f" ({', '.join(f'{text.attribute_map.get(key, key)} {getattr(text, key)}' for key in keys)})" if keys else ""
    return InputError(
        f"model {name!r}: {count} weights do not have the shape that config.json says{said}, such as {key}: "
        f"{tuple(found)} in the file, {tuple(expected)} in the model; {hint}"
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
