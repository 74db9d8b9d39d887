"""Frozen base weights spread over processes by FSDP2: each holds its rows, and gathers a linear when it is used.

Every frozen linear is a group of its own, so that a cut can gather one, slice it and shard what is left. LoRA's factors
stay whole in every process, as their gradients do; `average_gradients_` averages those.
"""

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard
from transformers import PreTrainedModel

from ..architecture.experts import ExpertList
from ..architecture.quantised import is_quantised
from ..system.errors import InputError
from ..system.launcher import rank
from ..system.voice import speaks_python
from .distributed import processes


@speaks_python()
def shard_base(model: nn.Module) -> int:
    """Shard the frozen linears and embeddings of a model with LoRA over the processes; returns how many there are.

    Call it in every process, after LoRA is added and before the optimiser is made. What the input and output
    embeddings share (tied weights) stays whole, as do GPT-2's `Conv1D`. In one process nothing happens. The whole model
    is in each process's memory before; `load_sharded` spreads it while it is read.

    Raises:
        InputError: a mixture of experts; a quantised base; weights that are not in memory.
    """
    check_in_memory(model)
    return spread_(model)


def spread_(model: nn.Module) -> int:
    """What `shard_base` does, also with weights that are not there yet."""
    if any(isinstance(module, ExpertList) for module in model.modules()):
        raise InputError(
            "a mixture of experts is not sharded: a linear is gathered by all processes together when it is used, and "
            "each process's tokens choose experts of their own. Leave shard_base out."
        )
    if is_quantised(model):
        raise InputError("a quantised base is not sharded: each process holds all of it. Leave shard_base out.")
    if processes() == 1:
        return 0
    found = [module for module in model.modules() if _shardable(module, _tied(model))]
    for module in found:
        _shard(module)
    return len(found)


def check_in_memory(model: nn.Module) -> None:
    """Refuse weights that are elsewhere until a forward pass asks for them.

    Raises:
        InputError: names the first of them, and the remedy.
    """
    away = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if away:
        raise InputError(
            f"{away[0]} and {len(away) - 1} other weights are not in memory: device_map has put them off to the CPU or "
            "to disk, from where they come for a forward pass only, so they can be neither scored nor cut. Give "
            "device_map more memory (max_memory) or devices, quantise the base, or spread it by shard_base."
        )


def gathered(weight: Tensor) -> Tensor:
    """The whole of a weight; every process must ask for it."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def local_rows(weight: Tensor) -> tuple[Tensor, slice] | None:
    """This process's rows of a weight that is sharded by rows, and which they are; None for any other weight."""
    if not isinstance(weight, DTensor) or weight.placements != (Shard(0),):
        return None
    per_process = -(-weight.shape[0] // processes())
    first = min(rank() * per_process, weight.shape[0])
    local = weight.to_local()
    return local, slice(first, first + local.shape[0])


def assign_(weight: Tensor, value: Tensor) -> None:
    """Write a whole value into a weight, sharded or not."""
    place = local_rows(weight)
    if place is None:
        weight.data.copy_(value)
    else:
        local, rows = place
        local.copy_(value[rows])


def resharded(linear: nn.Linear, weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear of another size in a sharded one's place."""
    with torch.device("meta"):
        small = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    small.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        small.bias = nn.Parameter(bias, requires_grad=False)
    small.train(linear.training)
    _shard(small)
    return small


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP2 holds this very module's weights."""
    return isinstance(module, FSDPModule)


def _shard(module: nn.Module) -> None:
    fully_shard(module, reshard_after_forward=True)


def _shardable(module: nn.Module, tied: set[int]) -> bool:
    weight: Any = getattr(module, "weight", None)
    plain = isinstance(module, nn.Linear | nn.Embedding) and not isinstance(module, BaseTunerLayer)
    return plain and not weight.requires_grad and id(weight) not in tied


def _tied(model: nn.Module) -> set[int]:
    """Weights that two modules share: FSDP2 would shard them twice."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(base, PreTrainedModel):
        return set()
    head: Any = base.get_output_embeddings()
    embedding: Any = base.get_input_embeddings()
    return {id(head.weight)} if head is not None and head.weight is embedding.weight else set()
