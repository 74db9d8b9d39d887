"""The interface of a criterion, and what criteria share."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..architecture.units import Member, Pool
from ..config.pruning import BLOCKS, LAYERS, UNITS, ScoringOptions
from ..system.errors import InputError, all_faults
from ..system.machine.devices import multiplies_into_float32
from ..system.registry import Registry, did_you_mean
from .masks import MaskRule


class Scoring(ScoringOptions):
    """`ScoringOptions`, also by the short names `linears` and `offload`."""

    def __init__(self, *, linears: str | None = None, offload: bool = False, **options: Any) -> None:
        if linears:
            options["score_linears"] = linears
        if offload:
            options["offload_gradients"] = offload
        super().__init__(**options)


@dataclass(eq=False)
class InputMoments:
    """First and second moments of a linear's input, over tokens: sums while a step runs, means afterwards."""

    tokens: float | Tensor
    first: Tensor
    """(columns,) E[x]."""
    square: Tensor
    """(columns,) E[x²]."""
    second: Tensor | None = None
    """(columns, columns) E[x xᵀ], where it is needed."""

    @classmethod
    def of(cls, x: Tensor, second: bool, tokens: float | Tensor) -> Self:
        """Sums over the rows of x (tokens, columns); bf16 products (float16 would overflow), float32 (or float64) sums.

        Args:
            tokens: that the sums stand for: fewer than rows where some are padding, and zero.
        """
        full = wide(x)
        return cls(tokens, full.sum(0), full.square().sum(0), _second_moment(x, full) if second else None)

    @property
    def variance(self) -> Tensor:
        return (self.square - self.first.square()).clamp_min(0)

    def plus(self, other: "InputMoments") -> "InputMoments":
        second = None if self.second is None or other.second is None else self.second + other.second
        return InputMoments(self.tokens + other.tokens, self.first + other.first, self.square + other.square, second)

    def per_token(self) -> "InputMoments":
        n = self.tokens.clamp_min(1) if isinstance(self.tokens, Tensor) else self.tokens or 1
        return InputMoments(1, self.first / n, self.square / n, None if self.second is None else self.second / n)

    def mix_(self, fresh: "InputMoments", weight: float) -> None:
        """Move towards `fresh` by `weight`, on its device: a restored average comes from the CPU."""
        self.first = self.first.to(fresh.first.device).lerp_(fresh.first, weight)
        self.square = self.square.to(fresh.square.device).lerp_(fresh.square, weight)
        if self.second is not None and fresh.second is not None:
            self.second = self.second.to(fresh.second.device).lerp_(fresh.second, weight)

    def clear_(self, columns: Tensor) -> None:
        """Zero the moments of `columns`."""
        columns = columns.to(self.first.device)
        self.first[columns] = self.square[columns] = 0
        if self.second is not None:
            self.second[columns] = 0
            self.second[:, columns] = 0

    def slice_(self, columns: Tensor) -> None:
        """Keep the moments of `columns` only."""
        columns = columns.to(self.first.device)
        self.first, self.square = self.first[columns], self.square[columns]
        if self.second is not None:
            self.second = self.second[columns][:, columns]


def _second_moment(x: Tensor, full: Tensor) -> Tensor:
    """xᵀx (columns, columns), of which no entry is rounded to bfloat16.

    A sum that is rounded so is off by 0.4 %, and where a few columns are large by more than a damping of the mean
    diagonal makes up for: then there is no Cholesky factor. bfloat16 entries are exact in float32, so the processor may
    multiply them as what they are.
    """
    if x.dtype != torch.bfloat16:
        return full.T @ full
    if multiplies_into_float32(x):
        return torch.mm(x.T, x, out_dtype=torch.float32)
    mkldnn: Any = torch.backends.mkldnn
    matmul = mkldnn.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
    try:
        return full.T @ full
    finally:
        matmul.fp32_precision = before


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a criterion may look at. Only what it `needs` is filled."""

    modules: Mapping[str, nn.Module]
    """Linear path -> PEFT LoRA layer (its factors hold their gradients: `lora_grad`) or plain linear."""
    terms: Mapping[tuple[str, int], Tensor] = field(default_factory=dict)
    """`weight_grad`: (linear, dim) -> per row (0) or column (1), the mean over sequences of Σ (G ⊙ W)² (or |·|),
    with G of one sequence."""
    weight_grads: Mapping[str, Tensor] = field(default_factory=dict)
    """`batch_weight_grad`: linear -> (out, in) ∂L/∂W of the whole batch."""
    gates: Mapping[str, Tensor] = field(default_factory=dict)
    """`gate_grad`: pool -> (units, ...) mean over sequences of what the criterion's `look` makes of h and ∂L/∂h, h the
    input of o or down. Of a criterion that `changes` it is the step's, else the moving average."""
    moments: Mapping[str, InputMoments] = field(default_factory=dict)
    """`input_moments`, `second_moments`: path of o or down -> moving averages over its input's tokens."""
    influence: Mapping[str, Tensor] = field(default_factory=dict)
    """`influence`: pool of a layer -> (1,) mean over the step's tokens of 1 - cos(hidden states before, after)."""
    loss_without: Mapping[str, Tensor] = field(default_factory=dict)
    """`loss_without`: pool of a layer -> (1,) by how much the loss in nats a token is higher without it."""
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    """`masks`: pool -> (units,) latents z that the criterion's `masks` rule has learned."""


