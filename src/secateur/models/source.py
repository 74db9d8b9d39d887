"""Where a model is: a folder, a GGUF file in one, a hub id, or the embedded one."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..data.embedded import EMBEDDED_MODEL, embedded_model_dir
from ..system.errors import InputError
from ..system.registry import did_you_mean

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class ModelSource:
    """Where a model is: the name as given, a folder or hub id, and the GGUF file in that folder if it is one."""

    name: str
    path: str
    gguf_file: str | None = None

    @property
    def is_local(self) -> bool:
        return Path(self.path).is_dir()


def resolve_model(name: str, progress: Callable[[str], None] | None = None) -> ModelSource:
    """Find out what `name` is, without reading weights; makes the embedded model if it is asked for.

    Raises:
        InputError: no such folder or file, a folder without a model, a LoRA adapter, not a valid hub id.
    """
    if name == EMBEDDED_MODEL:
        return ModelSource(name, str(embedded_model_dir(progress)))
    path = Path(name).expanduser()
    if path.is_dir():
        return _resolve_folder(name, path)
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return ModelSource(name, str(path.parent), path.name)
        raise InputError(
            f"model {name!r} is a file that is not .gguf: give the folder with config.json and *.safetensors."
        )
    if _looks_like_path(name):
        raise InputError(f"model {name!r}: no such folder or file. Check the path, or give a hub id (org/name).")
    if "/" not in name and (hint := did_you_mean(name.lower(), [EMBEDDED_MODEL])):
        raise InputError(f"unknown model {name!r}. {hint}")
    if not HUB_ID.fullmatch(name):
        raise InputError(
            f"model {name!r} is no folder, no .gguf file and no valid hub id: "
            f"give one of these (a hub id is org/name), or {EMBEDDED_MODEL}."
        )
    return ModelSource(name, name)


def _resolve_folder(name: str, path: Path) -> ModelSource:
    if (path / "config.json").is_file():
        return ModelSource(name, str(path))
    if (path / "adapter_config.json").is_file():
        raise InputError(
            f"model {name!r} is a LoRA adapter, not a model: "
            f"give the model it was trained on as --model, and this folder as --adapter {name}."
        )
    if ggufs := sorted(p.name for p in path.glob("*.gguf")):
        raise InputError(f"model {name!r} has no config.json but GGUF files: give one, such as {path / ggufs[0]}.")
    raise InputError(f"model {name!r}: the folder has no config.json, so no Hugging Face model is in it.")


def _looks_like_path(name: str) -> bool:
    parent = Path(name).expanduser().parent
    return (
        name.startswith((".", "/", "~"))
        or name.count("/") > 1
        or "\\" in name
        or name.lower().endswith((".gguf", "/"))
        or ("/" in name and parent.is_dir())
    )
