"""Masks in training: at o and at the FFN, with an optimiser of their own, beside whatever trains the model."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..architecture.units import Pool
from ..parallel.distributed import average_
from ..system.errors import NumericsError
from .masks import NOISE, Constraint, MaskRule, lagrangian

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
        seed: of the noise; all processes draw alike.

    Attributes:
        steps: updates that were made.
        began: whether some units may be hidden.
        trains: False once the last cut is made; what scales a unit then stays.
    """

    def __init__(
        self, rule: MaskRule, pools: Iterable[Pool], constraints: Sequence[Constraint], rate: float | None,
        dtype: torch.dtype, seed: int = 0,
    ) -> None:  # fmt: skip
        self.rule, self.steps, self.began, self.trains = rule, 0, False, True
        self._rate, self._constraints, self._seed = rate, constraints, seed
        by_name = {pool.name: pool for pool in pools}
        ordered = [by_name[name] for constraint in constraints for name in constraint.pools]
        self._sizes = {pool.name: pool.size for pool in ordered}
        self._group_sizes = [sum(self._sizes[name] for name in constraint.pools) for constraint in constraints]
        self._params = torch.cat([torch.full((pool.size,), float(pool.unit_params), dtype=dtype) for pool in ordered])
        self._kept = torch.tensor([constraint.kept for constraint in constraints], dtype=dtype)
        units = len(self._params)
        self._left = torch.ones(units, dtype=torch.bool)
        self._z = nn.Parameter(torch.full((units,), rule.start, dtype=dtype))
        self._beside = self._noise() if rule.noisy else torch.ones(units, dtype=dtype)
        """(units,) the projection, or the noise of the step under way."""
        self._multipliers = nn.Parameter(torch.zeros(len(constraints), 2, dtype=dtype))
        self._penalties = nn.Parameter(torch.zeros(len(constraints), dtype=dtype))
        groups: list[dict[str, Any]] = [{"params": [self._z], "betas": rule.betas}]
        if not rule.projects:
            groups += [{"params": [each], "maximize": True} for each in (self._multipliers, self._penalties)]
        self._optimizer = torch.optim.Adam(groups)
        self._living: list[Pool] = []
        self._held: dict[tuple[str, int], Tensor] = {}
        """(linear, side) -> what its outputs (0) or inputs (1) are multiplied by in training, entry by entry."""
        self._still: dict[tuple[str, int], Tensor] = {}
        """The same without noise."""
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
        sides = {(each.linear, each.dim): each.size for pool in self._living for each in self.rule.places(pool)}
        for side, size in sides.items():
            own = modules[side[0]]
            self._held[side] = torch.ones(size, dtype=self._z.dtype, requires_grad=self.trains)
            self._still[side] = torch.ones(size, dtype=self._z.dtype) if self.rule.noisy else self._held[side].detach()
            if side[1] == 0:
                self._hooks.append(own.register_forward_hook(self._row_hook(side, own)))
                continue
            # What is known of a linear's input is known of the masked one, but for units that a projection only hides:
            # compensation would see nothing of what they did.
            hook = self._hook(side, own)
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
            loss = self.rule.value(self._z, self._beside) @ slopes + self.pressure(share)
            loss.backward()
        self._set_rates(share, steps)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.steps += 1
        if self.rule.bound is not None:
            self._z.data.clamp_(-self.rule.bound, self.rule.bound)
        if self.rule.noisy:
            self._beside = self._noise()
        self._place()

    def _noise(self) -> Tensor:
        """(units,) of the step to come, the same whenever it is drawn."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self.steps)
        drawn = torch.rand(len(self._z), generator=generator, dtype=torch.float64)
        return drawn.clamp(NOISE, 1 - NOISE).to(self._z.dtype)

    def pressure(self, share: float) -> Tensor:
        """What drives the masks to the target: the augmented Lagrangian of the expected size; 0 for a projection."""
        if self.rule.retention is None:
            return self._z.new_zeros(())
        scores = self.rule.retention(self._z, share) * self._left
        parts = scores.split(self._group_sizes), self._params.split(self._group_sizes)
        multipliers = self._multipliers * self._multipliers.new_tensor([1.0, float(self.rule.undecided)])
        return lagrangian(*parts, self.rule.kept(self._kept, share), multipliers, self._penalties)

    def expected_size(self, share: float) -> float:
        """Fraction of the maskable parameters that the scores of retention say is there; of a projection, that is."""
        with torch.no_grad():
            scores = self._beside if self.rule.retention is None else self.rule.retention(self._z, share)
            return float((scores * self._left) @ self._params / self._params.sum())

    def project(self, keep: Mapping[str, Tensor]) -> None:
        """Pool name -> (units,) bool, what the next forward pass sees."""
        self._beside = torch.cat([keep[name] for name in self._sizes]).to(self._z.dtype)
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
        for held in self._held.values():
            held.grad = None

    def settle(self) -> None:
        """The last cut is made: what stays keeps its scale, or is as it was."""
        if not self.trains:
            return
        self.trains = False
        for held in self._held.values():
            held.requires_grad_(False)
            held.grad = None
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
        self._hooks, self._held, self._still = [], {}, {}

    def state(self) -> dict[str, Any]:
        """What a later `load` needs, tensors and numbers apart."""
        tensors = {"z": self._z.detach(), "beside": self._beside}
        tensors |= {"multipliers": self._multipliers.detach(), "penalties": self._penalties.detach()}
        for name, parameter in self._trained().items():
            held = self._optimizer.state.get(parameter, {})
            tensors |= {f"{name}.{key}": held[key] for key in ("exp_avg", "exp_avg_sq") if key in held}
        return {"masks": {name: each.clone() for name, each in tensors.items()}, "mask_steps": self.steps,
                "mask_began": self.began, "mask_trains": self.trains}  # fmt: skip

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` says, with the units that are left in place."""
        tensors, self.steps, self.began = state["masks"], int(state["mask_steps"]), bool(state["mask_began"])
        self._beside = tensors["beside"].clone()
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
            for each in self.rule.places(pool):
                if (gradient := self._held[each.linear, each.dim].grad) is not None:  # None: an expert not called
                    parts[pool.name][left[pool.name]] += gradient[each.index].sum(1)
        self.forget_step()
        return slopes

    def _place(self) -> None:
        """Write the masks, as the latents make them now, where the forward pass reads them."""
        with torch.no_grad():
            still = torch.ones_like(self._z) if self.rule.gain is None else self.rule.gain(self._z)
            values = self.rule.value(self._z, self._beside) if self.trains else still
            self._write(self._held, values)
            if self.rule.noisy:
                self._write(self._still, still)

    def _write(self, held: dict[tuple[str, int], Tensor], values: Tensor) -> None:
        parts, left = self._by_pool(values), self._by_pool(self._left)
        for pool in self._living if held else ():
            own = parts[pool.name][left[pool.name]].unsqueeze(1)
            for each in self.rule.places(pool):
                held[each.linear, each.dim].data[each.index] = own.expand(-1, each.index.shape[1])

    def _hook(
        self, side: tuple[str, int], own: nn.Module
    ) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            seen = self._seen(side, module, own)
            return None if seen is None else (args[0] * seen.to(args[0]), *args[1:])

        hook.gain, hook.masks = self._still[side], self  # type: ignore[attr-defined]
        return hook

    def _row_hook(self, side: tuple[str, int], own: nn.Module) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            seen = self._seen(side, module, own)
            return None if seen is None else output * seen.to(output)

        hook.row_gain, hook.masks = self._still[side], self  # type: ignore[attr-defined]
        return hook

    def _seen(self, side: tuple[str, int], module: nn.Module, own: nn.Module) -> Tensor | None:
        """What a forward pass is multiplied by."""
        if not self._on:
            return None
        # A layer that is computed twice is in training mode both times, whether gradients are on or not.
        if self.rule.noisy and not module.training and not torch.is_grad_enabled():
            return self._still[side]
        return (
            self._held[side] if module is own else self._held[side].detach()
        )  # a copy of the model has its hooks, too
