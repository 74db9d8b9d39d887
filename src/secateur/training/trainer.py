"""transformers' Trainer as `prune` and `adapt` run it."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.helpers import disable_input_dtype_casting
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from ..config.options import steps_of
from ..config.prune import PruneConfig
from ..config.run import RunConfig
from ..data.pairs import Pairs
from ..models.devices import autocast
from ..models.memory import TRAIN_LESS, memory_for
from ..parallel.distributed import average_gradients_, check_weights, join, processes
from ..system.errors import InputError
from ..system.machine.devices import kind_of, take_own
from ..system.machine.heap import freed_pages_kept
from .checkpoints import step_of
from .contact import contact_kept
from .guard import NumericsGuard
from .job import Job
from .loss import causal_lm_loss, labels_at, positions_with_labels
from .recovery.rates import Rates
from .saving import saved_or_said

ACCELERATE_DEVICE = "ACCELERATE_TORCH_DEVICE"
"""The variable by which accelerate is told which device to take."""


def steps_at_peak(config: RunConfig, total_steps: int) -> int | None:
    """The step until which `--lr-decay after-cuts` keeps the learning rate up; None: it decays from the start."""
    if not isinstance(config, PruneConfig) or config.lr_decay != "after-cuts":
        return None
    # With the one-shot schedule all steps of the training itself follow the cut.
    return 0 if config.schedule == "one-shot" else steps_of(config.prune_end, total_steps)


@dataclass
class OnDevice(TrainingArguments):
    """Trainer's options, of a training on one device: Trainer itself would take the machine's first accelerator."""

    place: str = "cpu"

    @property
    def device(self) -> torch.device:
        place = torch.device(self.place)
        if "_setup_devices" not in vars(self):
            with _told_to_accelerate(place):
                found = super().device
            if found.type != place.type:
                raise InputError(f"transformers trains on {found} here, and --device {place} is asked for.")
            self._n_gpu = min(1, self._n_gpu)  # one process trains on one device: DataParallel's copies know no cuts
            take_own(place)
        return place


@contextmanager
def _told_to_accelerate(place: torch.device) -> Iterator[None]:
    """Inside, accelerate takes this device where it would choose one."""
    before = os.environ.get(ACCELERATE_DEVICE)
    os.environ[ACCELERATE_DEVICE] = str(place)
    try:
        yield
    finally:
        if before is None:
            del os.environ[ACCELERATE_DEVICE]
        else:
            os.environ[ACCELERATE_DEVICE] = before


def training_arguments(
    config: RunConfig, total_steps: int, dtype: torch.dtype, work: Path, device: torch.device
) -> TrainingArguments:
    """Trainer's options: AdamW, clipping at 1, every step logged; decay over the whole run or after its last cut."""
    warmup = steps_of(config.lr_warmup, total_steps)
    held = steps_at_peak(config, total_steps)
    return OnDevice(
        place=str(device),
        remove_unused_columns=False,  # every column is an input; a model of its own code may take them as **kwargs
        output_dir=str(work),
        max_steps=total_steps,
        per_device_train_batch_size=config.batch_size // config.accumulation,
        gradient_accumulation_steps=config.accumulation,
        learning_rate=config.lr,
        lr_scheduler_type="cosine" if held is None else "warmup_stable_decay",
        lr_scheduler_kwargs=None if held is None else {"num_decay_steps": total_steps - max(warmup, held)},
        warmup_steps=warmup,
        fp16=dtype == torch.float16,
        use_cpu=device.type == "cpu",
        ddp_timeout=config.process_timeout,
        seed=config.seed,
        save_strategy="steps" if config.save_steps else "no",
        save_steps=config.save_steps or 500,
        logging_steps=1,
        logging_nan_inf_filter=False,
        dataloader_drop_last=True,
        dataloader_pin_memory=kind_of(device).pins_memory,
        report_to=[],
        disable_tqdm=True,
        log_level="error",
    )


