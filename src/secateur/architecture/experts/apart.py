"""Mixtures of experts: experts apart for training.

transformers keeps a layer's experts in two tensors of three dimensions, where no LoRA layer, mask or hook can reach a
channel of one expert. `unstack_experts` puts a list of plain linears in their place, the same function; everything
else in secateur then works as on any linear. `stacked` writes a checkpoint in transformers' own form.
"""

import copy
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...system.errors import InputError
from ...system.voice import speaks_python
from ..families import FAMILIES, Beside, Family, Stacking

STOCK_NAMES = ("gate_up_proj", "down_proj")
"""What transformers calls a layer's expert tensors."""
BIAS = "_bias"
"""What their biases' names end in."""


class Expert(nn.Module):
    """One expert's linears, or those of an FFN beside: gate and up in one, and down.

    Args:
        gate_up, down: weight (2 x channels, width) and (width, channels), and bias, if any.
        gate: of gate and up in one to what down reads; a module, or None for `activation`(gate) · up.
        names: what the two linears are called.
    """

    def __init__(
        self,
        gate_up: tuple[Tensor, Tensor | None],
        down: tuple[Tensor, Tensor | None],
        activation: Any,
        names: tuple[str, str],
        gate: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.names = names
        for name, (weight, bias) in zip(names, (gate_up, down), strict=True):
            self.add_module(name, _linear(weight, bias))
        self.act_fn = activation
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        gate_up, down = map(self.get_submodule, self.names)  # LoRA may have been put around them
        if self.gate is not None:
            return cast(Tensor, down(self.gate(gate_up(x))))
        gate, up = gate_up(x).chunk(2, dim=-1)
        return cast(Tensor, down(self.act_fn(gate) * up))


class OwnGate(nn.Module):
    """What a class of experts makes of gate and up, where it is not the usual product (GPT-OSS)."""

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.shell: Any = copy.copy(experts)  # its settings, without its tensors
        self.shell._parameters = {}

    def forward(self, gate_up: Tensor) -> Tensor:
        return cast(Tensor, self.shell._apply_gate(gate_up))


class ExpertList(nn.ModuleList):
    """A layer's experts as a list; counts how much the router gives to each in training.

    Attributes:
        chosen: (experts,) tokens that went to each expert.
        mass: (experts,) the sum of their routing weights.
        effect: (experts,) the sum of their routing weights times the norms of what the expert said, while `counting`.
        numbers: what each was called before some went: names of pools and records refer to these.
        counting: also count outside of training.
        even: give every expert its even share of tokens whatever the router says, to count memory without data.
    """

    def __init__(self, experts: Iterable[Expert], numbers: Sequence[int] | None = None) -> None:
        super().__init__(experts)
        self.numbers = tuple(range(len(self)) if numbers is None else numbers)
        self.chosen, self.mass, self.effect = (torch.zeros(len(self)) for _ in range(3))
        self.counting = False
        self.even = False

    def forward(
        self, hidden_states: Tensor, top_k_index: Tensor | None = None, top_k_weights: Tensor | None = None
    ) -> Tensor:
        """Σ over a token's chosen experts of weight · expert(token).

        Where a class multiplies what experts read by the weights (Llama 4), it gives each expert all tokens, of which
        those are zero that it was not chosen for, and is given back what each said.

        Shapes: hidden_states (tokens, width), or (experts x tokens, width); top_k_index, top_k_weights (tokens, k).
        """
        if top_k_index is None or top_k_weights is None:
            return self._of_weighted(hidden_states)
        total = torch.zeros_like(hidden_states)
        for number, expert in enumerate(self):
            if self.even:
                tokens = torch.arange(max(1, top_k_index.numel() // len(self)), device=hidden_states.device)
                slots = torch.zeros_like(tokens)
            else:
                tokens, slots = (top_k_index == number).nonzero(as_tuple=True)
            weights = top_k_weights[tokens, slots]
            # In training an expert without tokens still runs, so that its gradients are zero and not missing.
            if len(tokens) or torch.is_grad_enabled():
                said = expert(hidden_states[tokens]) * weights.unsqueeze(1)
                self._count(number, said, weights)
                total = total.index_add(0, tokens, said.to(total.dtype))
        return total

    def _of_weighted(self, hidden_states: Tensor) -> Tensor:
        blocks = hidden_states.view(len(self), -1, hidden_states.shape[-1])
        total = torch.zeros_like(blocks)
        for number, (expert, block) in enumerate(zip(self, blocks, strict=True)):
            if self.even:
                tokens = torch.arange(max(1, len(block) // len(self)), device=block.device)
            else:
                tokens = block.detach().abs().amax(-1).nonzero().flatten()
            if len(tokens) or torch.is_grad_enabled():
                said = expert(block[tokens])
                self._count(number, said, None)
                total = total.index_put((torch.full_like(tokens, number), tokens), said.to(total.dtype))
        return total.view_as(hidden_states)

    def _count(self, number: int, said: Tensor, weights: Tensor | None) -> None:
        if (self.training or self.counting) and not self.even:
            self.chosen[number] += len(said)
            self.mass[number] += float("nan") if weights is None else float(weights.detach().sum())
            if self.counting:
                self.effect[number] += float(said.detach().float().norm(dim=-1).sum())


@speaks_python()
def unstack_experts(model: nn.Module, family: Family | None = None) -> int:
    """Put lists of linears in the place of expert tensors; returns how many layers had some. Before LoRA is added.

    FFNs beside them (shared experts, those of layers without experts) get linears of the same names, which PEFT does
    not take for stacked experts'.

    Args:
        family: the model's layout; default: that of its model type.
    Raises:
        InputError: tensors that hold something else than the layout says.
    """
    if family is None:
        model_type = cast(PreTrainedModel, model).config.model_type
        family = FAMILIES[model_type] if model_type in FAMILIES else None  # noqa: SIM401 (get would raise)
    if family is None or family.experts is None:
        return 0
    count = 0
    names = expert_names(family)
    for layer in model.get_submodule(family.layers).children():
        for beside in family.beside:
            _set_apart_(layer, beside, names)
        stacked = find(layer, family.experts)
        if stacked is None or isinstance(stacked, nn.ModuleList):
            continue
        tensors: Any = stacked
        _check_stacked(tensors, family)
        gate = OwnGate(tensors) if _own_gate(tensors) else None
        activation = getattr(tensors, "act_fn", None)
        gate_up, down = (_linears_in(tensors, name, family.stacking) for name in STOCK_NAMES)
        experts = (Expert(*pair, activation, names, gate) for pair in zip(gate_up, down, strict=True))
        layer.set_submodule(family.experts, ExpertList(experts))
        count += 1
    return count


def expert_names(family: Family) -> tuple[str, str]:
    """What an expert's two linears are called where experts are apart: gate and up in one, and down."""
    return family.mlp_in[0].rpartition(".")[2], family.mlp_out.rpartition(".")[2]


def expert_lists(model: nn.Module) -> dict[str, ExpertList]:
    """The model's lists of experts by path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, ExpertList)}


def find(module: nn.Module, path: str) -> nn.Module | None:
    """What is at a path, None where there is nothing."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _set_apart_(layer: nn.Module, beside: Beside, names: tuple[str, str]) -> None:
    """Put an `Expert` in the place of an FFN of gate, up and down; other layouts stay as they are."""
    if beside.stock is None or any(find(layer, f"{beside.at}.{name}") is None for name in beside.stock):
        return
    mlp = layer.get_submodule(beside.at)
    gate, up, down = (cast(nn.Linear, mlp.get_submodule(name)) for name in beside.stock)
    bias = None if gate.bias is None else torch.cat([gate.bias.data, up.bias.data])
    both = torch.cat([gate.weight.data, up.weight.data]), bias
    activation = getattr(mlp, beside.activation)
    layer.set_submodule(beside.at, Expert(both, (down.weight.data, down.bias), activation, names))


def _linears_in(tensors: Any, name: str, stacking: Stacking) -> list[tuple[Tensor, Tensor | None]]:
    """Weight (out, in) and bias of each expert."""
    weights, biases = getattr(tensors, name).data, getattr(tensors, name + BIAS, None)
    weights = weights.transpose(1, 2) if stacking.turned else weights
    return [(weight, None if biases is None else biases.data[number]) for number, weight in enumerate(weights)]


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return linear


def _own_gate(tensors: Any) -> bool:
    gate = getattr(type(tensors), "_apply_gate", None)  # transformers' own where a class has none
    return gate is not None and gate.__module__ != "transformers.integrations.moe"


def _check_stacked(tensors: Any, family: Family) -> None:
    """Refuse tensors that `Expert` would compute something else from than the layout says."""
    stacking = family.stacking
    found = {name: tuple(tensor.shape) for name, tensor in tensors.named_parameters(recurse=False)}
    weights = [found.pop(name, ()) for name in reversed(STOCK_NAMES)]
    biases = {name: found.pop(name + BIAS, None) for name in STOCK_NAMES}
    fits = not found and all(len(size) == 3 for size in weights) and len(set(map(bool, biases.values()))) == 1
    if fits:
        (count, width, ffn), gate_up = ((size[0], *size[:0:-1]) if stacking.turned else size for size in weights)
        fits = gate_up == (count, 2 * ffn, width)
    own = vars(tensors)
    fits &= own.get("is_concatenated", not stacking.interleaved) is not stacking.interleaved
    fits &= own.get("is_transposed", stacking.turned) is stacking.turned and own.get("has_gate", True)
    fits &= _own_gate(tensors) is stacking.own_gate
    if not fits:
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.named_parameters(recurse=False)}
        raise InputError(
            f"the experts of this {family.name} are {type(tensors).__name__} with {shapes}, which is not as the layout "
            "says (Family.stacking): gate and up in one, (experts, 2 x channels, width), and down, (experts, width, "
            "channels). Name the layout that it has, or put a list of plain linears in their place and describe it "
            "(docs/add-a-family.md)."
        )
