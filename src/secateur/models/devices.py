"""In what precision a model computes, and on which device (`system.machine.devices` knows what is there)."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from ..architecture.quantised import is_quantised, widen_
from ..system.errors import InputError
from ..system.machine.devices import accelerator, check_numbers, device_called, free_bytes, kind_of

PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
P = TypeVar("P", bound=PreTrainedModel)


class Computes(Protocol):
    """The options of a command that computes."""

    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...


def device_of(config: Computes) -> torch.device:
    """The device that the options choose.

    Raises:
        InputError: it is not there, or does not compute in their `--dtype`.
    """
    device = device_called(config.device)
    check_numbers(device, config.dtype)
    return device


def dtype_of(config: Computes) -> torch.dtype:
    """What the options say to compute in."""
    return compute_dtype(config.dtype, device_called(config.device))


def default_device() -> torch.device:
    """This process's own accelerator where there is one, else the CPU."""
    return device_called("auto")


def compute_dtype(name: str, device: torch.device | None = None) -> torch.dtype:
    """The dtype called `name`; "auto" is bfloat16 where the device multiplies in it, else float32.

    Args:
        device: by default the default one.
    """
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    return torch.bfloat16 if kind_of(device or default_device()).fast_bfloat16() else torch.float32


def widened(model: P, dtype: torch.dtype) -> P:
    """The model itself, its weights in float32 where that is what it is to compute in.

    Autocast narrows what it multiplies, but nothing widens it: weights in bfloat16 would be multiplied as such, which
    hardware without bfloat16 emulates, about ten times slower.

    Raises:
        InputError: its weights are packed in a way that computes in half precision only.
    """
    if dtype != torch.float32 or model.dtype == torch.float64:
        return model
    if is_quantised(model):
        widen_(model)
    elif all(tensor.dtype in PLAIN for tensor in model.parameters()):
        nn.Module.float(model)  # transformers' own refuses what was quantised, also where it was dequantised since
    else:
        raise InputError(
            f"--dtype float32: the checkpoint is quantised ({model.config.quantization_config.quant_method}), and its "
            "linears compute in half precision: use --dtype bfloat16."
        )
    return model


def name_of(dtype: torch.dtype) -> str:
    """`bfloat16` rather than `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")


def autocast(device_type: str, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """`torch.autocast` for the half precisions, nothing for float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device_type, dtype=dtype)


@contextmanager
def without_autocast(model: nn.Module | None = None) -> Iterator[None]:
    """Everything inside is computed in the precision of its tensors.

    Neither an autocast around the call narrows it, nor the one that accelerate leaves in a model's `forward` (Trainer's
    `bf16=True`, `accelerator.prepare`), which no autocast from outside undoes. Afterwards all is as it was.
    """
    on = [kind for kind in ("cpu", accelerator()) if kind is not None]
    wrapped = [module for module in (model.modules() if model else ()) if "_original_forward" in vars(module)]
    forwards = [module.forward for module in wrapped]
    with ExitStack() as stack:
        for kind in on:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        for module in wrapped:
            module.forward = cast(Any, module._original_forward)
        try:
            yield
        finally:
            for module, forward in zip(wrapped, forwards, strict=True):
                module.forward = forward


def with_room(device: torch.device, needed_bytes: int) -> torch.device:
    """The device where it has `needed_bytes` free, else the CPU."""
    free = free_bytes(device)
    return torch.device("cpu") if free is not None and free < needed_bytes else device
