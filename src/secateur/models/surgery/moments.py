"""What optimisers keep of a parameter (moments, steps), cut as the parameter is."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...system.errors import InputError

BLOCK = 256
"""Entries that share a scale in bitsandbytes' 8-bit optimisers."""


def cut_state(state: Mapping[str, Any], shape: torch.Size, dim: int, index: Tensor) -> dict[str, Any]:
    """The state of a parameter of which `index` stays along `dim`.

    Args:
        shape: of the parameter before.
    Raises:
        InputError: it does not follow the parameter's shape.
    """
    small = dict(state)
    for key, value in state.items():
        if (number := key.removeprefix("absmax")) != key and f"qmap{number}" in state:
            small |= _cut_codes(state, number, dim, index)
        elif f"absmax{key.removeprefix('state')}" not in state and not key.startswith("qmap"):
            small[key] = _cut(key, value, shape, dim, index)
    return small


def _cut(key: str, value: Any, shape: torch.Size, dim: int, index: Tensor) -> Any:
    if not isinstance(value, Tensor) or (value.numel() == 1 and shape.numel() > 1) or key == "gnorm_vec":
        return value  # a count of steps, a norm
    index = index.to(value.device)
    if value.shape == shape:
        return value.index_select(dim, index)
    if value.dim() == len(shape) and all(own in (1, whole) for own, whole in zip(value.shape, shape, strict=True)):
        return value if value.shape[dim] == 1 else value.index_select(dim, index)  # Adafactor's, of rows or columns
    if value.dim() == 1 and len(shape) == 2:
        side = {"row": 0, "col": 1}.get(key.rpartition("_")[2])  # the same in transformers, without the other side
        if side is not None and len(value) == shape[side]:
            return value.index_select(0, index) if side == dim else value
    if value.dim() == 1 and len(value) == shape.numel():
        return value.view(shape).index_select(dim, index).flatten()
    raise InputError(
        f"the optimiser's {key} {tuple(value.shape)} does not follow its parameter's shape {tuple(shape)}, which a cut "
        "changes: train with AdamW, Adafactor, SGD or another that keeps moments entry by entry."
    )


def _cut_codes(state: Mapping[str, Any], number: str, dim: int, index: Tensor) -> dict[str, Tensor]:
    """A moment in 8 bits: scales are of blocks that a cut goes through, so it is written anew."""
    from bitsandbytes.functional import dequantize_blockwise, quantize_blockwise

    codes, scales, book = (state[f"{name}{number}"] for name in ("state", "absmax", "qmap"))
    whole = dequantize_blockwise(codes.contiguous(), absmax=scales, code=book, blocksize=BLOCK)
    small = whole.index_select(dim, index.to(whole.device)).contiguous()
    codes, made = quantize_blockwise(small, code=book, blocksize=BLOCK)
    return {f"state{number}": codes.view(small.shape), f"absmax{number}": made.absmax}


def check_states(optimizer: torch.optim.Optimizer) -> None:
    """Whether what the optimiser keeps by now can be cut, tried on one entry of each parameter's.

    Raises:
        InputError: it cannot.
    """
    for parameter, state in optimizer.state.items():
        if not isinstance(parameter, nn.Parameter) or parameter.dim() != 2 or not parameter.numel():
            continue  # of an empty one, as of shared experts that are none, nothing is cut
        try:
            for dim in (0, 1):
                cut_state(state, parameter.shape, dim, torch.zeros(1, dtype=torch.long))
        except (InputError, RuntimeError, NotImplementedError, TypeError) as error:
            why = str(error) if isinstance(error, InputError) else "its state cannot be sliced: train with AdamW."
            raise InputError(f"{type(optimizer).__name__}: {why}") from error
