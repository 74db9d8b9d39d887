"""What criteria and compensation need to know of a training step beyond LoRA's gradients.

Everything is read in the backward pass, by taps in the graph: only passes that train count (evaluation and teacher
passes have no backward), each exactly once (gradient checkpointing runs a forward pass twice, its backward once), and
nothing is kept that training does not keep anyway.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..architecture.experts import ROWS
from ..architecture.units import Member, Pool
from ..config.pruning import ScoringOptions
from ..criteria.base import Evidence, InputMoments, Look, scored_members, switch, wide
from ..models.surgery import merged_weight
from ..parallel.distributed import average_
from ..system.errors import InputError
from .taps import Pass, Passes, by_sequence, layer_tap, moments_of, tap

NONE: Mapping[str, nn.Module] = MappingProxyType({})


class Statistics:
    """Collects what is needed, and nothing else; `fold` closes an optimiser step.

    Args:
        model: its `attention_mask` argument says which tokens count, whether the model is called or a part of it.
        needs: of `weight_grad`, `batch_weight_grad`, `gate_grad`, `influence`, `input_moments`, `second_moments` (see
            `Evidence`).
        scoring: how gradients are reduced, and over which linears.
        ema: weight λ of the past in the moving average of moments; the first 1/(1 − λ) steps count alike.
        at_cuts: what is needed besides, of pools that lose units.
        spared: names of the pools that lose none.
        look: what `gate_grad` makes of a gate's input and its gradient.
        keeps: `gate_grad` is averaged over steps as moments are, for a criterion that scores at cuts alone.
    """

    def __init__(
        self,
        model: nn.Module,
        needs: frozenset[str],
        scoring: ScoringOptions,
        ema: float,
        at_cuts: frozenset[str] = frozenset(),
        spared: frozenset[str] = frozenset(),
        look: Look = switch,
        keeps: bool = False,
    ) -> None:
        known = {"weight_grad", "batch_weight_grad", "gate_grad", "influence", "input_moments", "second_moments"}
        self.needs = (needs | at_cuts) & known
        self._everywhere = needs & known
        self._spared = spared
        self.scoring = scoring
        self.look, self.keeps = look, keeps
        self.ema = ema
        self.steps = 0
        self.moments: dict[str, InputMoments] = {}
        self.gates: dict[str, Tensor] = {}
        """Pool -> (units, ...) moving average of what `look` made, where it is kept."""
        self._passes = Passes(model)
        self._handles: list[Any] = []
        self._watched: list[str] = []
        self.forget_step()

    def attach(
        self, pools: Iterable[Pool], modules: Mapping[str, nn.Module], layers: Mapping[str, nn.Module] = NONE
    ) -> None:
        """Watch these pools' linears (and layers that are units); again after each cut, as positions change."""
        self.detach()
        if not self.needs:
            return
        pools = list(pools)
        self._watched = []
        self._handles += self._passes.watch()
        for pool in pools:
            if needs := self._needs_of(pool) & {"gate_grad", "input_moments", "second_moments"}:
                for gate in pool.gates:
                    tap = self._input_tap(pool, gate, needs, own := modules[gate.linear])
                    self._handles.append(own.register_forward_pre_hook(tap))
                    self._watched.append(pool.name if "gate_grad" in needs else gate.linear)
        for pool in (pool for pool in pools if pool.path and self.needs & {"gate_grad", "influence"}):
            compares, own = "influence" in self.needs, layers[pool.path]
            observe = self._compared if compares else self._contributed
            hook = layer_tap(own, self._passes, pool.path, partial(observe, pool.name), compares=compares)
            self._handles.append(own.register_forward_hook(hook, with_kwargs=True))
            self._watched.append(pool.name)
        if self.needs & {"weight_grad", "batch_weight_grad"}:
            dims: dict[str, set[int]] = {}
            for pool in pools:
                for member in scored_members(pool, self.scoring):
                    dims.setdefault(member.linear, set()).add(member.dim)
            for path, wanted in dims.items():
                weight_tap = self._weight_tap(path, modules[path], sorted(wanted))
                self._handles.append(modules[path].register_forward_hook(weight_tap))
                self._watched.append(path)

    def _needs_of(self, pool: Pool) -> frozenset[str]:
        return self._everywhere if pool.name in self._spared else self.needs

    def detach(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def fold(self) -> None:
        """End a step: the moments that it saw enter the moving averages.

        Raises:
            InputError: no gradient came through a linear that is watched.
        """
        self.steps += 1
        noticed = {*self._seen, *self._gates, *self._influence, *self._weight_grads, *(path for path, _ in self._terms)}
        for name in self._watched:
            if name not in noticed:
                raise InputError(
                    f"no gradient passed through {name} in this step: call observe() after backward() and before the "
                    "next forward pass, with LoRA on its linears or on earlier ones."
                )
        for path, seen in self._seen.items():
            if path not in self.moments:
                self.moments[path] = seen.per_token()
            else:
                self.moments[path].mix_(seen.per_token(), self._weight)
        self._seen.clear()
        for name, value in self._gates.items() if self.keeps else ():
            fresh = value / max(self._sequences, 1)
            past = self.gates.get(name)
            self.gates[name] = fresh if past is None else past.to(fresh.device).lerp(fresh, self._weight)

    @property
    def _weight(self) -> float:
        """Of a step in the moving averages."""
        return max(1 - self.ema, 1 / self.steps)

    def evidence(self, modules: Mapping[str, nn.Module]) -> Evidence:
        """What the step that just ended, and the averages, say."""
        terms = dict(self._terms)
        count = max(self._sequences, 1)
        return Evidence(
            modules=modules,
            terms={key: value / count for key, value in terms.items()},
            weight_grads=self._weight_grads,
            gates=self.gates if self.keeps else {name: value / count for name, value in self._gates.items()},
            moments=self.moments,
            influence={name: total / tokens.clamp_min(1) for name, (total, tokens) in self._influence.items()},
        )

    def forget_step(self) -> None:
        """Drop the sums of the step that was scored."""
        self._passes.forget()
        self._sequences = 0
        self._seen: dict[str, InputMoments] = {}
        self._gates: dict[str, Tensor] = {}
        self._influence: dict[str, tuple[Tensor, Tensor]] = {}
        self._terms: dict[tuple[str, int], Tensor] = {}
        self._weight_grads: dict[str, Tensor] = {}

    def average_(self) -> None:
        """Moments over the tokens of all processes."""
        average_([tensor for _, tensor in sorted(self.state_tensors().items())])

    def renew(self) -> None:
        """Forget the moving averages: what follows is another model, and looked at anew."""
        self.steps, self.moments, self.gates = 0, {}, {}

    def keep_(self, pool: Pool, left: Tensor) -> None:
        """Follow a cut, by slices or by mask: what was seen of those that stay, of the units left before it."""
        if pool.name in self.gates:
            self.gates[pool.name] = self.gates[pool.name][left.to(self.gates[pool.name].device)]

    def slice_(self, pool: Pool, keep: Tensor) -> None:
        """Follow a cut: moments of the columns that stay."""
        for gate in pool.gates:
            if gate.linear in self.moments:
                self.moments[gate.linear].slice_(gate.entries(keep))

    def clear_(self, pool: Pool, gone: Tensor) -> None:
        """Follow a cut by mask: columns that are out have no moments."""
        for gate in pool.gates:
            if gate.linear in self.moments:
                self.moments[gate.linear].clear_(gate.entries(gone))

    def state_tensors(self) -> dict[str, Tensor]:
        """The moving averages, as `load_tensors` takes them back."""
        return {
            f"{path}.{name}": value
            for path, moments in self.moments.items()
            for name in ("first", "square", "second")
            if (value := getattr(moments, name)) is not None
        } | {f"{pool}.look": value for pool, value in self.gates.items()}

    def load_tensors(self, tensors: dict[str, Tensor], steps: int) -> None:
        """Restore moving averages of `steps` steps."""
        self.steps, self.moments = steps, {}
        looks = {key: value for key, value in tensors.items() if key.endswith(".look")}
        self.gates = {key.removesuffix(".look"): value.clone() for key, value in looks.items()}
        tensors = {key: value for key, value in tensors.items() if key not in looks}
        for path in dict.fromkeys(key.rpartition(".")[0] for key in tensors):
            parts = {name: tensors.get(f"{path}.{name}") for name in ("first", "square", "second")}
            assert parts["first"] is not None and parts["square"] is not None  # noqa: PT018
            self.moments[path] = InputMoments(1, parts["first"].clone(), parts["square"].clone(), parts["second"])

    def _count(self, passed: Pass) -> None:
        """Take a pass's sequences into the step's, when its first gradient comes: one without a backward is none."""
        if not passed.whole.counted:
            passed.whole.counted = True
            self._sequences += passed.whole.batch

    def _input_tap(
        self, pool: Pool, gate: Member, needs: frozenset[str], own: nn.Module
    ) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
        path = gate.linear

        def observe(passed: Pass, rows: Tensor | None, x: Tensor, gradient: Tensor) -> None:
            self._count(passed)
            if "gate_grad" in needs:
                states, g = (by_sequence(each, passed, rows) for each in (x, gradient))
                sums = self._looked(states, g, gate.index_on(x.device))
                self._gates[pool.name] = self._gates.get(pool.name, 0) + sums
            if needs & {"input_moments", "second_moments"}:
                whole = by_sequence(x, passed)
                seen = moments_of(whole, passed, self.steps, second="second_moments" in needs)
                self._seen[path] = self._seen[path].plus(seen) if path in self._seen else seen

        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if module is not own:  # a copy of the model has its hooks, too
                return None
            x, passed = args[0], self._passes.of(path)
            if not (torch.is_grad_enabled() and x.requires_grad):
                return None
            return (tap(x, x, partial(observe, passed, vars(module).get(ROWS))), *args[1:])

        return hook

    def _contributed(self, pool: str, passed: Pass, added: Tensor, gradient: Tensor) -> None:
        """What a layer added to the hidden states: the gradient of a switch on it."""
        self._count(passed)
        width = torch.arange(added.shape[-1], device=added.device).unsqueeze(0)
        self._gates[pool] = self._gates.get(pool, 0) + self._looked(added, gradient, width)

    def _compared(self, pool: str, passed: Pass, distance: Tensor, gradient: Tensor) -> None:
        """How far a layer turned the hidden states of each token."""
        self._count(passed)
        counts = torch.ones_like(distance) if passed.mask is None else passed.mask.to(distance)
        total, tokens = self._influence.get(pool, (distance.new_zeros(1), distance.new_zeros(1)))
        self._influence[pool] = total + (distance * counts).sum(), tokens + counts.sum()

    def _looked(self, x: Tensor, gradient: Tensor, columns: Tensor) -> Tensor:
        """(units, ...) what the criterion's look makes of a micro-batch."""
        seen = self.look(x.detach(), gradient.reshape(x.shape), columns, self.scoring)
        if not isinstance(seen, Tensor) or seen.shape[:1] != columns.shape[:1]:
            what = f"a tensor {tuple(seen.shape)}" if isinstance(seen, Tensor) else f"a {type(seen).__name__}"
            raise InputError(
                f"the criterion's look gave {what} for {len(columns)} units: return a tensor ({len(columns)}, ...), "
                "a row for each."
            )
        return seen

    def _weight_tap(
        self, path: str, own: nn.Module, dims: list[int]
    ) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]:
        def per_sequence(passed: Pass, rows: Tensor | None, x: Tensor, gradient: Tensor) -> None:
            self._count(passed)
            weight = wide(merged_weight(own))
            states, gradients = (by_sequence(each, passed, rows) for each in (x.detach(), gradient))
            for h, g in zip(states, gradients, strict=True):
                term = (g.T @ h.to(g.dtype)).to(weight.dtype).mul_(weight)
                term = term.square_() if self.scoring.reduce == "squared" else term.abs_()
                for dim in dims:
                    self._terms[path, dim] = self._terms.get((path, dim), 0) + term.sum(1 - dim)

        def whole_batch(passed: Pass, rows: Tensor | None, x: Tensor, gradient: Tensor) -> None:
            flat = gradient.flatten(0, -2).T @ x.detach().flatten(0, -2).to(gradient.dtype)
            flat = flat.cpu() if self.scoring.offload_gradients else flat
            self._weight_grads[path] = self._weight_grads[path].add_(flat) if path in self._weight_grads else flat

        observe = per_sequence if "weight_grad" in self.needs else whole_batch

        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            if module is not own:
                return None
            passed = self._passes.of(path)
            if not (torch.is_grad_enabled() and output.requires_grad):
                return None
            return tap(output, args[0], partial(observe, passed, vars(module).get(ROWS)))

        return hook
