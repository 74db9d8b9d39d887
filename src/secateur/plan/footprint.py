"""Peak memory of a training run, worked out from the configuration: no weights, no data, seconds.

Activations are counted, not guessed: the forward pass runs on fake tensors (shapes without storage), and what autograd
would keep for the backward pass is added up. It runs through the first layers alone where the others are like them.
"""

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import torch
from peft import LoraConfig, get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from ..architecture.building import empty_model
from ..architecture.discovery import find_units
from ..architecture.experts import expert_lists, unstack_experts
from ..architecture.experts.even import even_
from ..architecture.experts.lora import name_experts_
from ..architecture.families import FAMILIES, Family
from ..architecture.quantised import quantised_bytes
from ..architecture.stock import task_of
from ..checkpoint.comparing import wide_of
from ..models.coverage import tell_transposed_
from ..models.devices import autocast
from ..models.stored import checkpoint_dtype
from ..training.recovery.beside import Beside
from .kept import Kept, bytes_of

CPU_HEAP = 1.45
"""What the C library's heap takes for tensors that come and go, over what they hold: 1.23, 1.57 and 1.76 were measured
with SmolLM2-135M in bfloat16 (docs/log.md), so this part is uncertain. GPUs have an allocator of PyTorch's own."""


@dataclass(frozen=True)
class Footprint:
    """Bytes at the peak of a training step, by part."""

    weights: int
    lora: int
    gradients: int
    optimizer: int
    activations: int
    """Kept from the forward pass for the backward pass."""
    logits: int
    """Logits and their gradient while the backward pass begins, beyond what `activations` has."""
    allocator: int
    """What the allocator takes beyond what is asked of it; an experience on CPUs, 0 elsewhere."""
    unpacked: int = field(default=0, kw_only=True)
    """The largest linear of a quantised base, as the backward pass multiplies by it."""
    scoring: int = field(default=0, kw_only=True)
    """Gradients of weights that are kept until the step is scored (`taylor-accumulated`)."""
    moments: int = field(default=0, kw_only=True)
    """Second moments of inputs (`obs`, `--compensate lstsq`): the averages, and the step's own sums."""
    masks: int = field(default=0, kw_only=True)
    """What learned masks are put on, beside what they make of it."""
    teacher: int = field(default=0, kw_only=True)
    """The dense model's logits (`--distill`)."""
    refit: int = field(default=0, kw_only=True)
    """By how much a cut takes more than a step, where it refits in sequence (`--compensate sequential`)."""
    search: int = field(default=0, kw_only=True)
    """The model's logits that candidates of a search are compared with (`--allocation search`), in the host's memory:
    none of a GPU's."""

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


