"""Mixtures of experts: experts apart for training, together again for the checkpoint, and whole experts removed.

transformers keeps a layer's experts in two tensors of three dimensions, where no LoRA layer, mask or hook can reach a
channel of one expert. `unstack_experts` puts a list of plain linears in their place, the same function; everything
else in secateur then works as on any linear, and a checkpoint is written in transformers' own form.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..system.errors import InputError
from ..system.voice import speaks_python
from .families import FAMILIES, Family


@dataclass(frozen=True)
class Dropped:
    """Experts that went before training."""

    experts: dict[str, list[int]]
    """Path of a layer's experts -> their numbers."""
    parameters: int


STOCK_NAMES = ("gate_up_proj", "down_proj")
"""What transformers calls a layer's expert tensors."""


class Expert(nn.Module):
    """One expert's linears: gate and up in one, and down.

    Args:
        gate_up, down: (2 x channels, width) and (width, channels).
        names: what the two linears are called.
    """

    def __init__(self, gate_up: Tensor, down: Tensor, activation: nn.Module, names: tuple[str, str]) -> None:
        super().__init__()
        self.names = names
        for name, weight in zip(names, (gate_up, down), strict=True):
            self.add_module(name, _linear(weight))
        self.act_fn = activation

    def forward(self, x: Tensor) -> Tensor:
        gate_up, down = map(self.get_submodule, self.names)  # LoRA may have been put around them
        gate, up = gate_up(x).chunk(2, dim=-1)
        return cast(Tensor, down(self.act_fn(gate) * up))


class ExpertList(nn.ModuleList):
    """A layer's experts as a list; counts how much the router gives to each in training.

    Attributes:
        chosen: (experts,) tokens that went to each expert.
        mass: (experts,) the sum of their routing weights.
        numbers: what each was called before some went: names of pools and records refer to these.
        counting: also count outside of training.
        even: give every expert its even share of tokens whatever the router says, to count memory without data.
    """

    def __init__(self, experts: Iterable[Expert], numbers: Sequence[int] | None = None) -> None:
        super().__init__(experts)
        self.numbers = tuple(range(len(self)) if numbers is None else numbers)
        self.chosen, self.mass = torch.zeros(len(self)), torch.zeros(len(self))
        self.counting = False
        self.even = False

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Σ over a token's chosen experts of weight · expert(token).

        Shapes: hidden_states (tokens, width); top_k_index, top_k_weights (tokens, k).
        """
        total = torch.zeros_like(hidden_states)
        for number, expert in enumerate(self):
            if self.even:
                tokens = torch.arange(max(1, top_k_index.numel() // len(self)), device=hidden_states.device)
                slots = torch.zeros_like(tokens)
            else:
                tokens, slots = (top_k_index == number).nonzero(as_tuple=True)
            weights = top_k_weights[tokens, slots]
            if (self.training or self.counting) and not self.even:
                self.chosen[number] += len(tokens)
                self.mass[number] += float(weights.detach().sum())
            # In training an expert without tokens still runs, so that its gradients are zero and not missing.
            if len(tokens) or torch.is_grad_enabled():
                said = expert(hidden_states[tokens]) * weights.unsqueeze(1)
                total = total.index_add(0, tokens, said.to(total.dtype))
        return total


@speaks_python()
def unstack_experts(model: nn.Module, family: Family | None = None) -> int:
    """Put lists of linears in the place of expert tensors; returns how many layers had some. Before LoRA is added.

    Args:
        family: the model's layout; default: that of its model type.
    Raises:
        InputError: tensors that hold something else than gate and up in one and down, without biases.
    """
    if family is None:
        model_type = cast(PreTrainedModel, model).config.model_type
        family = FAMILIES[model_type] if model_type in FAMILIES else None  # noqa: SIM401 (get would raise)
    if family is None or family.experts is None:
        return 0
    count = 0
    for layer in model.get_submodule(family.layers).children():
        stacked = _find(layer, family.experts)
        if stacked is None or isinstance(stacked, nn.ModuleList):
            continue
        tensors: Any = stacked
        _check_stacked(tensors, family)
        pairs = zip(tensors.gate_up_proj.data, tensors.down_proj.data, strict=True)
        names = expert_names(family)
        layer.set_submodule(family.experts, ExpertList(Expert(*pair, tensors.act_fn, names) for pair in pairs))
        count += 1
    return count


def stack_experts(tensors: Iterable[tuple[str, Tensor]], family: Family) -> Iterator[tuple[str, Tensor]]:
    """A state's tensors with each layer's experts in one tensor again, as the stock class has them."""
    marker = f".{family.experts}."
    stock = dict(zip(expert_names(family), STOCK_NAMES, strict=True))
    waiting: dict[str, list[Tensor]] = {}
    for name, tensor in tensors:
        prefix, found, rest = name.partition(marker)
        if not found:
            yield name, tensor
            continue
        _, _, linear = rest.partition(".")
        waiting.setdefault(f"{prefix}{marker}{stock[linear.removesuffix('.weight')]}", []).append(tensor)
    for name, experts in waiting.items():
        yield name, torch.stack(experts)


def expert_names(family: Family) -> tuple[str, str]:
    """What an expert's two linears are called where experts are apart: gate and up in one, and down."""
    return family.mlp_in[0].rpartition(".")[2], family.mlp_out.rpartition(".")[2]


