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

from ...system.voice import speaks_python
from ..families import FAMILIES, Beside, Family
from .shared import find, share_
from .stock_tensors import Pair, check_stacked, has_own_gate, linears_in, spare_in
from .together import Together, joined

ROWS = "rows_of_batch"
"""Attribute of an expert's linears while they run: (tokens,) which rows of the batch it was given."""


class Expert(nn.Module):
    """One expert's linears, or those of an FFN beside: gate and up in one, and down.

    Args:
        gate_up, down: weight (2 x channels, width) and (width, channels), and bias, if any.
        gate: of gate and up in one to what down reads; a module, or None for `activation`(gate) · up.
        names: what the two linears are called.
    """

    def __init__(
        self,
        gate_up: Pair,
        down: Pair,
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
        hands_on: the router also chooses among experts beyond these, which hand on what they read.
        spare: (2 x channels, entries) what the class has in gate and up for those, and does not use; its rows go with
            the first expert's.
        counting: also count outside of training.
        even: give every expert its even share of tokens whatever the router says, to count memory without data.
    """

    def __init__(
        self,
        experts: Iterable[Expert],
        numbers: Sequence[int] | None = None,
        hands_on: bool = False,
        spare: Tensor | None = None,
    ) -> None:
        super().__init__(experts)
        self.hands_on = hands_on
        self.spare = None if spare is None else nn.Parameter(spare, requires_grad=False)
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

        Shapes: hidden_states (tokens, width), or (experts x tokens, width), or (sequences, tokens, width);
            top_k_index, top_k_weights (tokens, k).
        """
        if top_k_index is None or top_k_weights is None:
            return self._of_weighted(hidden_states)
        read = hidden_states.reshape(-1, hidden_states.shape[-1])
        total = torch.zeros_like(read)
        for number, expert in enumerate(self):
            if self.even:
                tokens = torch.arange(max(1, top_k_index.numel() // len(self)), device=hidden_states.device)
                slots = torch.zeros_like(tokens)
            else:
                tokens, slots = (top_k_index == number).nonzero(as_tuple=True)
            weights = top_k_weights[tokens, slots]
            # In training an expert without tokens still runs, so that its gradients are zero and not missing.
            if len(tokens) or torch.is_grad_enabled():
                said = self._of(expert, read[tokens], tokens) * weights.unsqueeze(1)
                self._count(number, said, weights)
                total = total.index_add(0, tokens, said.to(total.dtype))
        if self.hands_on:
            handed = (top_k_weights * (top_k_index >= len(self))).sum(-1, keepdim=True)
            total = total + (read * handed).to(total.dtype)
        return total.view_as(hidden_states)

    def _of_weighted(self, hidden_states: Tensor) -> Tensor:
        blocks = hidden_states.view(len(self), -1, hidden_states.shape[-1])
        total = torch.zeros_like(blocks)
        for number, (expert, block) in enumerate(zip(self, blocks, strict=True)):
            if self.even:
                tokens = torch.arange(max(1, len(block) // len(self)), device=block.device)
            else:
                tokens = block.detach().abs().amax(-1).nonzero().flatten()
            if len(tokens) or torch.is_grad_enabled():
                said = self._of(expert, block[tokens], tokens)
                self._count(number, said, None)
                total = total.index_put((torch.full_like(tokens, number), tokens), said.to(total.dtype))
        return total.view_as(hidden_states)

    @staticmethod
    def _of(expert: nn.Module, read: Tensor, tokens: Tensor) -> Tensor:
        """What an expert says; in training its linears know which of the batch's tokens they are given (`ROWS`)."""
        trains = torch.is_grad_enabled()
        linears = [expert.get_submodule(name) for name in cast(Expert, expert).names if trains]
        for linear in linears:
            setattr(linear, ROWS, tokens)
        said = cast(Tensor, expert(read))
        for linear in linears:
            delattr(linear, ROWS)
        return said

    def _count(self, number: int, said: Tensor, weights: Tensor | None) -> None:
        if (self.training or self.counting) and not self.even:
            self.chosen[number] += len(said) if weights is None else int((weights != 0).sum())  # 0: a skipped layer
            self.mass[number] += float("nan") if weights is None else float(weights.detach().sum())
            if self.counting:
                self.effect[number] += float(said.detach().float().norm(dim=-1).sum())


class Routed(nn.Module):
    """A mixture's block whose class has tensors, router and bias in one (JetMoE), with its experts apart."""

    def __init__(self, block: Any, name: str, experts: ExpertList) -> None:
        super().__init__()
        self.router = block.router
        self.bias = block.bias
        self.add_module(name, experts)
        self.name = name

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(sequences, tokens, width), the same as the class's."""
        read = hidden_states.reshape(-1, hidden_states.shape[-1])
        *_, logits = self.router(read)
        best, chosen = logits.topk(self.router.top_k, dim=1)
        weights = best.softmax(1).type_as(read)
        said = self.get_submodule(self.name)(read, chosen, weights)
        return cast(Tensor, (said + self.bias).view_as(hidden_states))


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
    if family is not None:
        share_(model, family)
    if family is None or family.experts is None:
        return 0
    count = 0
    names = expert_names(family)
    for layer in model.get_submodule(family.layers).children():
        for beside in family.beside:
            _set_apart_(layer, beside, names, family.experts)
        stacked = find(layer, family.stacking.at or family.experts)
        if stacked is None or isinstance(find(layer, family.experts), nn.ModuleList):
            continue
        _take_apart_(layer, stacked, family, names)
        count += 1
    return count


def _take_apart_(layer: nn.Module, stacked: Any, family: Family, names: tuple[str, str]) -> None:
    """Put a list of linears in the place of a layer's expert tensors.

    Raises:
        InputError: as `check_stacked`.
    """
    assert family.experts is not None
    stacking = family.stacking
    check_stacked(stacked, layer, family)
    gate = OwnGate(stacked) if has_own_gate(stacked) else None
    activation = getattr(stacked, stacking.activation, None)
    experts = (Expert(*pair, activation, names, gate) for pair in linears_in(stacked, layer, family))
    found = ExpertList(experts, hands_on=stacking.hands_on, spare=spare_in(stacked, stacking))
    if stacking.routes:
        assert stacking.at is not None
        layer.set_submodule(stacking.at, Routed(stacked, family.experts.removeprefix(f"{stacking.at}."), found))
    else:
        layer.set_submodule(family.experts, found)


def expert_names(family: Family) -> tuple[str, str]:
    """What an expert's two linears are called where experts are apart: gate and up in one, and down."""
    return family.mlp_in[0].rpartition(".")[2], family.mlp_out.rpartition(".")[2]


def expert_lists(model: nn.Module) -> dict[str, ExpertList]:
    """The model's lists of experts by path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, ExpertList)}


def _set_apart_(layer: nn.Module, beside: Beside, names: tuple[str, str], experts: str) -> None:
    """Put an `Expert` in the place of an FFN of gate, up and down; other layouts stay as they are.

    Args:
        experts: where the layer's routed ones are, still in their tensors.
    """
    mlp: Any = find(layer, beside.at)
    if mlp is None or beside.stock is None or not all(hasattr(mlp, name) for name in beside.stock):
        return
    activation = getattr(mlp, beside.activation)
    if beside.together:
        count, *weights = joined(mlp, beside)
        linears = {name: _linear(weight, None) for name, weight in zip(names, weights, strict=True)}
        layer.set_submodule(beside.at, Together(count, linears, activation))
        return
    gate, up, down = (cast(nn.Linear, getattr(mlp, name)) for name in beside.stock)
    bias = None if gate.bias is None else torch.cat([gate.bias.data, up.bias.data])
    both = torch.cat([gate.weight.data, up.weight.data]), bias
    own = OwnGate(layer.get_submodule(experts)) if beside.own_gate else None
    layer.set_submodule(beside.at, Expert(both, (down.weight.data, down.bias), activation, names, own))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return linear
