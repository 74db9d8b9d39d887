"""Several processes as one, launched by `torchrun` or `accelerate launch`; in one process nothing happens.

Every process holds the model and trains on its part of a batch. Gradients of the LoRA factors are averaged when the
last micro-batch of a step is done, before clipping and scoring, so every process computes the same scores, cuts the
same units and shrinks the same shapes. (DistributedDataParallel does not follow a parameter that is replaced.)
"""

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor
from torch import distributed as dist

from .errors import SecateurError
from .launcher import launched

TIMEOUT_S = 1800
"""How long a process waits for the others, where the user does not say (`--process-timeout`)."""


def join(timeout_s: float = TIMEOUT_S) -> None:
    """Meet the other processes that the launcher started, where nothing else (a Trainer) has done it."""
    if launched() == 1 or dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(seconds=timeout_s))


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
            self.store.wait([f"{place}/{number}" for number in range(self.of)], timedelta(seconds=TIMEOUT_S))


def part_ways() -> Share:
    """This process's share; from here on it works as if it had been started alone, on its own device."""
    if launched() == 1:
        return Share()
    store, number, of = next(dist.rendezvous("env://"))
    found = Share(number, of, store)
    local = os.environ.get("LOCAL_RANK")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    if local is not None and torch.cuda.is_available():
        torch.cuda.set_device(int(local))
    return found


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


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


def wire() -> torch.device:
    """Where a tensor must be to be sent."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def check_agreement(keep: Mapping[str, Tensor], step: int) -> None:
    """After a cut: all processes decided the same.

    Raises:
        DisagreementError: they did not; names the ranks that differ from rank 0.
    """
    if processes() == 1:
        return
    digest = hashlib.sha256()
    for name, mask in sorted(keep.items()):
        digest.update(name.encode() + bytes(mask.to(torch.uint8).cpu().tolist()))
    mine = torch.tensor(list(digest.digest()), dtype=torch.uint8, device=wire())
    everyone = [torch.empty_like(mine) for _ in range(processes())]
    dist.all_gather(everyone, mine)
    others = [number for number, digest_of in enumerate(everyone) if not torch.equal(digest_of, everyone[0])]
    if others:
        raise DisagreementError(
            f"step {step}: process {', '.join(map(str, others))} cut other units than process 0, so the models differ. "
            "All processes need the same --seed, data, versions and kind of device; start again from a checkpoint."
        )


def sum_(tensor: Tensor) -> None:
    """Add up a tensor over the processes, in place."""
    if processes() > 1:
        dist.all_reduce(tensor)


def largest(number: int) -> int:
    """The largest of the processes' numbers: what one of them was told, all know."""
    if processes() == 1:
        return number
    found = torch.tensor(number, device=wire())
    dist.all_reduce(found, dist.ReduceOp.MAX)
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
