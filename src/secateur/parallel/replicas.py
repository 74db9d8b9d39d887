"""Wrappers that hold a model for several devices: DistributedDataParallel is made to follow cuts, others are refused.

DistributedDataParallel averages the gradients of the parameters that it found when it was made. A cut replaces
parameters, so from then on it would average nothing, and the processes would train apart without a word. Here gradients
are averaged in its place, when it would: at the end of each backward pass outside of `no_sync`.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..system.errors import InputError
from ..system.launcher import launched
from ..system.machine.devices import count
from .distributed import average_gradients_, joined

NO_COPIES = (
    "DataParallel copies the model to every device at each step, and the copies know no cuts: start one process for "
    "each device (torchrun --nproc-per-node 2 script.py), or show this one a single device (CUDA_VISIBLE_DEVICES=0)."
)
NO_SHARDS = (
    "the trained parameters are sharded ({by}), and a cut replaces them: use plain data parallelism (torchrun), with "
    "secateur.parallel.shard_base for a base that one device cannot hold."
)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model in DistributedDataParallel or `torch.compile`'s wrapper.

    Raises:
        InputError: another wrapper, in which nothing can be cut.
    """
    while True:
        if isinstance(model, DistributedDataParallel):
            follow_cuts_(model)
            model = model.module
        elif isinstance(model, torch._dynamo.OptimizedModule):
            model = model._orig_mod
        elif isinstance(model, DataParallel):
            raise InputError(NO_COPIES)
        elif isinstance(model, FullyShardedDataParallel):
            raise InputError(NO_SHARDS.format(by="FullyShardedDataParallel"))
        else:
            return model


def watch_for_wrappers_(model: nn.Module) -> None:
    """From now on, notice a wrapper that the model is put into; nothing to do in a process alone, on one device.

    The first pass through a DistributedDataParallel is its own; it follows cuts from the second one on.
    """
    alone = launched() == 1 and not joined() and count() < 2
    if not alone and not any(hook is _notice for hook in model._forward_pre_hooks.values()):
        model.register_forward_pre_hook(_notice)


def _notice(model: nn.Module, args: Any) -> None:
    if getattr(model, "_is_replica", False):
        raise InputError(NO_COPIES)
    if (wrapper := DistributedDataParallel._get_active_ddp_module()) is not None:
        follow_cuts_(wrapper)


def follow_cuts_(wrapper: DistributedDataParallel) -> None:
    """Average gradients in the wrapper's place, of the parameters that its module has by then; once for each."""
    if not any(isinstance(hook, _Average) for hook in wrapper._forward_hooks.values()):
        average = _Average()
        wrapper.register_forward_pre_hook(average.borrow)
        wrapper.register_forward_hook(average, always_call=True)


class _Average:
    """What of a wrapper's forward pass is between its two hooks, and whether its backward pass has begun."""

    def __init__(self) -> None:
        self.due = self.queued = False

    def borrow(self, wrapper: DistributedDataParallel, args: Any) -> None:
        """Before the pass: the wrapper's own averaging is off for it, as in `no_sync`."""
        self.queued = False  # a backward pass that failed has not come to its end
        self.due = wrapper.require_backward_grad_sync and torch.is_grad_enabled()
        if self.due:
            wrapper.require_backward_grad_sync = False

    def __call__(self, wrapper: DistributedDataParallel, args: Any, output: Any) -> None:
        """After the pass: have gradients averaged when its backward pass is done."""
        if not self.due:
            return
        wrapper.require_backward_grad_sync = True
        for tensor in _tensors(output):
            if tensor.requires_grad:
                tensor.register_hook(partial(self._begin, wrapper))

    def _begin(self, wrapper: DistributedDataParallel, gradient: Tensor) -> None:
        """The first gradient of a backward pass is here: what is queued now runs when the last one is."""
        if not self.queued:
            self.queued = True
            engine: Any = Variable._execution_engine
            engine.queue_callback(partial(self._finish, wrapper))

    def _finish(self, wrapper: DistributedDataParallel) -> None:
        self.queued = False
        average_gradients_(wrapper.module.parameters())


def _tensors(output: Any) -> Iterator[Tensor]:
    """All tensors of a model's output."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, Sequence) and not isinstance(output, str):
        for value in output:
            yield from _tensors(value)
