"""The main path: prune a model while LoRA fine-tunes it, write the small checkpoint, measure both."""

import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback

from .benchmark import parameter_count
from .callback import PruningCallback
from .config import PruneConfig, steps_of
from .criteria import Scoring
from .embedded import quiet_transformers
from .errors import InputError
from .evaluate import Perplexity
from .export import ExportReport, export_checkpoint
from .loss import causal_lm_loss
from .models import autocast, compute_dtype, default_device, load_model
from .outcome import measure, outcome, write_records
from .prepare import Job, checkpoint_dtype, make_work
from .progress import Progress
from .pruner import Pruner
from .recording import RecordingCallback


def prune(job: Job, progress: Progress) -> dict[str, Any]:
    """Run a checked job to its end and return what `result.json` holds.

    Raises:
        InputError, NumericsError, VerificationError: see `errors`; the output folder is then untouched.
    """
    config = job.config
    started = time.perf_counter()
    set_seed(config.seed)
    dtype = compute_dtype(config.dtype)
    base = load_base(job, dtype)
    dense_parameters = parameter_count(base)
    progress.message(f"model {config.model}: {dense_parameters:,} parameters, computing in {name_of(dtype)}")
    model = add_lora(base, job)
    pruner = make_pruner(model, job)
    make_work(job.work)
    with model.disable_adapter():
        dense_perplexity = measure(model, job, dtype)
    _announce(job, pruner, progress)
    train_seconds = _train(model, pruner, job, dtype, progress, dense_parameters)
    progress.message("writing, then reading back in a fresh process ...")
    result: dict[str, Any] = {}

    def finish(folder: Path, report: ExportReport) -> None:
        """Measure the written checkpoint itself and put the records beside it."""
        pruner.close()
        with quiet_transformers():
            small = AutoModelForCausalLM.from_pretrained(
                folder, dtype="auto", trust_remote_code=report.format != "stock"
            )
        nn.Module.to(small, base.device)
        dense = load_base(job, dtype)
        result.update(outcome(job, pruner, dense, small, dense_perplexity, report, folder, dtype))
        result.update(train_seconds=train_seconds, total_seconds=time.perf_counter() - started)
        write_records(folder, job, pruner, result)

    export_checkpoint(
        model,
        pruner.live,
        pruner.live_keep,
        job.output,
        tokenizer=job.tokenizer,
        model_class=config.model_class,
        overwrite=config.overwrite,
        probe_ids=_probe(job),
        dtype=checkpoint_dtype(job.model_config),
        finish=finish,
    )
    if not config.save_steps:
        shutil.rmtree(job.work)
    return result


def load_base(job: Job, dtype: torch.dtype) -> PreTrainedModel:
    """The model in its checkpoint's own precision (or wider, for float32 runs): the merge must lose nothing."""
    model = load_model(job.source, trust_remote_code=job.config.trust_remote_code)
    model.config.use_cache = False
    if dtype == torch.float32 and model.dtype != torch.float64:
        model.float()
    nn.Module.to(model, default_device())
    return model


def add_lora(base: PreTrainedModel, job: Job) -> PeftModel:
    """LoRA on every prunable linear (or `--targets`), or the user's own adapter."""
    config = job.config
    if config.adapter:
        try:
            return PeftModel.from_pretrained(base, config.adapter, is_trainable=True)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(
                f"--adapter {config.adapter}: not a LoRA adapter that fits this model ({reason})."
            ) from None
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha or 2 * config.rank,
        lora_dropout=config.dropout,
        target_modules=list(config.targets) or [path.rsplit(".", 1)[-1] for path in job.budget.units.family.linears],
        task_type="CAUSAL_LM",
    )
    try:
        model = get_peft_model(base, lora)
    except ValueError as error:
        raise InputError(f"--targets {' '.join(config.targets)}: {' '.join(str(error).split())[:300]}") from None
    assert isinstance(model, PeftModel)
    return model


