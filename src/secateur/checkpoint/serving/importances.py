"""llama.cpp's importance matrix: what each column of a weight is worth, the mean square of what it is multiplied by.

llama.cpp's own tool collects the same while it runs (tools/imatrix of its source); here the model of transformers does.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
from torch import Tensor

from ...architecture.gguf import head_of
from ...system.errors import InputError


def save_importances(squares: Mapping[str, Tensor], file: Path, target: Path) -> str:
    """Write them under the names of a GGUF file's tensors, as a numpy archive; a note of how many there are.

    Args:
        squares: linear's name in transformers -> (columns,).
        file: as converted, whose tensors are in the order of columns that transformers has.
    Raises:
        InputError: none of them has a tensor in the file.
    """
    head = head_of(file)
    kinds = {name: kind for kind, name in MODEL_ARCH_NAMES.items()}
    layers = 1 + max((int(name.split(".")[1]) for name in head.places if name.startswith("blk.")), default=0)
    names = get_tensor_name_map(kinds[head.architecture], layers)
    found: dict[str, Any] = {}
    for name, values in squares.items():
        tensor = f"{names.get_name(name)}.weight"
        if tensor in head.places and head.places[tensor][1][-1] == len(values):
            found[tensor] = values.float().numpy()
    if not found:
        raise InputError(
            f"--imatrix: llama.cpp's file of a {head.architecture} has its weights in other tensors than transformers: "
            "leave --imatrix out."
        )
    np.savez(target, **found)
    weights = [name for name, (_, shape) in head.places.items() if len(shape) > 1 and name.startswith("blk.")]
    return f"importance matrix: of {len(found.keys() & set(weights))} of the {len(weights)} weights in its layers"
