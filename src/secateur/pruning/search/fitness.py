"""How far a candidate is from the model that it is cut out of: KL(before ‖ candidate), by masks, without slicing."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...architecture.units import Member, Pool
from ...parallel.distributed import summed
from ...system.machine.devices import precise
from ..compensation.calibration import Calibration
from ..compensation.layerwise import at_rest

POSITIONS = 64
"""Positions whose logits are widened to float32 at once (64 x 49,152: 12.6 MB)."""


class Fitness:
    """Divergence of candidates from the model as it is, on a few batches.

    Args:
        model: nothing of it is cut yet; LoRA, if any, is at work.
        pools: of its units.
        modules: path -> linear of a unit.
        calibration: the batches; of several processes each has its own, and as many. The model's logits on them are
            kept in the host's memory.
    """

    def __init__(
        self, model: nn.Module, pools: Sequence[Pool], modules: Mapping[str, nn.Module], calibration: Calibration
    ) -> None:
        self._model, self._pools, self._modules = model, pools, modules
        self._batches, self._dtype = calibration.batches, calibration.dtype
        self._counts = [_counted(batch) for batch in self._batches]
        self._switches: dict[str, Tensor] = {}
        self.tokens = [int(total) for total in summed([float(counts.sum()) for counts in self._counts])]
        """Of each batch, over all processes: those that are no padding."""
        with at_rest(model, self._dtype):
            self._wanted = [self._logits(number).cpu() for number in range(len(self._batches))]

    def divergences(self, keep: Mapping[str, Tensor], batches: Sequence[int]) -> list[float]:
        """Σ over the tokens of KL(p ‖ q) in nats, of each of these batches and of all processes together.

        p is the model as it is, q the one of which only the units marked in `keep`, pool name -> (units,), are left.
        """
        with at_rest(self._model, self._dtype), self._masked(keep):
            return summed([self._divergence(number)[0] for number in batches])

    def slopes(self, keep: Mapping[str, Tensor], batches: Sequence[int]) -> dict[str, Tensor]:
        """Pool name -> (units,) ∂ΣKL/∂m of a switch m on each unit, 1 at those that are left and 0 at the others."""
        with at_rest(self._model, self._dtype), self._masked(keep):
            switches = [switch.requires_grad_() for switch in self._switches.values()]
            total = [torch.zeros_like(switch) for switch in switches]
            for number in batches:
                with torch.enable_grad():
                    logits = self._logits(number)
                gradient = self._divergence(number, logits)[1]
                found = torch.autograd.grad(logits, switches, gradient, allow_unused=True)
                for sum_of, each in zip(total, found, strict=True):
                    sum_of += 0 if each is None else each
        flat = summed(torch.cat(total).tolist())
        return dict(zip(self._switches, torch.tensor(flat).split([len(each) for each in total]), strict=True))

    def _divergence(self, number: int, logits: Tensor | None = None) -> tuple[float, Tensor]:
        """Σ KL over a batch, and its gradient with respect to the logits where these are given."""
        found = self._logits(number) if logits is None else logits.detach()
        wanted, counts = self._wanted[number], self._counts[number].to(found.device)
        gradient = torch.zeros_like(found) if logits is not None else found.new_zeros(0)
        total = torch.zeros((), dtype=torch.float64)
        for first in range(0, len(found), POSITIONS):
            part = slice(first, first + POSITIONS)
            wide = torch.float64 if found.dtype == torch.float64 else torch.float32
            p = wanted[part].to(found.device, wide).log_softmax(-1)
            q = found[part].to(wide).log_softmax(-1)
            each = (p.exp() * (p - q)).sum(-1)
            total += each[counts[part]].to(precise(each.device)).sum(dtype=torch.float64).cpu()
            if logits is not None:
                gradient[part] = ((q.exp() - p.exp()) * counts[part].unsqueeze(-1)).to(gradient.dtype)
        return float(total), gradient

    def _logits(self, number: int) -> Tensor:
        """(tokens, vocabulary) of a batch."""
        device = next(self._model.parameters()).device
        inputs = {name: value.to(device) for name, value in self._batches[number].items()}
        logits: Tensor = self._model(**inputs, use_cache=False).logits
        return logits.flatten(0, 1)

    @contextmanager
    def _masked(self, keep: Mapping[str, Tensor]) -> Iterator[None]:
        """Only the units in `keep` are left, inside."""
        hooks = []
        for pool in self._pools:
            self._switches[pool.name] = keep[pool.name].float()
            for gate in pool.gates:
                hooks.append(self._modules[gate.linear].register_forward_pre_hook(self._hook(pool.name, gate)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, pool: str, gate: Member) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            switch, x = self._switches[pool], args[0]
            if not switch.requires_grad and switch.all():
                return None
            entries = switch.repeat_interleave(gate.index.shape[1])
            mask = torch.ones(gate.size).index_put((gate.index.flatten(),), entries)
            return (x * mask.to(x.device, x.dtype), *args[1:])

        return hook


def _counted(batch: Mapping[str, Tensor]) -> Tensor:
    """(sequences · tokens,) bool, which are no padding."""
    mask = batch.get("attention_mask")
    if mask is not None and mask.dim() == 2:
        return mask.bool().flatten()
    return torch.ones(batch["input_ids"].numel(), dtype=torch.bool)