def run_trainer(
    model: PeftModel,
    job: Job,
    dtype: torch.dtype,
    callbacks: list[TrainerCallback],
    *,
    steps: int | None = None,
    distillation: "Distillation | None" = None,
    checkpoint: Path | None = None,
    rates: Rates | None = None,
) -> None:
    """LoRA fine-tuning with transformers' Trainer.

    Args:
        steps: optimiser steps; by default the job's.
        checkpoint: go on from there; the model has the shapes of its weights already. Of the last step's only the
            weights are read.
        rates: learning rates other than the one that the job's options say.
    """
    device = next(model.parameters()).device
    join(device, job.config.process_timeout)  # Trainer's own call leaves the time-out out on CPUs
    steps = steps or job.total_steps
    if checkpoint is not None and step_of(checkpoint) >= steps:
        # Trainer counts epochs, not steps: it would begin one that is not whole once more, and take a step in it.
        model.load_adapter(str(checkpoint), model.active_adapter, is_trainable=True)
        return
    trainer = AutocastTrainer(
        model=model,
        args=training_arguments(job.config, steps, dtype, job.work, device),
        train_dataset=job.blocks,
        data_collator=job.blocks.collate if isinstance(job.blocks, Pairs) else None,
        compute_loss_func=causal_lm_loss,
        callbacks=callbacks,
    )
    trainer.computation = dtype
    trainer.distillation = distillation
    trainer.rates = rates
    trainer.guard = next((callback for callback in callbacks if isinstance(callback, NumericsGuard)), None)
    trainer.remove_callback(PrinterCallback)
    # Under autocast the matmuls cast for themselves; PEFT's cast of every input to float32 is then waste.
    casting = disable_input_dtype_casting(model) if dtype != torch.float32 else nullcontext()
    with (
        casting,
        freed_pages_kept(device),
        memory_for("training", TRAIN_LESS),
        saved_or_said(job, model),
        contact_kept(job),
    ):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    check_weights(model, trainer.state.global_step)  # after the last cut, and where none takes place, nothing else does


@dataclass(frozen=True)
class Distillation:
    """A loss against the dense model's outputs."""

    teacher: Callable[[], AbstractContextManager[None]]
    """Inside this context the model in training is the teacher."""
    alpha: float
    temperature: float


class AutocastTrainer(Trainer):
    """Trainer that runs the forward pass in bfloat16 without widening its outputs, makes logits only where there are
    labels, and can ask a teacher.

    `TrainingArguments(bf16=True)` makes accelerate convert a model's outputs to float32: for a large
    vocabulary the logits are then the largest tensor of the step, twice.
    """

    computation = torch.float32
    distillation: Distillation | None = None
    guard: NumericsGuard | None = None
    rates: Rates | None = None

    @cached_property
    def _picks_positions(self) -> bool:
        """Whether the model makes logits of some positions alone; DataParallel would share the positions out."""
        base: Any = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        return self.args.n_gpu <= 1 and "logits_to_keep" in signature(base.forward).parameters

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Trainer's own, or one with a group for each rate."""
        if self.optimizer is None and self.rates is not None and len(self.rates.peaks) > 1:
            own, options = self.get_optimizer_cls_and_kwargs(self.args)
            assert isinstance(self.model, nn.Module)
            self.optimizer = own(self.rates.groups(self.model), **options)
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Trainer's own, with what `rates` multiplies it by."""
        new = self.lr_scheduler is None
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if new and self.rates is not None and not self.rates.usual:
            self.rates.apply_(scheduler)
        return scheduler

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        """No DistributedDataParallel: `training_step` averages the gradients, which follow the shapes."""
        if processes() == 1:
            return super()._wrap_model(model, training, dataloader)
        return model if isinstance(model, _Alone) else _Alone(model)

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(model, inputs, *args, **kwargs)
        if self.guard is not None:
            self.guard.rerun = partial(self._once_more, model)
            self.guard.saw(loss, inputs)
        if self.accelerator.sync_gradients:
            average_gradients_(model.parameters())
        return loss

    def _once_more(self, model: nn.Module, inputs: Any) -> Any:
        """The loss of a micro-batch again, in the same precision."""
        with self.compute_loss_context_manager():
            return self.compute_loss(model, self._prepare_inputs(inputs))

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> AbstractContextManager[Any]:
        if self.computation == torch.bfloat16:
            return autocast(self.args.device.type, torch.bfloat16)
        return super().autocast_smart_context_manager(cache_enabled)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        inputs = dict(inputs)
        if self._picks_positions and (positions := positions_with_labels(inputs["labels"])) is not None:
            inputs |= {"labels": labels_at(inputs["labels"], positions), "logits_to_keep": positions}
        if self.distillation is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")
        with self.distillation.teacher():
            wanted = model(**inputs).logits
        outputs = model(**inputs)
        alpha, temperature = self.distillation.alpha, self.distillation.temperature
        loss = causal_lm_loss(outputs, labels, num_items_in_batch, teacher=wanted, alpha=alpha, temperature=temperature)
        if num_items_in_batch is not None:
            loss = loss * processes()  # counted over all of them, and gradients are averaged
        return (loss, outputs) if return_outputs else loss


class _Alone(nn.Module):
    """A model that Trainer takes for wrapped already."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)
