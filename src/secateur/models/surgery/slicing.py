"""Slicing a model and what its optimiser keeps. Knows units; knows no criterion and no schedule."""

import copy
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...architecture.depth import kept_layers, take_out_
from ...architecture.experts import expert_lists, stack_experts
from ...architecture.layout import WHOLE_KINDS, LayerShape
from ...architecture.quantised import bits_of, is_quantised, slice_
from ...architecture.units import Pool, Units, base_linear, folded, sides_of
from ...parallel.sharding import gathered, is_sharded, resharded
from ...system.errors import InputError
from .gains import NAME as GAIN
from .gains import slice_gain_
from .lora import is_embedding, lora_factors, lora_layers, merged_weight, plain
from .moments import cut_state
from .naming import names_gone, renumbered


def removals(units: Units, keep: dict[str, Tensor]) -> dict[tuple[str, int], Tensor]:
    """(linear, dim) -> ascending positions that stay, for every linear that loses some; those of layers and
    blocks that go are none."""
    stay: dict[tuple[str, int], Tensor] = {}
    for pool in units.pools:
        if not _is_cut(pool, keep):
            continue
        for member in pool.members:
            mask = stay.setdefault((member.linear, member.dim), torch.ones(member.size, dtype=torch.bool))
            mask[member.entries(~keep[pool.name])] = False
    return {side: mask.nonzero().flatten() for side, mask in stay.items()}


def _is_cut(pool: Pool, keep: dict[str, Tensor]) -> bool:
    """Whether some of its units go and some stay: with a block go all, which are not sliced."""
    kept = keep[pool.name]
    return pool.kind not in WHOLE_KINDS and bool(kept.any()) and not kept.all()


