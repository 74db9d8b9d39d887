"""What pruned models are compared with: the same LoRA training without pruning."""

from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..checkpoint.export import round_
from ..models.devices import device_of, widened
from ..models.original import restore_, with_plain_lora
from ..models.stored import checkpoint_dtype
from ..system.progress import Progress, phase
from ..training.checkpoints import step_of
from ..training.finetune import add_lora, load_base
from ..training.guard import DivergenceWatch, NumericsGuard
from ..training.job import make_work
from ..training.prepare import PruneJob
from ..training.recording import RecordingCallback
from ..training.saving import Interruption, SavingCallback
from ..training.trainer import run_trainer
from .tracking import Tracking


@dataclass
class WatchedSteps(TrainerCallback):
    """A run that prunes nothing while it trains: its steps alone."""

    done: int = 0
    said: str = "not pruned"

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.done = state.global_step

    def steps_done(self) -> int:
        return self.done

    def facts(self) -> dict[str, Any]:
        return {}

    def words(self) -> str:
        return self.said

    def cuts_left(self) -> int:
        return 0

    def sizes(self) -> dict[str, float]:
        return {}


def train_dense(job: PruneJob, dtype: torch.dtype, progress: Progress) -> nn.Module:
    """LoRA merged into the whole model, as a checkpoint would hold it.

    With the guards, records and checkpoints of a run that prunes.
    """
    linears = [path.rsplit(".", 1)[-1] for path in job.budget.units.family.linears]
    model = add_lora(load_base(job, dtype), job.config, linears)
    make_work(job)
    watched = WatchedSteps(step_of(job.checkpoint) if job.checkpoint else 0)
    with (
        Tracking(job, progress) as tracking,
        Interruption(job.output, saved=job.checkpoint is not None) as interruption,
        closing(RecordingCallback(watched, job, progress, lambda: None, tell=tracking.step)) as recording,
    ):
        guard, watch = NumericsGuard(job.config.on_nan, progress), DivergenceWatch(progress)
        saving = SavingCallback(every_run=job.config.save_steps > 0)
        callbacks = [guard, watch, watched, recording, saving, interruption]
        run_trainer(model, job, dtype, callbacks, checkpoint=job.checkpoint)
    interruption.check(watched.done)
    assert isinstance(model, PeftModel)
    if job.config.load_in is not None:
        restore_(model, {}, job.source, trust=job.config.trust_remote_code)
        model = with_plain_lora(model)
        nn.Module.to(model, device_of(job.config))
    with phase("merging LoRA"):
        merged: PreTrainedModel = model.merge_and_unload()
    round_(merged, checkpoint_dtype(job.model_config))
    return widened(merged, dtype)