def training_footprint(
    model_config: PreTrainedConfig,
    *,
    linears: list[str],
    rank: int,
    micro_batch: int,
    seq_len: int,
    dtype: torch.dtype,
    device_type: str,
    gradient_checkpointing: bool = False,
    trust_remote_code: bool = False,
    load_in: str | None = None,
    scored: Collection[str] = (),
    moments: int = 0,
    distilled: bool = False,
    trains: bool = True,
    family: Family | None = None,
    also: Collection[str] = (),
    restarts: bool = False,
    target_len: int | None = None,
) -> Footprint:
    """The peak of a LoRA step before any cut; pruning while training only lowers it.

    Args:
        linears: names of the linears that have LoRA.
        micro_batch: sequences per forward pass.
        dtype: of the computation; the base keeps its checkpoint's (wider for float32; this one where it is quantised).
        gradient_checkpointing: of each layer its input is kept, and all of one layer at a time.
        load_in: how the base is quantised.
        scored: paths of the linears whose weights' gradients are kept until the step is scored.
        moments: bytes of the inputs' second moments.
        distilled: whether the dense model's logits are made too.
        trains: whether there is an optimiser, with moments.
        family: the model's layout, where its model type does not say it.
        also: what is trained beside LoRA.
        restarts: whether LoRA is merged into the base, which is then held wide.
        target_len: tokens of an encoder-decoder's target, where those of its source are `seq_len`.
    """
    wide = base_dtype(model_config, dtype, load_in)
    base = empty_model(model_config, trust_remote_code=trust_remote_code, dtype=wide)
    base.config.use_cache = False
    if scored:  # by the names of experts taken apart
        unstack_experts(base, family)
    weights = sum(map(bytes_of, [*base.parameters(), *base.buffers()]))
    saved, unpacked = _saved_by(base, load_in) if load_in else (0, 0)
    kept_gradients = dtype.itemsize * sum(cast(nn.Linear, base.get_submodule(path)).weight.numel() for path in scored)
    family = family or FAMILIES[model_config.model_type]
    repeats = _leave_first_layers(base, family)
    unstack_experts(base, family)
    _without_data_(base, family)
    model = _with_lora(base, linears, rank)
    held = _sum_bytes(model, family, repeats)
    Beside(model, find_units(base, family), also, restarts=restarts)
    widened = _sum_bytes(model, family, repeats) - held
    sides = {"input_ids": seq_len, "decoder_input_ids": 1 + (target_len or seq_len)}
    read = {name: (micro_batch, length) for name, length in list(sides.items())[: 1 + model_config.is_encoder_decoder]}
    kept, logits = _fake_step(model, read, dtype, device_type)
    trained = _sum_bytes(model, family, repeats, lambda name, tensor: tensor.requires_grad)
    kept.repeat(repeats)
    activations = kept.with_checkpointing() if gradient_checkpointing else kept.bytes
    passing = activations + logits
    return Footprint(
        weights=weights - saved + widened,
        lora=_sum_bytes(model, family, repeats, lambda name, tensor: "lora_" in name),
        gradients=trained,
        optimizer=2 * trained * trains,
        activations=activations,
        logits=logits,
        allocator=int((CPU_HEAP - 1) * passing) if device_type == "cpu" else 0,
        unpacked=unpacked,
        scoring=kept_gradients,
        moments=2 * moments,
        teacher=logits // 2 if distilled else 0,
    )


def _without_data_(base: PreTrainedModel, family: Family) -> None:
    """Let a model do without values: which experts a token goes to, and which tokens a layer looks at."""
    for experts in expert_lists(base).values():
        experts.even = True
    if family.stacking.routes:
        even_(base.get_submodule(family.layers))
    for layer in base.get_submodule(family.layers).children() if family.chooser else ():
        if any(path == family.chooser for path, _ in layer.named_modules()):
            layer.set_submodule(str(family.chooser), _All())


class _All(nn.Module):
    """Lets a layer look at all tokens (`Family.chooser`)."""

    def forward(self, hidden_states: Tensor, positions: Any, mask: Tensor, *further: Any) -> Tensor:
        return torch.ones_like(mask, dtype=torch.bool)


def _with_lora(base: PreTrainedModel, linears: list[str], rank: int) -> nn.Module:
    lora = LoraConfig(r=rank, target_modules=linears, task_type=task_of(base.config))
    name_experts_(lora, base)
    tell_transposed_(lora, base)
    return get_peft_model(base, lora, low_cpu_mem_usage=True).train()


def _leave_first_layers(base: PreTrainedModel, family: Family) -> dict[int, int]:
    """Take out the layers after the first two of each kind, as those say what the others keep.

    Two, since the first one of a kind also keeps what all share: masks, rotations.

    Returns:
        number of the last layer of each kind that stays -> how many more there were.
    """
    if family.stacks:
        return {}  # they are not deep, and there is more than one list of layers
    layers = base.get_submodule(family.layers)
    assert isinstance(layers, nn.ModuleList)
    if not all(isinstance(layer, GradientCheckpointingLayer) for layer in layers):
        return {}  # an old class, whose layers are not looked at one by one (`Kept`)
    kinds = [_kind(base.config, number, layer) for number, layer in enumerate(layers)]
    seen: Counter[Any] = Counter()
    stay = 0
    for number, kind in enumerate(kinds):
        if seen[kind] < 2:
            seen[kind] += 1
            stay = number + 1
    del layers[stay:]
    return {
        max(number for number in range(stay) if kinds[number] == kind): kinds[stay:].count(kind)
        for kind in set(kinds[stay:])
    }


