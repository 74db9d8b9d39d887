"""A pruner's state on disk: tensors as safetensors, the rest as JSON, never pickle."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from .records import write_json

NAME = "pruner"


def save_state(state: dict[str, Any], folder: Path) -> None:
    """Write pruner.safetensors (every part of `state` that maps names to tensors) and pruner.json (the rest)."""
    parts = [part for part, value in state.items() if _is_tensors(value)]
    tensors = {f"{part}/{name}": tensor.contiguous() for part in parts for name, tensor in state[part].items()}
    save_file(tensors, folder / f"{NAME}.safetensors")
    rest = {key: value for key, value in state.items() if key not in parts}
    write_json(folder / f"{NAME}.json", rest | {"tensors": parts})


def load_state(folder: Path) -> dict[str, Any]:
    """What `save_state` wrote."""
    state: dict[str, Any] = json.loads((folder / f"{NAME}.json").read_text(encoding="utf-8"))
    state |= {part: {} for part in state.pop("tensors")}
    for key, tensor in load_file(folder / f"{NAME}.safetensors").items():
        part, _, name = key.partition("/")
        state[part][name] = tensor
    return state


def _is_tensors(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, Tensor) for item in value.values())
