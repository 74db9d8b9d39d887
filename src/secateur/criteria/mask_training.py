"""Masks in training: on the inputs of o and down, with an optimiser of their own, beside whatever trains the model."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..architecture.units import Pool
from ..parallel.distributed import average_
from ..system.errors import NumericsError
from .masks import Constraint, MaskRule, lagrangian

PAPER_STEPS = 1000
"""Steps in which the multipliers rise to the same height, whatever the run's length (DDP's released code)."""
MULTIPLIER_RATE, PENALTY_RATE = 0.02, 0.4
"""Learning rates of λ₁ and λ₃, and of λ₂, for `PAPER_STEPS`."""


class MaskTraining:
    """A mask for each unit that may go, learned from the gradients that training makes anyway.

    The masks are no parameters of the model: its optimiser, its clipping and its adapter's file never see them.

    Args:
        pools: all of the model, as it is at the start.
        constraints: what is to stay; pools that none is about have no masks.
        rate: learning rate; None for the rule's own.
        dtype: of the latents.

    Attributes:
        steps: updates that were made.
        began: whether some units may be hidden.
        trains: False once the last cut is made; what scales a unit then stays.
    """

    def __init__(
        self, rule: MaskRule, pools: Iterable[Pool], constraints: Sequence[Constraint], rate: float | None,
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        self.rule, self.steps, self.began, self.trains = rule, 0, False, True
        self._rate, self._constraints = rate, constraints
        by_name = {pool.name: pool for pool in pools}
        ordered = [by_name[name] for constraint in constraints for name in constraint.pools]
        self._sizes = {pool.name: pool.size for pool in ordered}
        self._group_sizes = [sum(self._sizes[name] for name in constraint.pools) for constraint in constraints]
        self._params = torch.cat([torch.full((pool.size,), float(pool.unit_params), dtype=dtype) for pool in ordered])
        self._kept = torch.tensor([constraint.kept for constraint in constraints], dtype=dtype)
        units = len(self._params)
        self._left = torch.ones(units, dtype=torch.bool)
        self._projection = torch.ones(units, dtype=dtype)
        self._z = nn.Parameter(torch.full((units,), rule.start, dtype=dtype))
        self._multipliers = nn.Parameter(torch.zeros(len(constraints), 2, dtype=dtype))
        self._penalties = nn.Parameter(torch.zeros(len(constraints), dtype=dtype))
        groups: list[dict[str, Any]] = [{"params": [self._z], "betas": rule.betas}]
        if not rule.projects:
            groups += [{"params": [each], "maximize": True} for each in (self._multipliers, self._penalties)]
        self._optimizer = torch.optim.Adam(groups)
        self._living: list[Pool] = []
        self._columns: dict[str, Tensor] = {}
        self._hooks: list[Any] = []
        self._on = True

    def attach(self, living: Iterable[Pool], keep: Mapping[str, Tensor], modules: Mapping[str, nn.Module]) -> None:
        """Put the masks on the units that are left, where they are in the model now; again after each cut.

        Args:
            keep: pool name -> (units,) bool, which of those at the start are left.
        """
        self.remove()
        self._living = [pool for pool in living if pool.name in self._sizes]
        self._left = torch.cat([keep[name] for name in self._sizes])
        if not self.trains and self.rule.gain is None:
            return
        for gate in (gate for pool in self._living for gate in pool.gates):
            self._columns[gate.linear] = torch.ones(gate.size, dtype=self._z.dtype, requires_grad=self.trains)
            hook = self._hook(gate.linear, own := modules[gate.linear])
            # What is known of a linear's input is known of the masked one, but for units that a projection only hides:
            # compensation would see nothing of what they did.
            self._hooks.append(own.register_forward_pre_hook(hook, prepend=not self.rule.projects))
        self._place()

    def observe(self, share: float, steps: int) -> None:
        """Learn from the gradients of the step that was made.

        Args:
            share: of the masks' training that is over after it.
            steps: of all of it.
        Raises:
            NumericsError: a gradient is not finite; names the pool.
        """
        slopes = self._slopes()
        average_([slopes])
        if not torch.isfinite(slopes).all():
            names = (name for name, part in self._by_pool(slopes).items() if not torch.isfinite(part).all())
            raise NumericsError(
                f"the gradient of the masks of {next(names)} is not finite. The loss or a gradient overflowed: lower "
                "--lr, or compute in float32 (--dtype float32)."
            )
        with torch.enable_grad():
            loss = self.rule.value(self._z, self._projection) @ slopes + self.pressure(share)
            loss.backward()
        self._set_rates(share, steps)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.steps += 1
        self._place()

    def pressure(self, share: float) -> Tensor:
        """What drives the masks to the target: the augmented Lagrangian of the expected size; 0 for a projection."""
        if self.rule.retention is None:
            return self._z.new_zeros(())
        scores = self.rule.retention(self._z, share) * self._left
        parts = scores.split(self._group_sizes), self._params.split(self._group_sizes)
        return lagrangian(*parts, self._kept, self._multipliers, self._penalties)

    def expected_size(self, share: float) -> float:
        """Fraction of the maskable parameters that the scores of retention say is there; of a projection, that is."""
        with torch.no_grad():
            scores = self._projection if self.rule.retention is None else self.rule.retention(self._z, share)
            return float((scores * self._left) @ self._params / self._params.sum())

    def project(self, keep: Mapping[str, Tensor]) -> None:
        """Pool name -> (units,) bool, what the next forward pass sees."""
        self._projection = torch.cat([keep[name] for name in self._sizes]).to(self._z.dtype)
        self._place()

    def begin(self, gates: Mapping[str, Tensor]) -> None:
        """Start from what the criterion's `gate_grad` says of the units that are left, before any of them is hidden.

        Until then nothing is known of a unit but which way its mask would go.
        """
        self.began = True
        if self.rule.prior is not None:
            seen = torch.cat([gates[name].to(self._z.data) for name in self._sizes])
            average_([seen])
            self._z.data[self._left] = self.rule.prior(seen / self._params[self._left])

    def forget_step(self) -> None:
        """Drop the gradients of a step."""
        for column in self._columns.values():
            column.grad = None

    def settle(self) -> None:
        """The last cut is made: what stays keeps its scale, or is as it was."""
        if not self.trains:
            return
        self.trains = False
        for column in self._columns.values():
            column.requires_grad_(False)
            column.grad = None
        self._place()
        if self.rule.gain is None:
            self.remove()

    def latents(self, living: Iterable[Pool]) -> dict[str, Tensor]:
        """Pool name -> (units,) z of the units that are left; where there are no masks, the start."""
        held, left = self._by_pool(self._z.detach()), self._by_pool(self._left)
        start = self.rule.start
        return {
            pool.name: held[pool.name][left[pool.name]] if pool.name in held else torch.full((pool.size,), start)
            for pool in living
        }

    @contextmanager
    def off(self) -> Iterator[None]:
        """The model as it is without masks."""
        self._on = False
        try:
            yield
        finally:
            self._on = True

    @property
    def hide(self) -> bool:
        """Whether masks are on the model: another pruner would cut what they hold."""
        return bool(self._hooks)

    def remove(self) -> None:
        """Take the masks off the model."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._columns = [], {}

    def state(self) -> dict[str, Any]:
        """What a later `load` needs, tensors and numbers apart."""
        tensors = {"z": self._z.detach(), "projection": self._projection}
        tensors |= {"multipliers": self._multipliers.detach(), "penalties": self._penalties.detach()}
        for name, parameter in self._trained().items():
            held = self._optimizer.state.get(parameter, {})
            tensors |= {f"{name}.{key}": held[key] for key in ("exp_avg", "exp_avg_sq") if key in held}
        return {"masks": {name: each.clone() for name, each in tensors.items()}, "mask_steps": self.steps,
                "mask_began": self.began, "mask_trains": self.trains}  # fmt: skip

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` says, with the units that are left in place."""
        tensors, self.steps, self.began = state["masks"], int(state["mask_steps"]), bool(state["mask_began"])
        self._projection = tensors["projection"].clone()
        with torch.no_grad():
            for name, parameter in (*self._trained().items(), ("multipliers", self._multipliers)):
                parameter.copy_(tensors[name])
        for name, parameter in self._trained().items():
            if f"{name}.exp_avg" in tensors:
                held: dict[str, Tensor] = {key: tensors[f"{name}.{key}"].clone() for key in ("exp_avg", "exp_avg_sq")}
                self._optimizer.state[parameter] = {"step": torch.tensor(float(self.steps)), **held}
        self._place()
        if not state["mask_trains"]:
            self.settle()

    def _trained(self) -> dict[str, nn.Parameter]:
        own = {"multipliers": self._multipliers, "penalties": self._penalties}
        return {"z": self._z} | ({} if self.rule.projects else own)

    def _set_rates(self, share: float, steps: int) -> None:
        own = self._rate if self._rate is not None else self.rule.rate(steps)
        rates = own, MULTIPLIER_RATE * PAPER_STEPS / steps, PENALTY_RATE * PAPER_STEPS / steps
        for group, rate in zip(self._optimizer.param_groups, rates, strict=False):
            group["lr"] = rate * self.rule.decay(share)

    def _by_pool(self, flat: Tensor) -> dict[str, Tensor]:
        return dict(zip(self._sizes, flat.split(list(self._sizes.values())), strict=True))

    def _slopes(self) -> Tensor:
        """(units,) ∂L/∂m, 0 of units that are gone."""
        slopes = torch.zeros_like(self._params)
        parts, left = self._by_pool(slopes), self._by_pool(self._left)
        for pool in self._living:
            for gate in pool.gates:
                if (gradient := self._columns[gate.linear].grad) is not None:  # None: an expert that was not called
                    parts[pool.name][left[pool.name]] += gradient[gate.index].sum(1)
        self.forget_step()
        return slopes

    def _place(self) -> None:
        """Write the masks, as the latents make them now, where the forward pass reads them."""
        with torch.no_grad():
            if self.trains:
                values = self.rule.value(self._z, self._projection)
            else:
                values = torch.ones_like(self._z) if self.rule.gain is None else self.rule.gain(self._z)
            parts, left = self._by_pool(values), self._by_pool(self._left)
            for pool in self._living if self._columns else ():
                own = parts[pool.name][left[pool.name]].unsqueeze(1)
                for gate in pool.gates:
                    self._columns[gate.linear].data[gate.index] = own.expand(-1, gate.index.shape[1])

    def _hook(self, path: str, own: nn.Module) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
        column = self._columns[path]

        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if not self._on:
                return None
            seen = column if module is own else column.detach()  # a copy of the model has its hooks, too
            return (args[0] * seen.to(args[0]), *args[1:])

        hook.gain, hook.masks = column.detach(), self  # type: ignore[attr-defined]
        return hook
