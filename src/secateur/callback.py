"""Trainer events to pruner calls. No logic."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate.optimizer import AcceleratedOptimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .pruner import Pruner
from .ranks import RankPruner
from .schedule import Schedule


class Prunes(Protocol):
    """What `Pruner` and `RankPruner` have in common."""

    schedule: Schedule | None

    def begin(self, total_steps: int) -> None: ...
    def observe(self) -> None: ...
    def skip(self) -> None: ...
    def step(self, optimizer: torch.optim.Optimizer | None = None) -> Any: ...
    def share(self) -> None: ...
    def save(self, folder: Path) -> None: ...


def scalars(pruner: Prunes) -> dict[str, float]:
    """How much has gone, in numbers to plot."""
    if isinstance(pruner, RankPruner):
        return {"rank": sum(pruner.ranks.values()) / len(pruner.ranks)}
    if isinstance(pruner, Pruner):
        return {"sparsity": pruner.sparsity, "removed_parameters": pruner.removed_params}
    return {}


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

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.pruner.schedule is None:
            self.pruner.begin(state.max_steps)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.leave_out():
            self.pruner.skip()
        else:
            self.pruner.observe()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        optimizer = kwargs["optimizer"]
        if isinstance(optimizer, AcceleratedOptimizer):
            optimizer = optimizer.optimizer
        cut = self.pruner.step(optimizer)
        if cut is not None and self.on_cut is not None:
            self.on_cut(cut)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Put how much has gone beside the loss, in what other callbacks get after this one and in the history.

        Trainer's trackers (`report_to`) stand before its own `callbacks=`: to have this in them too, put the callback
        first with `trainer.callback_handler.callbacks.insert(0, PruningCallback(pruner))`.
        """
        if logs is None or "loss" not in logs:
            return
        for name, value in scalars(self.pruner).items():
            logs.setdefault(name, value)
            if state.log_history:
                state.log_history[-1].setdefault(name, value)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put the pruner's state into Trainer's checkpoint: its adapter has the shapes that this state says."""
        self.pruner.share()  # every process takes part
        if not args.should_save:  # another process does
            return
        assert args.output_dir is not None
        self.pruner.save(Path(args.output_dir) / f"checkpoint-{state.global_step}")
