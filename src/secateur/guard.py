"""What goes wrong in a run, named: gradients that are not finite, a loss that diverges, memory that runs out."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .errors import NumericsError, OutOfMemoryError
from .progress import Progress

IN_A_ROW = 3
"""Bad steps in a row that end a run (`--on-nan stop`)."""


class NumericsGuard(TrainerCallback):
    """Drops the gradients of a step in which one is NaN or infinite, so that the update changes nothing.

    Comes before the pruner's callback, which then leaves the step out of the averages. The start-up steps that a
    float16 loss scaler skips on its way to a scale that fits are not counted.

    Args:
        policy: `stop` ends the run after `IN_A_ROW` bad steps in a row, `skip` never does.
    """

    def __init__(self, policy: str, progress: Progress) -> None:
        self.policy = policy
        self.progress = progress
        self.bad = False
        """Whether the step under way is left out."""
        self._in_a_row = 0
        self._started = False

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        model = kwargs["model"]
        assert isinstance(model, torch.nn.Module)
        name = first_not_finite(model)
        self.bad = name is not None
        if name is None:
            self._in_a_row, self._started = 0, True
            return
        for parameter in model.parameters():
            parameter.grad = None
        if args.fp16 and not self._started:
            return
        self._in_a_row += 1
        step = state.global_step + 1
        self.progress.event(f"step {step}: the gradient of {name} is not finite; the step is left out")
        if self.policy == "stop" and self._in_a_row >= IN_A_ROW:
            raise NumericsError(
                f"step {step}: the gradient of {name} is not finite, like those of the {IN_A_ROW - 1} steps before: "
                "lower --lr, or compute in --dtype float32. The last checkpoint, if there is one, is from before."
            )


def first_not_finite(model: torch.nn.Module) -> str | None:
    """The name of the first parameter with a NaN or infinite gradient; one host synchronisation when all is well.

    Gradients may lie on several devices (`device_map`).
    """
    named = [(name, parameter.grad) for name, parameter in model.named_parameters() if parameter.grad is not None]
    if not named:
        return None
    home = named[0][1].device
    finite = torch.stack([torch.isfinite(gradient).all().to(home) for _, gradient in named])
    if bool(finite.all()):
        return None
    return named[int((~finite).nonzero()[0])][0]


class DivergenceWatch(TrainerCallback):
    """Says once that the loss has risen far above its lowest level; the run goes on."""

    WINDOW, RISE = 10, 3.0
    """Steps that a level is the mean of; nats (natural-log units of the loss) above the lowest level: a cut to half the
    parameters costs 1 to 2."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self._recent: deque[float] = deque(maxlen=self.WINDOW)
        self._lowest = float("inf")
        self._said = False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        self._recent.append(logs["loss"])
        if len(self._recent) < self.WINDOW:
            return
        level = sum(self._recent) / self.WINDOW
        self._lowest = min(self._lowest, level)
        if level > self._lowest + self.RISE and not self._said:
            self._said = True
            self.progress.event(
                f"step {state.global_step}: the loss diverges: {level:.2f} on average over {self.WINDOW} steps, after "
                f"{self._lowest:.2f}. Lower --lr, or prune less or more slowly."
            )


@contextmanager
def memory_for(part: str, remedy: str) -> Iterator[None]:
    """Memory that runs out in here is reported as needed by `part`.

    Raises:
        OutOfMemoryError: with the part and the remedy.
    """
    try:
        yield
    except OutOfMemoryError:
        raise
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if type(error) is RuntimeError and "can't allocate memory" not in str(error):
            raise
        raise OutOfMemoryError(f"out of memory while {part}. {remedy}") from error


TRAIN_LESS = (
    "Raise --accumulation (smaller micro-batches) or lower --seq-len; then a lower --rank or a smaller model. A run "
    "with --save-steps goes on with --resume."
)
"""What makes a step smaller."""
WRITE_LATER = (
    "Training is done: with --save-steps, the same command with --resume on a machine with more memory writes it."
)
