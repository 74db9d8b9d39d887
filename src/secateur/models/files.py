"""Which files a checkpoint consists of, and which tensors are in them: from names and headers, no weights are read."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig

from ..system.errors import InputError
from .checks import check_kinds, hash_of_headers
from .source import ModelSource

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PICKLED = ("*.bin", "*.pt", "*.pth")


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
    for file_name in weight_files(folder):
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
    return hash_of_headers(folder, [source.gguf_file] if source.gguf_file else ["config.json", *weight_files(folder)])


def weight_files(folder: Path) -> list[str]:
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
