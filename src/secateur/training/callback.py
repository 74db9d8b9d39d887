"""Trainer events to pruner calls. No logic."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..criteria.masks import NO_SCALED_MASKS
from ..models.surgery import check_shapes
from ..parallel.distributed import barrier, check_weights
from ..parallel.replicas import NO_COPIES, NO_SHARDS
from ..pruning.pruner import Pruner
from ..pruning.schedule import Schedule, tell_unfinished
from ..ranks import RankPruner
from ..system.errors import InputError, NumericsError
from .calibration import calibrate_by_trainer
from .checkpoints import seal
from .guard import NumericsGuard


class Prunes(Protocol):
    """What `Pruner` and `RankPruner` have in common."""

    schedule: Schedule | None
    steps_done: int

    @property
    def model(self) -> nn.Module: ...
    @property
    def replaces(self) -> bool: ...
    def begin(self, total_steps: int) -> None: ...
    def observe(self) -> None: ...
    def skip(self) -> None: ...
    def step(self, optimizer: torch.optim.Optimizer | None = None) -> Any: ...
    def share(self) -> None: ...
    def save(self, folder: Path) -> None: ...


def sharding_of(args: TrainingArguments) -> str:
    """What shards the trained parameters or their optimiser, by Trainer's arguments or accelerate's; "": nothing."""
    if args.deepspeed or AcceleratorState().distributed_type == DistributedType.DEEPSPEED:
        return "DeepSpeed"
    if args.fsdp or AcceleratorState().distributed_type == DistributedType.FSDP:
        return "FSDP"
    return ""


def plain_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The optimiser itself, in whatever accelerate has wrapped it."""
    plain: torch.optim.Optimizer = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
    return plain


def unscaled(optimizer: Any) -> bool:
    """Undo float16's loss scale in the gradients, where it is not undone yet; whether the update will be made.

    Gradients that overflowed are usual at the start: the scaler leaves the step out and lowers the scale.
    """
    scaler = getattr(optimizer, "scaler", None)
    if scaler is None or not scaler.is_enabled():
        return True
    with suppress(RuntimeError):  # it says so where clipping has done it already
        scaler.unscale_(plain_optimizer(optimizer))
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def is_over(state: TrainerState) -> bool:
    """Whether all steps are done, so that the one under way is none.

    Trainer counts epochs: where it goes on from its last step's checkpoint within an epoch, it begins this once more,
    and looks after a step only whether it was the last.
    """
    return 0 < state.max_steps <= state.global_step


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
        guard: what decides when a score is not finite; without one the error is raised.
        seals: declare each checkpoint complete (`checkpoints.find_latest` then finds it); off where another callback
            does so later.
        around: entered for as long as a cut takes.
    """

    def __init__(
        self,
        pruner: Prunes,
        on_cut: Callable[[Any], None] | None = None,
        leave_out: Callable[[], bool] = lambda: False,
        guard: NumericsGuard | None = None,
        seals: bool = True,
        around: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.pruner = pruner
        self.around = around
        self.on_cut = on_cut
        self.leave_out = leave_out
        self.guard = guard
        self.seals = seals
        self._checked = self._began = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Fix the schedule.

        Raises:
            InputError: training goes on from a checkpoint and the pruner does not; only one checkpoint is kept; the
                model is another one, or is to be spread over devices in a way that no cut can follow.
        """
        self._checked = False
        self._check_model(args, kwargs["model"])
        if self.pruner.schedule is None or (self._began and not self.pruner.steps_done):
            self.pruner.begin(state.max_steps)  # again, where Trainer has found a smaller batch to fit
            self._began = True
        if isinstance(self.pruner, Pruner):
            calibrate_by_trainer(self.pruner, kwargs.get("train_dataloader"), args)
        if self.pruner.steps_done < state.global_step:
            raise InputError(
                f"Trainer goes on from step {state.global_step} and the pruner stands at step "
                f"{self.pruner.steps_done}, so its masks and averages would begin anew: call "
                "pruner.load(checkpoint) before trainer.train(resume_from_checkpoint=checkpoint)."
            )
        if self.seals and args.save_total_limit == 1:
            # Trainer deletes the one before while the new one still lacks the pruner's state.
            raise InputError("save_total_limit is 1: give 2, so that one checkpoint is complete at any moment.")

    def _check_model(self, args: TrainingArguments, model: nn.Module) -> None:
        own = next(parameter for parameter in self.pruner.model.parameters() if parameter.requires_grad)
        if not any(parameter is own for parameter in model.parameters()):
            raise InputError(
                "Trainer trains another model than the pruner's: make the pruner of trainer.model (a trainer that is "
                "given a peft_config adds LoRA itself), then trainer.add_callback(PruningCallback(pruner))."
            )
        if args.n_gpu > 1:
            raise InputError(NO_COPIES)
        if args.fp16 and isinstance(self.pruner, Pruner) and self.pruner.scorer.masks is not None:
            raise InputError(f"fp16=True: {NO_SCALED_MASKS.format(criterion=self.pruner.scorer.name)}")
        if self.pruner.replaces and (by := sharding_of(args)):
            raise InputError(NO_SHARDS.format(by=by))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """See that all processes hold the same at the end, and say where the last cuts were never made.

        Raises:
            DisagreementError: they do not.
        """
        check_weights(self.pruner.model, state.global_step)
        if self.seals:  # a run of ours that is stopped goes on later
            tell_unfinished(self.pruner.schedule, self.pruner.steps_done)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if is_over(state):
            unscaled(kwargs["optimizer"])  # a scaler wants to have seen the gradients
            plain_optimizer(kwargs["optimizer"]).zero_grad(set_to_none=True)  # then it moves nothing
            self.pruner.skip()
            return
        if not self._checked:  # by now Trainer has loaded what a checkpoint holds
            check_shapes(kwargs["model"], plain_optimizer(kwargs["optimizer"]))
            self._checked = True
        if self.leave_out() or (self.guard is not None and self.guard.bad) or not unscaled(kwargs["optimizer"]):
            self.pruner.skip()
            return
        try:
            self.pruner.observe()
        except NumericsError as error:
            if self.guard is None:
                raise
            self.guard.bad_score(error, state.global_step + 1)
            self.pruner.skip()
        else:
            if self.guard is not None:
                self.guard.good_score()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if is_over(state):
            return
        schedule = self.pruner.schedule
        due = schedule is not None and schedule.is_cut(self.pruner.steps_done + 1)
        with self.around() if due else nullcontext():
            cut = self.pruner.step(plain_optimizer(kwargs["optimizer"]))
        if cut is None:
            return
        # The best model is one of those that follow the last cut: an earlier one has other units.
        state.best_metric = state.best_global_step = state.best_model_checkpoint = None
        if self.on_cut is not None:
            self.on_cut(cut)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take back a step that was none: see `is_over`."""
        if state.global_step > state.max_steps:
            state.global_step = state.max_steps
            control.should_training_stop = True
            control.should_log = control.should_save = control.should_evaluate = False

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
        if self.seals:
            barrier()  # every process has written its random state
        if not args.should_save:  # another process does
            return
        assert args.output_dir is not None
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.pruner.save(folder)
        if self.seals:
            seal(folder)
