"""The devices that a model can compute on: which are there, and what each is called, has and lacks.

The only module that asks torch for an accelerator by its name; of several kinds a process has one, which is
`torch.accelerator`'s. All others are told a `torch.device`, or ask the tensor that they have.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..launcher import launched, own_device


@dataclass(frozen=True)
class Kind:
    """What is known of a kind of device before anything runs on it."""

    float64: Callable[[], bool] = lambda: True
    trains_in_float16: bool = True
    pins_memory: bool = True
    """Whether batches in pinned memory get there sooner."""
    bitsandbytes: bool = True
    """Whether `--load-in` was made for it."""
    together: str | None = None
    """Backend by which several processes talk; None: they cannot."""
    bfloat16: Callable[[], bool] = lambda: True
    """Whether this one computes in it at all."""
    fast_bfloat16: Callable[[], bool] = lambda: False
    """Whether it gains by it: what `--dtype auto` takes."""


KINDS = {
    "cpu": Kind(
        trains_in_float16=False,
        pins_memory=False,
        together="gloo",
        fast_bfloat16=lambda: any(
            torch.cpu.get_capabilities().get(flag) for flag in ("amx_bf16", "avx512_bf16", "bf16")
        ),
    ),
    "cuda": Kind(
        together="nccl",
        # emulated bfloat16 (before Ampere) is slower than float32
        fast_bfloat16=lambda: torch.cuda.is_bf16_supported(including_emulation=False),
    ),
    "xpu": Kind(
        float64=lambda: bool(torch.xpu.get_device_properties().has_fp64),  # Intel's Arc A has none
        together="xccl",
        fast_bfloat16=lambda: torch.xpu.is_bf16_supported(including_emulation=False),
    ),
    "mps": Kind(
        float64=lambda: False,
        trains_in_float16=False,
        pins_memory=False,
        bitsandbytes=False,
        bfloat16=lambda: torch.backends.mps.is_macos_or_newer(14, 0),
    ),
}
"""Type of a `torch.device` -> what it has. `cuda` is ROCm's name too."""


def kind_of(device: torch.device) -> Kind:
    """What a device has; one of a kind that is not listed (of another vendor's plug-in) is taken to have the least."""
    return KINDS.get(device.type, KINDS["mps"])


def accelerator() -> str | None:
    """The type of this machine's accelerator that PyTorch can use, if there is one."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return None if found is None else found.type


def count() -> int:
    """How many accelerators there are."""
    return torch.accelerator.device_count()


def check_number(name: str) -> None:
    """Refuse a device by its number where several processes were started.

    Raises:
        InputError: names the remedy.
    """
    kind, _, index = name.partition(":")
    if launched() > 1 and index:
        raise InputError(
            f"--device {name}: each of the {launched()} processes takes the device of its own number: use --device "
            f"{kind}."
        )


def device_called(name: str) -> torch.device:
    """The device that `--device` names: `auto` is this process's own accelerator where there is one, else the CPU.

    Of the processes that a launcher started, each has the device of its number.

    Raises:
        InputError: no such device here; an index beside several processes, or on a kind of which there is one.
    """
    check_number(name)
    kind, _, index = name.partition(":")
    there = accelerator()
    talks = launched() == 1 or there is None or kind_of(torch.device(there)).together is not None
    if kind == "auto":
        kind = there if there and talks else "cpu"
    if kind == "cpu":
        return torch.device("cpu")
    if kind != there:
        raise InputError(f"--device {name}: {_why_absent(kind)}. Here there is {_found(there)}: use --device auto.")
    if not talks:
        raise InputError(f"--device {kind}: several processes cannot train on it together: use --device cpu, or one.")
    number = int(index) if index else own_device()
    if number >= count():
        if not index:
            raise InputError(
                f"process {number} of this machine has no device of its own, as there is {_found(there)}: start one "
                "process for each device, or use --device cpu."
            )
        raise InputError(f"--device {name}: here there is {_found(there)}: choose one of these.")
    return torch.device(kind, number)


def _found(there: str | None) -> str:
    """What is there, in words."""
    if there is None:
        return "no accelerator (cpu)"
    names = f"{there}:0" if count() == 1 else f"{there}:0 to {there}:{count() - 1}"
    return f"{names} ({name_of_device(torch.device(there, 0))})"


def _why_absent(kind: str) -> str:
    """Why torch finds none of a kind of device."""
    built = {
        "cuda": torch.version.cuda or torch.version.hip,
        "xpu": torch.version.xpu,
        "mps": torch.backends.mps.is_built(),
    }
    if not built.get(kind):
        return f"this PyTorch ({torch.__version__}) is built without it (https://pytorch.org/get-started has others)"
    return "PyTorch finds no such device (is its driver there, and is it visible to this process?)"


def check_numbers(device: torch.device, dtype: str, *, trains: bool = False) -> None:
    """Refuse a `--dtype` that the device does not compute in.

    Raises:
        InputError: names the remedy.
    """
    kind = kind_of(device)
    if dtype == "float16" and trains and not kind.trains_in_float16:
        raise InputError("--dtype float16 trains on a GPU only (cuda, xpu): use bfloat16 or float32 here.")
    if dtype == "bfloat16" and not kind.bfloat16():
        raise InputError(f"--dtype bfloat16: {device.type} has it from macOS 14 on: use --dtype float32.")


def check_quantises(device: torch.device, load_in: str | None) -> None:
    """Refuse `--load-in` on a device for which bitsandbytes is not made.

    Raises:
        InputError: names the remedy.
    """
    if load_in is not None and not kind_of(device).bitsandbytes:
        raise InputError(f"--load-in {load_in}: bitsandbytes has no products for {device.type}: use --device cpu.")


def name_of_device(device: torch.device) -> str:
    """What its maker calls it."""
    if device.type in ("cuda", "xpu"):
        return str(_module(device).get_device_name(device))
    return str(torch.backends.mps.get_name()) if device.type == "mps" else device.type


def accelerator_names() -> list[str]:
    """Of all accelerators of this machine."""
    there = accelerator()
    return [name_of_device(torch.device(there, n)) for n in range(count())] if there else []


def total_bytes(device: torch.device) -> int | None:
    """Memory of an accelerator, what of the machine's it may take where it has none of its own; None of a CPU."""
    if device.type == "cpu":
        return None
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory())
    return int(torch.accelerator.get_memory_info(device)[1])


