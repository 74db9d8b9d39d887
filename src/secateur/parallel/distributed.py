"""Several processes as one, launched by `torchrun` or `accelerate launch`; in one process nothing happens.

Every process holds the model and trains on its part of a batch. Gradients of the LoRA factors are averaged when the
last micro-batch of a step is done, before clipping and scoring, so every process computes the same scores, cuts the
same units and shrinks the same shapes. (DistributedDataParallel does not follow a parameter that is replaced: see
`replicas`.)
"""

import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.tensor import DTensor

from ..architecture.experts import expert_lists
from ..config.run import RunConfig
from ..system.errors import SecateurError
from ..system.launcher import launched, own_device
from ..system.machine.devices import check_number, current, kind_of, show_one, take_own
from ..system.progress import phase

TIMEOUT_S = RunConfig.process_timeout
"""How long a process waits for the others, where the user does not say (`--process-timeout`)."""
WAITING = "waiting for the other processes"


def join(device: torch.device, timeout_s: float = TIMEOUT_S) -> None:
    """Meet the other processes that the launcher started, where nothing else (a Trainer) has done it.

    Args:
        device: of this process.
    """
    if launched() == 1 or dist.is_initialized():
        return
    take_own(device)
    if (backend := kind_of(device).together) == "nccl":
        # Without it a lost process ends the others from a thread of NCCL's own, and no error can be caught and named.
        os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
    with phase(WAITING):
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))


@dataclass(frozen=True)
class Share:
    """One process's part in work that is dealt out: every `of`-th piece, from `number` on."""

    number: int = 0
    of: int = 1
    store: dist.Store | None = None

    def meet(self, place: str) -> None:
        """Wait until all have come to `place`."""
        if self.store is not None:
            self.store.set(f"{place}/{self.number}", "here")
            with phase(WAITING) if self.number == 0 else nullcontext():
                self.store.wait([f"{place}/{number}" for number in range(self.of)], timedelta(seconds=TIMEOUT_S))


def part_ways(devices: Iterable[str] = ()) -> Share:
    """This process's share; from here on it works as if it had been started alone, on its own device.

    Args:
        devices: what `--device` says for the work.
    Raises:
        InputError: a device by its number, beside several processes.
    """
    for name in devices:
        check_number(name)
    if launched() == 1:
        return Share()
    store, number, of = next(dist.rendezvous("env://"))
    found = Share(number, of, store)
    # Nothing has asked for a device yet: from here on, there is this process's device only.
    show_one(own_device())
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    return found


def joined() -> bool:
    """Whether this process has met others, or might have: a group of one is one, too."""
    return dist.is_available() and dist.is_initialized()


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if joined() else 1