def _kind(config: PreTrainedConfig, number: int, layer: nn.Module) -> tuple[Any, ...]:
    """What of a layer could make it keep something else than another: sizes, settings, its entries in the config."""
    settings = tuple(
        (path, type(module).__name__, name, str(value))
        for path, module in layer.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, str | int | float | bool | None) and name not in ("layer_idx", "layer_id", "block_idx")
    )
    shapes = tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in layer.named_parameters())
    lists = (value for value in vars(config).values() if isinstance(value, list | tuple))
    entries = tuple(str(value[number]) for value in lists if len(value) == config.num_hidden_layers)
    return settings, shapes, entries


Counts = Callable[[str, Tensor], bool]


def _sum_bytes(
    model: nn.Module, family: Family, repeats: dict[int, int], counts: Counts = lambda name, tensor: True
) -> int:
    """Bytes of the parameters that count, with those of layers that were left out; LoRA's are in float32."""
    layers = [(1, "")] + [(times, f".{family.layers}.{number}.") for number, times in repeats.items()]
    return sum(
        times * tensor.numel() * (4 if "lora_" in name else tensor.element_size())
        for times, layer in layers
        for name, tensor in model.named_parameters()
        if layer in name and counts(name, tensor)
    )


def _fake_step(
    model: nn.Module, tokens: dict[str, tuple[int, int]], dtype: torch.dtype, device_type: str
) -> tuple[Kept, int]:
    """A forward pass on tensors that have shapes alone; the loss keeps nothing but the logits' gradient.

    Args:
        tokens: what the model is given -> its shape.
    Returns:
        what the backward pass keeps, and bytes of the logits with their gradient.
    """
    with FakeTensorMode():
        state = {
            name: torch.empty(
                tensor.shape,
                dtype=torch.float32 if "lora_" in name else tensor.dtype,
                device=device_type,
                requires_grad=tensor.requires_grad,
            )
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        }
        kept = Kept(state)
        kept.watch(model)
        ids = {name: torch.zeros(shape, dtype=torch.long, device=device_type) for name, shape in tokens.items()}
        with (
            torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor),
            autocast(device_type, dtype),
            disable_input_dtype_casting(model),
        ):
            output = functional_call(model, state, kwargs=ids)
        return kept, 2 * bytes_of(output.logits)


def _saved_by(base: PreTrainedModel, load_in: str) -> tuple[int, int]:
    """Bytes by which quantising makes a base smaller, and those of its largest linear as it is multiplied by."""
    head = base.get_output_embeddings()
    weights = [
        module.weight for module in base.modules() if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]
    saved = sum(bytes_of(weight) - quantised_bytes(load_in, *weight.shape) for weight in weights)
    return saved, max(map(bytes_of, weights))


def export_bytes(trained: int, small: int, dtype: torch.dtype) -> int:
    """Most bytes of an export: it compares what was trained with the result, both at least in float32.

    Args:
        trained, small: parameters of the model as it left training, LoRA included, and of the result.
        dtype: of the checkpoint.
    """
    return (trained + small) * wide_of(dtype).itemsize


def base_dtype(model_config: PreTrainedConfig, dtype: torch.dtype, load_in: str | None = None) -> torch.dtype:
    """What the frozen base, or what of it is not quantised, is held in when a run computes in `dtype`."""
    if load_in is not None:
        return dtype
    return torch.float32 if dtype == torch.float32 else checkpoint_dtype(model_config)
