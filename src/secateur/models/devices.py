"""In what precision and on which device a model computes."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, TypeVar, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from ..architecture.quantised import is_quantised, widen_
from ..system.errors import InputError

PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
P = TypeVar("P", bound=PreTrainedModel)


def compute_dtype(name: str) -> torch.dtype:
    """The dtype called `name`; "auto" is bfloat16 where the hardware multiplies in it, else float32."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    if torch.cuda.is_available():
        # emulated bfloat16 (before Ampere) is slower than float32
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = any(torch.cpu.get_capabilities().get(flag) for flag in ("amx_bf16", "avx512_bf16", "bf16"))
    return torch.bfloat16 if fast else torch.float32


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
    on = [kind for kind in ("cpu", torch.accelerator.current_accelerator(check_available=True)) if kind is not None]
    wrapped = [module for module in (model.modules() if model else ()) if "_original_forward" in vars(module)]
    forwards = [module.forward for module in wrapped]
    with ExitStack() as stack:
        for kind in map(str, on):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        for module in wrapped:
            module.forward = cast(Any, module._original_forward)
        try:
            yield
        finally:
            for module, forward in zip(wrapped, forwards, strict=True):
                module.forward = forward


def default_device() -> torch.device:
    """The CUDA device if there is one, this process's own among several, else the CPU."""
    return training_device()


def training_device() -> torch.device:
    """The CUDA device of this process among those that a launcher started, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def device_for(needed_bytes: int) -> torch.device:
    """The default device where it has `needed_bytes` free, else the CPU."""
    device = default_device()
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < needed_bytes:
        return torch.device("cpu")
    return device