OF_LAYERS = ("influence", "loss_without")
OF_INPUTS = ("input_moments", "second_moments", "masks")
NEEDS = ("lora_grad", "weight_grad", "batch_weight_grad", "gate_grad", *OF_INPUTS, *OF_LAYERS)
"""What a criterion may ask to see; see `Evidence`. Some of it there is of whole layers only, some of none."""


Look = Callable[[Tensor, Tensor, Tensor, ScoringOptions], Tensor]
"""What is seen of a backward pass at one gate (o or down): h and ∂L/∂h (batch, tokens, columns) of a micro-batch, the
columns of each unit (units, columns of a unit), and the options -> (units, ...), which is added up over micro-batches
and gates, and averaged over sequences and processes."""


def switch(h: Tensor, gradient: Tensor, columns: Tensor, scoring: ScoringOptions) -> Tensor:
    """(units,) Σ over pieces of sequences of (Σ_t h·∂L/∂h)², or of |·|: the gradient of a switch on each unit."""
    total = wide(h.new_zeros(columns.shape[0]))
    for states, g in zip(h, gradient, strict=True):  # one sequence at a time stays in cache
        effects = wide(states) * g
        if (piece := scoring.gate_tokens or len(effects)) > 1:
            effects = torch.stack([part.sum(0) for part in effects.split(piece)])
        units = effects[:, columns].sum(2)
        total += (units.square() if scoring.reduce == "squared" else units.abs()).sum(0)
    return total


