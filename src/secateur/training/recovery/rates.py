"""Learning rates: of the parts of what is trained, after the last cut, and after LoRA's new beginnings."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from ...config.lora import LoraOptions
from ...models.surgery import plain

LORA, LORA_B = "lora", "lora_b"
LONGEST_WARMUP = 10
WARMUP_SHARE = 5
"""After LoRA has begun anew its rate rises over a fifth of the steps until it does so again, and at most ten: ReLoRA
(arXiv:2307.05695, §3) takes 50 to 100 of 5,000. Without moments the first steps of AdamW are all of full size."""


def lora_rates(options: LoraOptions, lr: float) -> dict[str, float]:
    """Part of LoRA -> its peak rate: one for both factors, or B's own (LoRA+, arXiv:2402.12354).

    PEFT's `create_loraplus_optimizer` makes such groups, too, but gives norms, biases and all else of one dimension B's
    rate, and all else of two A's.
    """
    return {LORA: lr} | ({} if options.lora_plus is None else {LORA_B: options.lora_plus * lr})


@dataclass(frozen=True)
class Rates:
    """How the learning rates of a run's parts differ from the one that Trainer's schedule says.

    Attributes:
        peaks: part of what is trained -> its peak rate; LoRA's is the one that the others are relative to.
        kinds: name of a parameter in the base model -> its part (`Beside.kinds`); all others are LoRA's.
        after: all rates are this many times higher once `since` updates are made.
        restarts: updates after which LoRA begins anew, ascending.
        end: updates of the training.
    """

    peaks: Mapping[str, float]
    kinds: Mapping[str, str] = field(default_factory=dict)
    after: float = 1.0
    since: int = 0
    restarts: tuple[int, ...] = ()
    end: int = 0

    @property
    def usual(self) -> bool:
        """Whether they are what Trainer does anyway."""
        return len(self.peaks) == 1 and self.after == 1 and not self.restarts

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """The optimiser's groups: each trained parameter under its part's rate. LoRA's, the first, is logged."""
        found: dict[str, list[nn.Parameter]] = {part: [] for part in self.peaks}
        for name, parameter in _trained(model):
            found[self._part_of(name)].append(parameter)
        return [{"params": found[part], "lr": peak, "weight_decay": 0.0} for part, peak in self.peaks.items()]

    def _part_of(self, name: str) -> str:
        up = ".lora_B." in name or ".lora_embedding_B." in name
        return LORA_B if up and LORA_B in self.peaks else self.kinds.get(name, LORA)

    def factor(self, part: str, update: int) -> float:
        """What a part's rate is multiplied by at an update, counted from 0."""
        after = self.after if update >= self.since else 1.0
        return after * (self._warmup(update) if part.startswith(LORA) else 1.0)

    def _warmup(self, update: int) -> float:
        begun = [step for step in self.restarts if step <= update]
        if not begun:
            return 1.0
        following = self.restarts[len(begun)] if len(begun) < len(self.restarts) else self.end
        steps = min(LONGEST_WARMUP, (following - begun[-1]) // WARMUP_SHARE)
        return min(1.0, (update - begun[-1] + 1) / (steps + 1))

    def apply_(self, scheduler: Any) -> None:
        """Multiply what Trainer's scheduler says by `factor`."""
        assert isinstance(scheduler, LambdaLR)
        parts = list(self.peaks) if len(scheduler.lr_lambdas) == len(self.peaks) else [LORA] * len(scheduler.lr_lambdas)
        scheduler.lr_lambdas = [
            partial(_product, usual, partial(self.factor, part))
            for usual, part in zip(scheduler.lr_lambdas, parts, strict=True)
        ]


def _product(usual: Any, factor: Any, update: int) -> float:
    return float(usual(update) * factor(update))


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Name in the base model -> parameter, of what asks for gradients."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield plain(name).removeprefix("base_model.model."), parameter
