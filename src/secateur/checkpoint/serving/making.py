"""A file for llama.cpp in the making: its place, what the converter is given, what is said where it refuses."""

import json
import os
import shutil
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from ...architecture.layered import layered_family
from ...architecture.stock import head_dim_of
from ...models.source import ModelSource
from ...models.tokenizers import settings_of
from ...system.errors import InputError, SecateurError, disk_is_full
from ...system.finished import lands
from ...system.output import link_or_copy, passing_folder, room_words
from ...system.progress import megabytes
from .llama_cpp import CONVERT, EngineError, run_engine

LAYERED_CLASS = "SecateurLayersForCausalLM"
"""What the converter is told that a model with layers that differ is."""
OURS = ("auto_map", "_name_or_path", "_model_name_or_path", "per_layer_config")
"""Keys of config.json that are not the converter's business: code, and names that would go into the file."""
FILES_OWN = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Classes that are what tokenizer.json says, and nothing more."""


@contextmanager
def beside(output: Path, needed_bytes: int) -> Iterator[Path]:
    """A folder beside the output for what is made, which goes afterwards.

    Raises:
        InputError: there is no room.
    """
    parent = output.absolute().parent
    free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        raise InputError(
            f"--output {output}: the file needs about {megabytes(needed_bytes)} while it is made and {parent} has "
            f"{megabytes(free)} free: make room, or choose another place."
        )
    try:
        with passing_folder(f".{output.name}.secateur-", parent) as work:
            yield work
    except SecateurError:
        raise
    except Exception as error:
        if not disk_is_full(error):
            raise
        raise InputError(
            f"--output {output} could not be written: no space left on device ({room_words(parent, needed_bytes)}). "
            "What was there before is untouched."
        ) from error


def staged(
    source: ModelSource, model_config: PreTrainedConfig, work: Path, sizes: list[tuple[int, int, int]] | None
) -> Path:
    """The checkpoint's files under their names, with a config.json that says what the converter must know of it."""
    folder = work / "model"
    folder.mkdir()
    for path in Path(source.path).absolute().iterdir():
        if path.is_file() and path.suffix != ".py" and not path.name.startswith(("config.json", "adapter_")):
            link_or_copy(path, folder / path.name)
    values = json.loads((Path(source.path) / "config.json").read_text(encoding="utf-8"))
    if settings_of(source.path).get("tokenizer_class") in FILES_OWN:
        # of some model types transformers would build a tokenizer of the type's own class from the file's vocabulary
        values.pop("rope_scaling", None)  # the older form of rope_parameters, for which it has no class to ask
        values |= json.loads(model_config.to_json_string(use_diff=False)) | {"model_type": "secateur"}
    values = {key: value for key, value in values.items() if key not in OURS and not key.startswith("secateur_")}
    if sizes:
        values["architectures"] = [LAYERED_CLASS]
        values["head_dim"] = head_dim_of(model_config, layered_family(model_config))
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


def run_or_refuse(engine: str, script: str, task: dict[str, Any], work: Path, model: str) -> Any:
    """`run_engine`, whose refusals are a user's business."""
    try:
        return run_engine(engine, script, task, work)
    except EngineError as error:
        words = str(error).rstrip(".")
        if script is CONVERT:
            raise InputError(
                f"model {model!r}: llama.cpp's converter does not take it ({words}). Its wheel may be older than the "
                "model's family, or llama.cpp does not have the family or its tokenizer: serve it with transformers."
            ) from None
        raise InputError(
            f"model {model!r}: llama.cpp does not take the file ({words}): try another --outtype, or serve it with "
            "transformers or vLLM."
        ) from None


def read_logits(file: Path, vocabulary: int) -> Tensor:
    """(1, tokens, vocabulary) logits that llama.cpp wrote; the file goes."""
    values = array("f")
    with file.open("rb") as opened:
        values.frombytes(opened.read())
    file.unlink()
    return torch.tensor(values).view(1, -1, vocabulary)


def put(made: Path, output: Path) -> None:
    """A whole file in its place, with the rights that the umask leaves."""
    made.chmod(0o666 & ~_umask())
    lands(made, output)
    os.replace(made, output)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