def make_pruner(model: nn.Module, job: Job) -> Pruner:
    """The pruner that the options describe."""
    config = job.config
    scoring = Scoring(config.reduce, config.normalize, config.eta, config.score_linears, config.seed)
    names = (
        "sparsity schedule prune_start prune_end frequency criterion ema attention attention_sparsity allocation "
        "protect_first protect_last floor round_to model_class family shrink"
    )
    options = {name: getattr(config, name) for name in names.split()}
    return Pruner(model, total_steps=job.total_steps, scoring=scoring, **options)


def training_arguments(config: PruneConfig, total_steps: int, dtype: torch.dtype, work: Path) -> TrainingArguments:
    """Trainer's options: AdamW, cosine decay, clipping at 1, every step logged."""
    if dtype == torch.float16 and not torch.cuda.is_available():
        raise InputError("--dtype float16 trains on a GPU only: use bfloat16 or float32 here.")
    return TrainingArguments(
        output_dir=str(work),
        max_steps=total_steps,
        per_device_train_batch_size=config.batch_size // config.accumulation,
        gradient_accumulation_steps=config.accumulation,
        learning_rate=config.lr,
        lr_scheduler_type="cosine",
        warmup_steps=steps_of(config.lr_warmup, total_steps),
        fp16=dtype == torch.float16,
        use_cpu=not torch.cuda.is_available(),
        seed=config.seed,
        save_strategy="steps" if config.save_steps else "no",
        save_steps=config.save_steps or 500,
        logging_steps=1,
        logging_nan_inf_filter=False,
        dataloader_drop_last=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )


def _train(
    model: PeftModel, pruner: Pruner, job: Job, dtype: torch.dtype, progress: Progress, dense_parameters: int
) -> float:
    """Train and prune; returns seconds."""
    evaluate: Callable[[], Perplexity | None] = lambda: measure(model, job, dtype)  # noqa: E731
    recording = RecordingCallback(pruner, job, progress, evaluate, dense_parameters=dense_parameters)
    callbacks = [PruningCallback(pruner, on_cut=recording.on_cut), recording]
    started = time.perf_counter()
    run_trainer(model, job, dtype, callbacks)
    recording.close()
    assert pruner.steps_done >= job.schedule.last_cut
    return time.perf_counter() - started


def run_trainer(model: PeftModel, job: Job, dtype: torch.dtype, callbacks: list[TrainerCallback]) -> None:
    """LoRA fine-tuning with transformers' Trainer."""
    trainer = AutocastTrainer(
        model=model,
        args=training_arguments(job.config, job.total_steps, dtype, job.work),
        train_dataset=job.blocks,
        compute_loss_func=causal_lm_loss,
        callbacks=callbacks,
    )
    trainer.computation = dtype
    trainer.remove_callback(PrinterCallback)
    # Under autocast the matmuls cast for themselves; PEFT's cast of every input to float32 is then waste.
    with disable_input_dtype_casting(model) if dtype != torch.float32 else nullcontext():
        trainer.train()
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)


class AutocastTrainer(Trainer):
    """Trainer that runs the forward pass in bfloat16 without widening its outputs.

    `TrainingArguments(bf16=True)` makes accelerate convert a model's outputs to float32: for a large
    vocabulary the logits are then the largest tensor of the step, twice.
    """

    computation = torch.float32

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> AbstractContextManager[Any]:
        if self.computation == torch.bfloat16:
            return autocast(self.args.device.type, torch.bfloat16)
        return super().autocast_smart_context_manager(cache_enabled)


def name_of(dtype: torch.dtype) -> str:
    """`bfloat16` rather than `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")


def _announce(job: Job, pruner: Pruner, progress: Progress) -> None:
    units, cuts = pruner.units, job.schedule.cuts()
    progress.message(
        f"target: {pruner.budget.sparsity:.1%} of {units.prunable_params:,} prunable parameters "
        f"({job.config.allocation}), by {len(cuts)} cuts from step {cuts[0]} to {cuts[-1]} of {job.total_steps}"
    )
    if abs(pruner.budget.sparsity - job.config.sparsity) > 1e-3:
        progress.message(f"(asked for {job.config.sparsity:.1%}; --round-to {job.config.round_to} snaps the widths)")


def _probe(job: Job) -> torch.Tensor:
    """(1, tokens) of real training text, for comparing logits."""
    return torch.tensor([job.blocks[0]["input_ids"][:256]])