def _check_stacked(tensors: Any, family: Family) -> None:
    """Refuse tensors that `Expert` would compute something else from (GPT-OSS: turned, with biases, its own gate)."""
    found = {name: tuple(tensor.shape) for name, tensor in tensors.named_parameters(recurse=False)}
    sizes = [size for _, size in sorted(found.items())]  # down_proj, gate_up_proj
    fits = found.keys() == {"gate_up_proj", "down_proj"} and all(len(size) == 3 for size in sizes)
    if fits:
        (count, width, ffn), gate_up = sizes
        fits = gate_up == (count, 2 * ffn, width)
    own = vars(tensors)
    gate = getattr(type(tensors), "_apply_gate", None)  # transformers' own where a class has none
    fits &= own.get("is_concatenated", True) and not own.get("is_transposed", False)
    if not fits or (gate is not None and gate.__module__ != "transformers.integrations.moe"):
        raise InputError(
            f"the experts of this {family.name} are {type(tensors).__name__} with {found}: those can be taken apart "
            "that hold gate and up in one (experts, 2 x channels, width) and down (experts, width, channels), without "
            "biases and with the usual gate. Put a list of plain linears in their place and describe it "
            "(docs/add-a-family.md)."
        )


def check_expert_count(config: PreTrainedConfig, family: Family, count: int) -> None:
    """Refuse a number of experts to keep.

    Raises:
        InputError: there are no experts; as many as `count` or fewer; or fewer than the router chooses for a token.
    """
    if family.experts is None:
        raise InputError(f"--experts {count}: a {config.model_type} has no experts: leave --experts out.")
    have, least = int(getattr(config, family.num_experts)), int(config.num_experts_per_tok)
    if not least <= count < have:
        remedy = f"give a number from {least} to {have - 1}" if least < have else "all stay: leave --experts out"
        raise InputError(
            f"--experts {count}: the model has {have} experts a layer and chooses {least} for a token: {remedy}."
        )


def drop_experts(model: PreTrainedModel, family: Family, count: int) -> dict[str, list[int]]:
    """Keep the `count` experts of each layer to which the router gave the most weight; before LoRA is added.

    The router loses its rows with them, so its probabilities are over the experts that stay.

    Returns:
        path of a layer's experts -> numbers of those that went.
    Raises:
        InputError: as `check_expert_count`; nothing counted what the router gives to each.
    """
    config = model.config
    check_expert_count(config, family, count)
    have = int(getattr(config, family.num_experts))
    lists = expert_lists(model)
    if not lists or not all(experts.mass.any() for experts in lists.values()):
        raise InputError(
            f"--experts {count}: nothing has counted what the router gives to each expert: call unstack_experts(model) "
            "first, set `counting` on the lists that expert_lists(model) finds, and run some batches."
        )
    gone: dict[str, list[int]] = {}
    for path, experts in lists.items():
        order = experts.mass.argsort(descending=True, stable=True)
        stay = order[:count].sort().values
        gone[path] = sorted(experts.numbers[number] for number in order[count:].tolist())
        parent = path.removesuffix(family.experts or "")
        numbers = [experts.numbers[number] for number in stay.tolist()]
        small = ExpertList((cast(Expert, experts[number]) for number in stay.tolist()), numbers)
        model.set_submodule(path, small)
        router: Any = model.get_submodule(parent + family.router)
        router.weight = nn.Parameter(router.weight.data[stay.to(router.weight.device)], requires_grad=False)
    for module in model.modules():  # routers, and the model itself for its loss of balance
        if vars(module).get("num_experts") == have:
            module.num_experts = count  # type: ignore[assignment]
    setattr(config, family.num_experts, count)
    return gone


def expert_lists(model: nn.Module) -> dict[str, ExpertList]:
    """The model's lists of experts by path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, ExpertList)}


@speaks_python()
def unused_experts(model: nn.Module) -> dict[str, list[int]]:
    """Path of a layer's experts -> numbers of those that no token of the training was given to, before any went.

    With several processes after `share_counts`.
    """
    lists = {path.removeprefix("base_model.model."): experts for path, experts in expert_lists(model).items()}
    found = {
        path: [number for number, chosen in zip(experts.numbers, experts.chosen.tolist(), strict=True) if not chosen]
        for path, experts in lists.items()
    }
    return {path: numbers for path, numbers in found.items() if numbers}


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.clone(), requires_grad=False)
    return linear


def _find(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None