def merged_and_sliced(model: nn.Module, units: Units, keep: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The small model's tensors under the base model's own names, one at a time.

    LoRA is merged into the full weight first and both are sliced together, so the result is exactly the
    masked, adapted model (LoRAPrune §3.2). The model itself is not changed.

    Args:
        keep: pool name -> (units,) bool; what stays.
    """
    kept = kept_layers(units.shapes_after(keep))
    tensors = _sliced(model, units, keep)
    dense = units.family.experts and not any(shape.ffn for shape in units.shapes)  # FFNs that stand apart as experts do
    return renumbered(stack_experts(tensors, units.family) if dense or expert_lists(model) else tensors, units, kept)


def _sliced(model: nn.Module, units: Units, keep: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    assert not is_quantised(model), "a checkpoint is made of the original weights (original.restore_)"
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    stay = removals(units, keep)
    wrapped = lora_layers(base)
    transposed = {plain(path) for path, module in base.named_modules() if isinstance(module, Conv1D)}
    transposed |= {f"{path}.base_layer" for path, layer in wrapped.items() if is_embedding(layer)}
    modules = {plain(path): module for path, module in base.named_modules()}
    gone, biases = names_gone(units, keep)
    for name, tensor in base.state_dict().items():
        path, _, leaf = plain(name).rpartition(".")
        turned = leaf == "weight" and path in transposed
        path = path.removesuffix(".base_layer")
        if ".lora_" in name or leaf == GAIN or path not in modules:  # a block that an earlier layer has, too
            continue
        if f"{path}.".startswith(gone) and f"{path}.{leaf}" not in biases:
            continue
        if path in wrapped and leaf == "weight":
            value = merged_weight(wrapped[path])
        else:
            whole = gathered(tensor.detach())
            value = whole.T if turned else whole
        value = folded(modules[path], leaf, value)
        for side in ((path, 0), (path, 1), (f"{path}.{leaf}", 0)):  # the last: a vector of its own
            if side in stay and side[1] < value.dim():
                value = value.index_select(side[1], stay[side].to(value.device))
        yield f"{path}.{leaf}", value.T if turned else value


def shrink_(
    model: nn.Module, units: Units, keep: dict[str, Tensor], optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Slice a model in training: base weights, biases, LoRA factors and their optimiser moments.

    Same function and same next step as masking, at less work: a masked entry's gradient is zero. Sliced
    parameters are new objects without gradient (autograd remembers a parameter's old shape for as long as an
    earlier loss is alive); they take the old ones' places in the optimiser.

    Args:
        keep: pool name -> (units,) bool; what stays.
        optimizer: the optimiser that trains the model.
    Raises:
        InputError: the optimiser does not hold a trainable parameter that was sliced.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    swapped: dict[Tensor, Sliced] = {}
    for (path, dim), index in removals(units, keep).items():
        parent, _, name = path.rpartition(".")
        if isinstance(holder := getattr(base.get_submodule(parent), name), nn.Parameter):
            vector = nn.Parameter(holder.data.index_select(dim, index.to(holder.device)), requires_grad=False)
            setattr(base.get_submodule(parent), name, vector)
        else:
            _slice_linear_(holder, dim, index, swapped)
    for pool in (pool for pool in units.pools if _is_cut(pool, keep)):
        for gate in pool.gates:
            if pair := slice_gain_(base.get_submodule(gate.linear), gate, keep[pool.name]):
                swapped[pair[0]] = Sliced(pair[1], 0, keep[pool.name].nonzero().flatten())
    whole = [pool for pool in units.of_kind(*WHOLE_KINDS) if not keep[pool.name].all()]
    dropped = [parameter for pool in whole for parameter in take_out_(base, units, pool)]
    if optimizer is not None:
        swap_parameters_(optimizer, {old: new for old, new in swapped.items() if old.requires_grad}, dropped)
    for place, before, after in zip(units.places, units.shapes, units.shapes_after(keep), strict=True):
        if before.heads != after.heads and after.heads:
            attention = base.get_submodule(f"{place.prefix}.{place.family.attention}")
            _tell_sizes_(attention, place.family.attributes, after)
    check_shapes(base, optimizer)


def _tell_sizes_(attention: nn.Module, attributes: dict[str, str], shape: LayerShape) -> None:
    """Set the attributes by which an attention module knows its sizes."""
    for name, size in attributes.items():
        holder: object = attention
        if name.startswith("config."):  # shared by all layers: from now on this layer reads its own
            name = name.removeprefix("config.")
            holder = attention.config = copy.copy(attention.config)
        setattr(holder, name, shape.sizes()[size])


def check_shapes(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """LoRA fits its linear, and every gradient and optimiser moment its parameter (fused AdamW would not notice)."""
    for path, layer in lora_layers(model).items():
        lora, sides = lora_factors(layer), sides_of(layer.get_base_layer())
        assert (lora.b.shape[0], lora.a.shape[1]) == sides, f"LoRA of another shape than {path}, {sides}"
        assert lora.b.shape[1] == lora.a.shape[0], f"LoRA of two ranks on {path}"
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.shape == parameter.shape, f"stale gradient of {name}"
        for key, value in (optimizer.state.get(parameter, {}) if optimizer else {}).items():
            moment = isinstance(value, Tensor) and value.dim() == parameter.dim() and 1 not in value.shape
            assert not moment or value.shape == parameter.shape, f"stale {key} of {name}"


@dataclass(frozen=True, eq=False)
class Sliced:
    """A parameter's replacement, and how to cut anything that is shaped like the original."""

    parameter: nn.Parameter
    dim: int
    index: Tensor


def _slice_linear_(module: nn.Module, dim: int, index: Tensor, swapped: dict[Tensor, Sliced]) -> None:
    if isinstance(module, nn.Embedding):
        whole = module.weight
        small = whole.data.index_select(dim, index.to(whole.device))
        module.weight = nn.Parameter(small, requires_grad=whole.requires_grad)
        module.embedding_dim = len(index)
        if whole.requires_grad:
            swapped[whole] = Sliced(module.weight, dim, index)
        return
    linear = base_linear(module)
    if is_sharded(linear):
        linear = _slice_sharded_(module, dim, index)
    targets: list[tuple[nn.Module, str]] = []
    holders: list[nn.Module] = [linear]
    if not is_sharded(linear):
        targets = [(linear, "weight")] if not bits_of(linear) else []
        targets += [(linear, "bias")] if dim == 0 and linear.bias is not None else []
    if bits_of(linear):
        slice_(linear, dim, index)
    if isinstance(module, LoraLayer):
        (adapter,) = module.active_adapters
        factor = (module.lora_B if dim == 0 else module.lora_A)[adapter]
        targets.append((factor, "weight"))
        holders += [module, factor]
    for holder, name in targets:
        old = getattr(holder, name)
        along = 1 - dim if isinstance(holder, Conv1D) and name == "weight" else dim
        new = nn.Parameter(old.data.index_select(along, index.to(old.device)), requires_grad=old.requires_grad)
        setattr(holder, name, new)
        if old.requires_grad:
            swapped[old] = Sliced(new, along, index)
    for holder in holders:
        names = ("nf", "nx") if isinstance(holder, Conv1D) else ("out_features", "in_features")
        setattr(holder, names[dim], len(index))


def _slice_sharded_(module: nn.Module, dim: int, index: Tensor) -> nn.Linear:
    """Gather one base linear, slice it and shard what is left, in the LoRA layer around it."""
    if not isinstance(module, LoraLayer):
        raise InputError("a sharded linear that loses units needs LoRA around it: leave --targets out.")
    linear = base_linear(module)
    assert isinstance(linear, nn.Linear)
    index = index.to(linear.weight.device)
    weight = gathered(linear.weight.detach()).index_select(dim, index)
    bias = None if linear.bias is None else gathered(linear.bias.detach())
    small = resharded(linear, weight, bias.index_select(0, index) if bias is not None and dim == 0 else bias)
    module.base_layer = small
    return small


def swap_parameters_(
    optimizer: torch.optim.Optimizer, swapped: dict[Tensor, Sliced], dropped: Collection[Tensor] = ()
) -> None:
    """Put sliced parameters and moments where the optimiser has the old ones, and forget those that were dropped."""
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    gone = set(dropped)
    if lacking := (swapped.keys() | gone) - held:
        raise InputError(
            f"the optimiser given to step() lacks {len(lacking)} of the LoRA parameters to slice: "
            "pass the one that trains the model."
        )
    for group in optimizer.param_groups:
        group["params"] = [swapped[p].parameter if p in swapped else p for p in group["params"] if p not in gone]
    for parameter in gone:
        optimizer.state.pop(parameter, None)
    for old, sliced in swapped.items():
        if old in optimizer.state:
            state = optimizer.state.pop(old)
            optimizer.state[sliced.parameter] = cut_state(state, old.shape, sliced.dim, sliced.index)
