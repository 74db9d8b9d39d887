"""What goes wrong in a run, named: gradients that are not finite and a loss that diverges."""

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..parallel.distributed import largest
from ..parallel.sharding import is_sharded
from ..system.errors import NumericsError
from ..system.machine.devices import own_randomness
from ..system.progress import Progress

IN_A_ROW = 3
"""Bad steps in a row that end a run (`--on-nan stop`)."""
START_UP = 20
"""Steps that a float16 loss scaler may take to find its scale: from 65,536, 20 halvings come to less than 1."""


class NumericsGuard(TrainerCallback):
    """Leaves out a step whose loss or gradient is NaN or infinite, so that the update changes nothing; one with such a
    score is left out of the averages only.

    Comes before the pruner's callback, which then leaves the step out of the averages. The start-up steps that a
    float16 loss scaler skips on its way to a scale that fits are not counted, up to `START_UP` of them.

    Args:
        policy: `stop` ends the run after `IN_A_ROW` bad steps in a row, `skip` never does.
    """

    def __init__(self, policy: str, progress: Progress) -> None:
        self.policy = policy
        self.progress = progress
        self.left_out: str | None = None
        """Why the step under way is left out."""
        self.rerun: Callable[[Any], object] | None = None
        """The forward pass of a micro-batch, for a look at every module; set by the trainer."""
        self._seen: list[tuple[Tensor, Any]] = []
        self._in_a_row = self._scores_in_a_row = self._start_up = 0
        self._started = False

    @property
    def bad(self) -> bool:
        """Whether the step under way is left out."""
        return self.left_out is not None

    def saw(self, loss: Tensor, inputs: Any) -> None:
        """Note a micro-batch's loss; looked at once per step, together with the gradients."""
        self._seen.append((loss.detach(), inputs))

    def note(self) -> dict[str, str]:
        """What metrics.jsonl says of the step."""
        return {} if self.left_out is None else {"left_out": self.left_out}

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        model = kwargs["model"]
        assert isinstance(model, torch.nn.Module)
        seen, self._seen = self._seen, []
        place = first_not_finite([("loss", loss) for loss, _ in seen] + gradients_of(model))
        self.left_out = None
        # A loss is one process's own; what one of them leaves out, all must.
        if not largest(int(place is not None)):
            self._in_a_row, self._started = 0, True
            return
        for parameter in model.parameters():
            parameter.grad = None
        if args.fp16 and not self._started and self._start_up < START_UP:
            self._start_up += 1
            self.left_out = "the float16 loss scaler looks for its scale"
            return
        fault = self._words(place, model, seen)
        self._in_a_row += 1
        self._leave_out(state.global_step + 1, fault, self._in_a_row)

    def bad_score(self, error: NumericsError, step: int) -> None:
        """A score is not finite: the same policy; gradients that are finite do not end such a row.

        Raises:
            NumericsError: the run is to stop.
        """
        self._scores_in_a_row += 1
        fault = str(error).partition(": ")[2].partition(". ")[0].partition(": ")[0]
        self._leave_out(step, fault, self._scores_in_a_row, "the averages")

    def good_score(self) -> None:
        """A row of bad scores, if there was one, ends."""
        self._scores_in_a_row = 0

    def _leave_out(self, step: int, fault: str, in_a_row: int, of: str = "") -> None:
        self.left_out = fault
        self.progress.message(f"step {step}: {fault}; the step is left out" + (f" of {of}" if of else ""))
        if self.policy == "stop" and in_a_row >= IN_A_ROW:
            raise NumericsError(
                f"step {step}: {fault}, like those of the {IN_A_ROW - 1} steps before: "
                "lower --lr, or compute in --dtype float32. The last checkpoint, if there is one, is from before."
            )

    def _words(self, place: str | None, model: nn.Module, seen: list[tuple[Tensor, Any]]) -> str:
        """What is not finite, and the first module that computes it."""
        if place is None:
            return "the loss of another process is not finite"
        what = "the loss is not finite" if place == "loss" else f"the gradient of {place} is not finite"
        # A sharded module's forward pass takes all processes.
        if self.rerun is None or not seen or any(map(is_sharded, model.modules())):
            return what
        inputs = next((inputs for loss, inputs in seen if not torch.isfinite(loss).all()), seen[-1][1])
        module = first_faulty_module(model, lambda: self.rerun and self.rerun(inputs))
        if module is None:
            return what + ", though the output of every module is"
        return f"{what}, first in the output of {module}"


def gradients_of(model: nn.Module) -> list[tuple[str, Tensor]]:
    """The names and gradients of the parameters that have one."""
    return [(name, parameter.grad) for name, parameter in model.named_parameters() if parameter.grad is not None]


def first_not_finite(named: list[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor with a NaN or infinite entry; one host synchronisation when all is well.

    They may lie on several devices (`device_map`).
    """
    if not named:
        return None
    home = named[0][1].device
    finite = torch.stack([torch.isfinite(tensor).all().to(home) for _, tensor in named])
    if bool(finite.all()):
        return None
    return named[int((~finite).nonzero()[0])][0]


def first_faulty_module(model: nn.Module, run: Callable[[], object]) -> str | None:
    """The first module in a forward pass whose output is not finite; None where all are.

    The pass draws its own random numbers and leaves no gradient: training that goes on does not notice it.
    """
    found: list[str] = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple | list) else [output]
            numbers = [t for t in tensors if isinstance(t, Tensor) and t.is_floating_point()]
            if not found and not all(bool(torch.isfinite(t).all()) for t in numbers):
                found.append(name.removeprefix("base_model.model."))

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    device = next(model.parameters()).device
    try:
        with torch.no_grad(), own_randomness(device):
            run()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


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
        self._now = False

    def note(self) -> dict[str, bool]:
        """What metrics.jsonl says of the step."""
        return {"diverges": True} if self._now else {}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        self._now = False
        if not logs or "loss" not in logs or not math.isfinite(logs["loss"]):
            return
        self._recent.append(logs["loss"])
        if len(self._recent) < self.WINDOW:
            return
        level = sum(self._recent) / self.WINDOW
        self._lowest = min(self._lowest, level)
        if level > self._lowest + self.RISE and not self._said:
            self._said = self._now = True
            self.progress.message(
                f"step {state.global_step}: the loss diverges: {level:.2f} on average over {self.WINDOW} steps, after "
                f"{self._lowest:.2f}. Lower --lr, or prune less or more slowly."
            )
