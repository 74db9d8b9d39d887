"""Trainer events to pruner calls. No logic."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate.optimizer import AcceleratedOptimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .schedule import Schedule
from .surgery import check_shapes


class Prunes(Protocol):
    """What `Pruner` and `RankPruner` have in common."""

    schedule: Schedule | None

    def begin(self, total_steps: int) -> None: ...
    def observe(self) -> None: ...
    def skip(self) -> None: ...
    def step(self, optimizer: torch.optim.Optimizer | None = None) -> Any: ...
    def share(self) -> None: ...
    def save(self, folder: Path) -> None: ...


def plain_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The optimiser itself, in whatever accelerate has wrapped it."""
    plain: torch.optim.Optimizer = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
    return plain


class PruningCallback(TrainerCallback):
    """Prunes inside transformers' or TRL's Trainer: `Trainer(..., callbacks=[PruningCallback(pruner)])`.

    Scores are taken in `on_pre_optimizer_step`, where gradients are accumulated, averaged and clipped
    (clipping scales all units of a step alike); cuts follow the update, in `on_optimizer_step`.

    Args:
        pruner: a `Pruner` (units of the model) or a `RankPruner` (the adapter's rank).
        on_cut: called after each cut.
        leave_out: says whether the step under way is to stay out of the averages.
    """

    def __init__(
        self,
        pruner: Prunes,
        on_cut: Callable[[Any], None] | None = None,
        leave_out: Callable[[], bool] = lambda: False,
    ) -> None:
        self.pruner = pruner
        self.on_cut = on_cut
        self.leave_out = leave_out
        self._checked = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._checked = False
        if self.pruner.schedule is None:
            self.pruner.begin(state.max_steps)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self._checked:  # by now Trainer has loaded what a checkpoint holds
            check_shapes(kwargs["model"], plain_optimizer(kwargs["optimizer"]))
            self._checked = True
        if self.leave_out():
            self.pruner.skip()
        else:
            self.pruner.observe()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        cut = self.pruner.step(plain_optimizer(kwargs["optimizer"]))
        if cut is not None and self.on_cut is not None:
            self.on_cut(cut)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put the pruner's state into Trainer's checkpoint: its adapter has the shapes that this state says."""
        self.pruner.share()  # every process takes part
        if not args.should_save:  # another process does
            return
        assert args.output_dir is not None
        self.pruner.save(Path(args.output_dir) / f"checkpoint-{state.global_step}")