def average_gradients_(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Every gradient becomes its mean over the processes, in one all-reduce."""
    if processes() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    average_(gradients)


def average_(tensors: list[Tensor]) -> None:
    """Every tensor becomes its mean over the processes, in one all-reduce; shapes and order must agree."""
    if processes() == 1 or not tensors:
        return
    device = wire()  # layers may lie on several devices, scores on the CPU
    flat = torch.cat([tensor.flatten().to(device) for tensor in tensors])
    dist.all_reduce(flat)
    flat /= processes()
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def share_counts(model: torch.nn.Module) -> None:
    """Each process counts its own batches; now all hold the mean over all of them. Every process must call it."""
    average_([experts.chosen for experts in expert_lists(model).values()])


def wire() -> torch.device:
    """Where a tensor must be to be sent."""
    return torch.device("cpu") if dist.get_backend() == "gloo" else current()


def check_agreement(keep: Mapping[str, Tensor], step: int, weights: Mapping[str, Tensor] | None = None) -> None:
    """At a cut: all processes decided the same, and hold the same weights to the last bit.

    Args:
        weights: name -> what every process should have alike (see `whole_weights`). Scores are averaged before units
            are chosen, so models that differ would choose alike for ever.
    Raises:
        DisagreementError: they did not; names the ranks that differ from rank 0.
    """
    if processes() == 1:
        return
    units = hashlib.sha256()
    for name, mask in sorted(keep.items()):
        units.update(name.encode() + str(mask.tolist()).encode())
    mine = torch.tensor(list(units.digest() + _digest(weights or {})), dtype=torch.uint8, device=wire())
    everyone = [torch.empty_like(mine) for _ in range(processes())]
    dist.all_gather(everyone, mine)
    said = {number: bytes(found.tolist()) for number, found in enumerate(everyone)}
    for part, words in (
        (slice(0, 32), "cut other units than process 0, so the models differ"),
        (slice(32, 64), OTHERS),
    ):
        _compare({number: digest[part] for number, digest in said.items()}, f"step {step}", words)


OTHERS = "holds other weights than process 0 (LoRA's, or those that compensation rewrote)"


def _compare(said: Mapping[int, bytes], when: str, words: str) -> None:
    """Raise a `DisagreementError` where processes said something else than the first of them."""
    first = said[min(said)]
    if others := [number for number, digest in said.items() if digest != first]:
        raise DisagreementError(
            f"{when}: process {', '.join(map(str, others))} {words}. All processes need the same --seed, data, "
            "versions and kind of device, and in a loop of your own the mean of their gradients at each step (the "
            "forward pass through DistributedDataParallel, or secateur.parallel.average_gradients_ after backward); "
            "start again from a checkpoint."
        )


def check_weights(model: torch.nn.Module, step: int) -> None:
    """All processes hold the same trained weights; every one must call it.

    Raises:
        DisagreementError: they do not; names the ranks that differ from rank 0.
    """
    if processes() > 1:
        check_agreement({}, step, trained_weights(model))


_exports = itertools.count(1)


def announce(model: torch.nn.Module) -> Callable[[], None]:
    """Tell the other processes this one's trained weights; what is returned compares them with those told by then.

    For an export, to which often process 0 comes alone: nobody is waited for.
    """
    if processes() == 1:
        return lambda: None
    number, store = next(_exports), dist.distributed_c10d._get_default_store()
    keys = {process: f"secateur/export/{number}/{process}" for process in range(processes())}
    store.set(keys[dist.get_rank()], _digest(trained_weights(model)).hex())

    def compare() -> None:
        said = {process: store.get(key) for process, key in keys.items() if store.check([key])}
        _compare(said, "before the export", OTHERS)

    return compare


def _digest(weights: Mapping[str, Tensor]) -> bytes:
    """(32,) of names, shapes and bits."""
    held, named = hashlib.sha256(), sorted(weights.items())
    for (name, weight), sums in zip(named, _checksums([weight for _, weight in named]), strict=True):
        held.update(f"{name} {tuple(weight.shape)} {sums}".encode())
    return held.digest()


def whole_weights(parameters: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Those of named weights that every process holds whole: a sharded one has other rows in each."""
    return {name: weight.detach() for name, weight in parameters if not isinstance(weight, DTensor)}


def trained_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """What is trained: the same in every process, as gradients are averaged."""
    return whole_weights((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)


def _checksums(weights: list[Tensor]) -> list[list[int]]:
    """Two numbers of each tensor's bits, made where it lies and read at once: what rows, and columns, add up to."""
    found = []
    for weight in weights:
        whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
        bits = weight.contiguous().view(whole).reshape(-1, weight.shape[-1])
        sums = (bits.sum(dim, dtype=torch.int64) for dim in (0, 1))  # they wrap around, which is as good
        found.append(torch.stack([(side * torch.arange(1, len(side) + 1).to(side)).sum() for side in sums]))
    if not found:
        return []
    together: list[list[int]] = torch.stack([sums.to(found[0].device) for sums in found]).tolist()
    return together


def sum_(tensor: Tensor) -> None:
    """Add up a tensor over the processes, in place."""
    if processes() > 1:
        dist.all_reduce(tensor)


def summed(numbers: list[float]) -> list[float]:
    """Each number, added up over the processes: all hold the same, and choose alike."""
    if processes() == 1:
        return numbers
    found = torch.tensor(numbers, dtype=torch.float64, device=wire())
    sum_(found)
    everyone: list[float] = found.tolist()
    return everyone


def largest(number: int) -> int:
    """The largest of the processes' numbers: what one of them was told, all know."""
    if processes() == 1:
        return number
    found = torch.tensor(number, device=wire())
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def total(number: int) -> int:
    """The sum of the processes' numbers."""
    if processes() == 1:
        return number
    found = torch.tensor(number, device=wire())
    dist.all_reduce(found)
    return int(found)


def barrier() -> None:
    """Wait until every process is here."""
    if processes() > 1:
        dist.barrier()


def leave() -> None:
    """Close the connections to the other processes: one that ends with them open may abort."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


class DisagreementError(SecateurError):
    """Processes of one run hold different models."""
