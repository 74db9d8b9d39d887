"""A pruner's state on disk: tensors as safetensors, the rest as JSON, never pickle."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..system.errors import InputError, SecateurError
from ..system.records import write_json

NAME = "pruner"


def save_state(state: dict[str, Any], folder: Path, name: str = NAME) -> None:
    """Write `name`.safetensors (every part of `state` that maps names to tensors) and `name`.json (the rest)."""
    parts = [part for part, value in state.items() if _is_tensors(value)]
    tensors = {f"{part}/{key}": tensor.contiguous() for part in parts for key, tensor in state[part].items()}
    save_file(tensors, folder / f"{name}.safetensors")
    rest = {key: value for key, value in state.items() if key not in parts}
    write_json(folder / f"{name}.json", rest | {"tensors": parts, "order": list(tensors)})


def load_state(folder: Path, name: str = NAME) -> dict[str, Any]:
    """What `save_state` wrote, in its order: a file of tensors has another, and sums would end in another bit."""
    state: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    state |= {part: {} for part in state.pop("tensors")}
    tensors = load_file(folder / f"{name}.safetensors")
    for key in state.pop("order", tensors):
        part, _, own = key.partition("/")
        state[part][own] = tensors[key]
    return state


@contextmanager
def restoring(folder: Path) -> Iterator[None]:
    """Whatever goes wrong in here goes wrong because the saved state is not one that we wrote for this model.

    Raises:
        InputError: in place of any other error.
    """
    try:
        yield
    except SecateurError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError, RuntimeError,
            OverflowError, SafetensorError) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"{folder}: the pruner's saved state is damaged or another model's ({reason}): delete this checkpoint to "
            "go on from the one before, or start anew with --overwrite."
        ) from error


def _is_tensors(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, Tensor) for item in value.values())