def free_bytes(device: torch.device) -> int | None:
    """What of it is free now; None of a CPU."""
    if device.type == "cpu":
        return None
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return int(torch.accelerator.get_memory_info(device)[0])


def peak_allocated(device: torch.device) -> int | None:
    """The most bytes that tensors took in this process; None where nobody counts them (CPUs), now on mps."""
    if device.type == "cpu":
        return None
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())
    return int(torch.accelerator.max_memory_allocated(device))


def forget_peak(device: torch.device) -> None:
    """What `peak_allocated` says is from here on, where that is counted."""
    if device.type not in ("cpu", "mps"):
        torch.accelerator.reset_peak_memory_stats(device)


def wait_for(device: torch.device) -> None:
    """Until an accelerator has done what it was given."""
    if device.type == "mps":
        torch.mps.synchronize()
    elif device.type != "cpu":
        torch.accelerator.synchronize(device)


def clock_of(device: torch.device) -> Callable[[], float]:
    """Seconds of work on a device: on one thread of a CPU those of the thread, which other programs do not lengthen."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.thread_time if alone else time.perf_counter


def free_cache() -> None:
    """Give back the memory that the accelerator's allocator keeps for later tensors; nothing without one."""
    if (there := accelerator()) is not None:
        _module(torch.device(there)).empty_cache()


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Whatever is drawn inside, the random states of the CPU and of the device are as they were afterwards."""
    before = torch.get_rng_state()
    there = None if device.type in ("cpu", "meta") else _module(device).get_rng_state(device)
    try:
        yield
    finally:
        torch.set_rng_state(before)
        if there is not None:
            _module(device).set_rng_state(there, device)


def precise(device: torch.device) -> torch.device:
    """Where what a device has is computed in float64: there, or on the CPU."""
    return device if kind_of(device).float64() else torch.device("cpu")


def doubled(tensor: Tensor) -> Tensor:
    """The tensor in float64: where it is, or on the CPU where its device has none."""
    return tensor.to(precise(tensor.device)).double()


def multiplies_into_float32(tensor: Tensor) -> bool:
    """Whether `torch.mm(..., out_dtype=torch.float32)` takes a tensor in bfloat16: CUDA's kernels alone do."""
    return tensor.device.type == "cuda"


def take_own(device: torch.device) -> None:
    """Make a device the one that is meant where none is named, by other libraries too."""
    if device.type != "cpu" and device.index is not None and count() > 1:
        torch.accelerator.set_device_index(device)


def current() -> torch.device:
    """The accelerator that is meant where none is named, or the CPU."""
    there = accelerator()
    return torch.device(there, torch.accelerator.current_device_index()) if there else torch.device("cpu")


def show_one(number: int) -> None:
    """Let this process see one of the machine's devices only; before anything has asked for one."""
    for name in ("CUDA_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"):
        visible = [each for each in os.environ.get(name, "").split(",") if each]
        if not visible:
            os.environ[name] = str(number)
        elif number < len(visible):
            os.environ[name] = visible[number]


def _module(device: torch.device) -> Any:
    """torch's own for a kind of accelerator, such as `torch.cuda`."""
    return torch.get_device_module(device)