@dataclass(frozen=True)
class Criterion:
    """How units are scored: a function, and what the pruner has to provide for it."""

    score: Callable[[Pool, Evidence, ScoringOptions], Tensor]
    """Pool, evidence and options -> (units,) scores, higher stays. Must not change the model."""
    summary: str
    needs: frozenset[str] = frozenset()
    """Of `NEEDS`. Nothing else is collected."""
    look: Look = switch
    """What it wants to see of h and ∂L/∂h at each gate, where it needs `gate_grad`."""
    changes: bool = True
    """True: scores come from a step and are averaged over steps. False: they are taken once per cut."""
    linears: str = "all"
    """`rows` or `all`: the linears that are scored where the user does not say (`ScoringOptions.score_linears`)."""
    across_layers: str = "mean"
    """How scores of different layers compare (`Budget.across_layers`) where the user does not say: `raw` for those that
    estimate by how much the loss changes, which is one scale for all layers."""
    masks: MaskRule | None = None
    """How masks on the units are learned while the model trains, where it needs `masks`."""

    def __post_init__(self) -> None:
        """Refuse what no pruner could provide.

        Raises:
            InputError: names the field, its value and what it must be.
        """
        faults = []
        if not callable(self.score):
            faults.append(f"Criterion: score is {self.score!r}: give a function of pool, evidence and options.")
        if not callable(self.look):
            faults.append(f"Criterion: look is {self.look!r}: give a function of h, its gradient, columns and options.")
        if isinstance(self.needs, str):
            faults.append(f"Criterion: needs is {self.needs!r}: give a set of names, such as {{{self.needs!r}}}.")
        else:
            object.__setattr__(self, "needs", frozenset(self.needs))
            faults += [
                f"Criterion: needs has {name!r}. {did_you_mean(str(name), NEEDS)}Choose from: {', '.join(NEEDS)}."
                for name in self.needs
                if name not in NEEDS
            ]
        if self.look is not switch and "gate_grad" not in self.needs:
            faults.append("Criterion: look is never asked: name 'gate_grad' in needs.")
        if (self.masks is None) == ("masks" in self.needs):
            faults.append("Criterion: give both or neither of 'masks' in needs and a MaskRule (masks=...).")
        choices = {"linears": ("rows", "all"), "across_layers": ("mean", "standard", "raw"), "changes": (True, False)}
        faults += [
            f"Criterion: {name} is {getattr(self, name)!r}: choose from {', '.join(map(str, words))}."
            for name, words in choices.items()
            if getattr(self, name) not in words
        ]
        all_faults(faults)

    def check_units(self, name: str, kinds: Collection[str]) -> None:
        """Whether it scores what is to be removed.

        Args:
            kinds: heads and channels, or layers.
        Raises:
            InputError: it does not.
        """
        units = ",".join(kinds)
        if units != UNITS[0] and (found := [need for need in OF_INPUTS if need in self.needs]):
            others = [each for each, criterion in CRITERIA.items() if not criterion.needs & set(OF_INPUTS)]
            raise InputError(
                f"--criterion {name} scores heads and channels, by {found[0].replace('_', ' ')}: with --units {units} "
                f"use one of {', '.join(sorted(others))}."
            )
        if units not in (UNITS[0], LAYERS, BLOCKS) and self.across_layers != "raw":
            raise InputError(
                f"--criterion {name}: its scores of blocks and of heads are on no one scale, and --units {units} ranks "
                "them together: use gate, lora or taylor."
            )
        if LAYERS not in kinds and "influence" in self.needs:
            raise InputError(f"--criterion {name} scores whole layers: add --units layers, or use another criterion.")
        if units == UNITS[0] and "loss_without" in self.needs:
            raise InputError(
                f"--criterion {name} scores layers and blocks: add --units layers or blocks, or use another criterion."
            )

    def options(self, name: str, scoring: ScoringOptions) -> ScoringOptions:
        """`scoring` with this criterion's own choices where the user left them open.

        Raises:
            InputError: an option is not for this criterion.
        """
        if scoring.normalize in ("scale", "projected") and "lora_grad" not in self.needs:
            raise InputError(
                f"--normalize {scoring.normalize} undoes the scale of LoRA gradients: {name} takes none or linear."
            )
        if scoring.offload_gradients and "batch_weight_grad" not in self.needs:
            raise InputError(f"--offload-gradients is for taylor-accumulated: {name} keeps no gradients of weights.")
        if scoring.mask_lr is not None and self.masks is None:
            raise InputError(
                f"--mask-lr {scoring.mask_lr} is for criteria that learn masks: {name} has none, so leave it out."
            )
        return replace(scoring, score_linears=scoring.score_linears or self.linears)


CRITERIA: Registry[Criterion] = Registry("criterion")


def scored_members(pool: Pool, scoring: ScoringOptions) -> list[Member]:
    """The linears of a unit that count: all, or those whose rows the unit owns."""
    return [member for member in pool.members if member.scored and (scoring.score_linears == "all" or member.dim == 0)]


def sum_members(pool: Pool, scoring: ScoringOptions, entries: Callable[[Member], Tensor]) -> Tensor:
    """Unit scores Ĝ_g (Eq. 4): entry sums gathered per unit and added over the pool's linears.

    Args:
        entries: member -> one sum per row (`dim` 0) or column (`dim` 1) of its linear.
    """
    total: Tensor | None = None
    sides: dict[tuple[str, int], Tensor] = {}  # several projections may lie in one linear
    for member in scored_members(pool, scoring):
        side = member.linear, member.dim
        if side not in sides:
            sides[side] = entries(member)
        sums = sides[side]
        units = sums[member.index_on(sums.device)].sum(1)
        if scoring.normalize == "linear":
            units = units / units.norm().clamp_min(torch.finfo(units.dtype).tiny)
        total = units if total is None else total + units
    assert total is not None, "a pool has at least one linear"
    return total


def sum_gates(pool: Pool, columns: Callable[[Member], Tensor]) -> Tensor:
    """(units,) from one value per column of the pool's gates (o or down).

    Args:
        columns: gate -> one value per column of its linear.
    """
    return torch.stack([(sums := columns(gate))[gate.index_on(sums.device)].sum(1) for gate in pool.gates]).sum(0)


def wide(value: Tensor) -> Tensor:
    """Scores are made in float32, float64 for float64 models."""
    return value.to(torch.float64 if value.dtype == torch.float64 else torch.float32)
