"""A device that is not there: PyTorch's PrivateUse1, whose tensors hold their values where only this file looks.

As on a GPU, a tensor is on it because someone put it there, and its values come back by `.cpu()` alone. What a GPU
refuses is noted in `WRONG`: an operation on tensors of it and of the CPU (those without dimensions apart, and indices),
and a generator of the CPU. As on Apple's, there is no float64. For a process of its own, as PyTorch knows no way back.
"""

import traceback
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "gpu"
aten = torch.ops.aten
CROSSING = {aten._to_copy.default, aten.copy_.default}
"""Operations that take tensors from one device to another."""
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
"""Operations whose indices may be on the CPU."""
WRONG: list[str] = []
"""What was mixed, and where."""


class Remote(torch.Tensor):
    """A tensor on the device."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "Remote":
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=torch.device(NAME, 0),
        )  # fmt: skip
        made.held = held
        return made

    def __tensor_flatten__(self):
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner, meta, size, stride):
        return Remote(inner["held"])

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            if func is torch.Tensor.data.__set__ and isinstance(args[0], Remote):
                args[0].held = args[1].held
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


def is_there(device) -> bool:
    return device is not None and torch.device(device).type == NAME


def computed(func, args, kwargs):
    """The operation, on the values; its result is where a real device's would be."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, Remote)]
    if func not in CROSSING:
        check(func, args, kwargs, tensors, ours)
    if func is aten._fused_sdp_choice.default:
        return 0  # by its formula: what processors have is none of a GPU's
    asked = kwargs.get("device")
    there = is_there(asked) if asked is not None else bool(ours)
    if func is aten.copy_.default:
        there = isinstance(args[0], Remote)
    elsewhere = {"device": torch.device("cpu")} if is_there(asked) else {}
    elsewhere |= {"pin_memory": False} if kwargs.get("pin_memory") else {}
    inner, named = tree_map(lambda leaf: leaf.held if isinstance(leaf, Remote) else leaf, (args, kwargs | elsewhere))
    out = func(*inner, **named)
    if not there:
        return out
    out = tree_map(lambda leaf: Remote(leaf) if isinstance(leaf, torch.Tensor) else leaf, out)
    for leaf in tree_leaves(out):
        if isinstance(leaf, Remote) and leaf.dtype == torch.float64:
            wrong(func, "makes float64, which the device has not")
    returned = func._schema.returns
    if len(returned) == 1 and returned[0].alias_info is not None and returned[0].alias_info.is_write:
        return kwargs.get("out", args[0])  # in place: the tensor that was given
    return out


def check(func, args, kwargs, tensors, ours) -> None:
    """As a real device, which would refuse them: operations on tensors of two devices, a generator of another one."""
    on_cpu = [tensor for tensor in tensors if not isinstance(tensor, Remote) and tensor.dim()]
    if func in INDEXED and isinstance(args[0], Remote):
        indices = {id(leaf) for leaf in tree_leaves(args[1])}
        on_cpu = [tensor for tensor in on_cpu if id(tensor) not in indices]
    if ours and on_cpu:
        wrong(func, f"has a tensor {tuple(on_cpu[0].shape)} of the CPU beside {tuple(ours[0].shape)} of {NAME}")
    generators = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Generator)]
    if generators and (ours or is_there(kwargs.get("device"))):
        wrong(func, f"draws on {NAME} by a generator of the CPU")


def wrong(func, what: str) -> None:
    """Note it, and go on: what else is wrong is to be seen, too."""
    place = [line for line in traceback.format_stack() if "/secateur/" in line]
    WRONG.append(f"{func} {what}\n{''.join(place[-3:])}")


class Backend(_DummyBackendModule):
    """What torch and secateur ask of `torch.gpu`; it draws by the CPU's generator, as what it computes does."""

    def get_rng_state(self, device=None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state, device=None) -> None:
        torch.set_rng_state(state)


class Anywhere(TorchDispatchMode):
    """Sees the operations that have no tensor of the device yet: what makes one there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with self:  # in inference mode operations come whole that autograd takes apart
            parts = func.decompose(*args, **kwargs or {})
        return computed(func, args, kwargs or {}) if parts is NotImplemented else parts


class FromData(TorchFunctionMode):
    """What makes a tensor of numbers, or numbers of a tensor, goes past `Anywhere`: it is done by way of the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.tolist and isinstance(args[0], Remote):
            return args[0].cpu().tolist()
        if func is torch.Tensor.new_tensor and isinstance(args[0], Remote):
            kwargs.setdefault("device", args[0].device)
            kwargs.setdefault("dtype", args[0].dtype)
            func, args = torch.tensor, args[1:]
        if func in (torch.tensor, torch.as_tensor) and is_there(kwargs.get("device")):
            return func(*args, **kwargs | {"device": "cpu"}).to(kwargs["device"])
        return func(*args, **kwargs)


LIBRARIES: list[torch.library.Library] = []


def beneath() -> None:
    """What PyTorch's own C++ asks of a device, past Python's modes: room, and to be copied to."""
    library = torch.library.Library("aten", "IMPL")
    LIBRARIES.append(library)  # else it goes with the function

    def empty(size, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
        return Remote(torch.empty(size, dtype=dtype, device="cpu", memory_format=memory_format))

    def empty_strided(size, stride, *, dtype=None, layout=None, device=None, pin_memory=None):
        return Remote(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))

    def copy(source, target, non_blocking=False):
        held, to = (each.held if isinstance(each, Remote) else each for each in (source, target))
        to.copy_(held)
        return target

    for name, kernel in (("empty.memory_format", empty), ("empty_strided", empty_strided), ("_copy_from", copy)):
        library.impl(name, kernel, "PrivateUse1")


@contextmanager
def installed():
    """A machine with such a device, and none of another kind."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
    beneath()
    torch.accelerator.synchronize = lambda device=None: None  # nothing is under way
    from secateur.system.machine import devices

    devices.KINDS[NAME] = devices.KINDS["mps"]
    with Anywhere(), FromData():
        yield
