"""Trainer events to checkpoints that a later run can go on from, and signals to a tidy stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Self

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..parallel.distributed import barrier, largest
from ..system.errors import InputError, InterruptedRun, LostProcessError, SecateurError, disk_is_full, unwritable
from ..system.launcher import rank
from ..system.output import room_words
from ..system.terminal.signals import HANG_UP, STOPPING, mute_after, stop_at_once
from .checkpoints import drop_unfinished, find_latest, rotate, seal
from .job import Job


class SavingCallback(TrainerCallback):
    """Seals each checkpoint, the pruner's state included, and rotates; comes after the pruner's callback.

    Args:
        every_run: also save at the last step, so that a fault while the result is written costs no training.
    """

    def __init__(self, every_run: bool) -> None:
        self.every_run = every_run

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.every_run and state.global_step == state.max_steps:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        assert args.output_dir is not None
        work = Path(args.output_dir)
        barrier()  # every process has written its random state
        if args.should_save:
            seal(work / f"checkpoint-{state.global_step}")
            rotate(work)


class Interruption(TrainerCallback):
    """SIGINT, SIGTERM and SIGHUP: the step is finished and saved, then the run stops; a second one stops at once.

    Use it as a context manager around training. Comes after the callback that seals checkpoints.

    Args:
        saved: the run goes on from a checkpoint, so what was trained so far is safe.
    """

    def __init__(self, output: Path, saved: bool = False) -> None:
        self.output = output
        self.saved = saved
        self.received: int | None = None
        self.agreed = 0
        """The signal that some process has received: all stop after the same step."""
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            # A hang-up that is ignored (nohup) stays so.
            numbers = [s for s in STOPPING if s != HANG_UP or signal.getsignal(s) != signal.SIG_IGN]
            self._previous = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if self._previous and isinstance(error, LostProcessError):
            # A launcher sends SIGTERM to those that are left: what they have to say must not be cut short.
            self._previous[signal.SIGTERM] = signal.SIG_IGN
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.saved = False
        self.agreed = largest(self.received or 0)
        if self.agreed:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.saved = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.agreed = self.agreed or largest(self.received or 0)  # one that came after the last step's end

    def check(self, step: int) -> None:
        """After training: say that it was stopped.

        Raises:
            InterruptedRun: a signal came, and the last step is saved.
            KeyboardInterrupt: one came so late that the last step was not to be saved any more.
        """
        number = self.agreed or self.received
        if not number:
            return
        if not self.saved:
            stop_at_once(number)
        raise InterruptedRun(
            f"stopped after step {step}, which is saved. The same command with --resume goes on from there; "
            f"{self.output} is untouched.",
            number,
        )

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            stop_at_once(number)
        self.received = number
        mute_after(number)
        print("\nstopping after this step; once more stops at once", flush=True)


@contextmanager
def saved_or_said(job: Job, model: nn.Module) -> Iterator[None]:
    """A disk that is full or gone while training, said so.

    Raises:
        InputError: a checkpoint or a record could not be written; the checkpoints before are intact.
    """
    try:
        yield
    except SecateurError:
        raise
    except Exception as error:  # each library that writes has an error of its own
        full, gone = disk_is_full(error), unwritable(error)
        if not full and gone is None:
            raise
        if rank() == 0:
            with suppress(OSError):
                drop_unfinished(job.work)
        last, _ = find_latest(job.work)
        back = f"goes on from {last.name}" if last else "starts anew (no checkpoint is complete)"
        raise InputError(
            f"no space left in {job.work} while training ({room_words(job.work, _checkpoint_bytes(model, last))}): "
            f"make room, then the same command with --resume {back}."
            if full
            else f"{job.work} cannot be written to any more, while training ({gone}): see to it, then the same command "
            f"with --resume {back}."
        ) from error


def _checkpoint_bytes(model: nn.Module, last: Path | None) -> int:
    """What a training checkpoint takes: as much as the last one, or LoRA's factors and their two moments at least."""
    before = sum(path.stat().st_size for path in last.rglob("*") if path.is_file()) if last else 0
    return max(before, 3 * sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad))
