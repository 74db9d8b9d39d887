"""The main path: prune a model while LoRA fine-tunes it, write the small checkpoint, measure both."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, set_seed

from .benchmark import parameter_count
from .callback import PruningCallback
from .criteria import Scoring
from .embedded import quiet_transformers
from .evaluate import Perplexity
from .export import ExportReport, export_checkpoint
from .finetune import add_lora, load_base, run_trainer
from .job import checkpoint_dtype, make_work
from .models import compute_dtype
from .outcome import measure, outcome, write_records
from .prepare import PruneJob
from .progress import Progress
from .pruner import Pruner
from .recording import RecordingCallback


def prune(job: PruneJob, progress: Progress) -> dict[str, Any]:
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
    linears = [path.rsplit(".", 1)[-1] for path in job.budget.units.family.linears]
    model = add_lora(base, config, linears)
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
    _report(job.output, progress)
    return result


def _report(output: Path, progress: Progress) -> None:
    """The page about the run. The run is done and its records are written: nothing here may spoil it."""
    try:
        from .report import write_report

        write_report([str(output)])
    except Exception as error:
        progress.message(f"no report.html ({type(error).__name__}: {error}); try again with: secateur report {output}")


def make_pruner(model: nn.Module, job: PruneJob) -> Pruner:
    """The pruner that the options describe."""
    config = job.config
    scoring = Scoring(config.reduce, config.normalize, config.eta, config.score_linears, config.seed)
    names = (
        "sparsity schedule prune_start prune_end frequency criterion ema attention attention_sparsity allocation "
        "protect_first protect_last floor round_to model_class family shrink"
    )
    options = {name: getattr(config, name) for name in names.split()}
    return Pruner(model, total_steps=job.total_steps, scoring=scoring, **options)


def _train(
    model: PeftModel, pruner: Pruner, job: PruneJob, dtype: torch.dtype, progress: Progress, dense_parameters: int
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


def name_of(dtype: torch.dtype) -> str:
    """`bfloat16` rather than `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")


def _announce(job: PruneJob, pruner: Pruner, progress: Progress) -> None:
    units, cuts = pruner.units, job.schedule.cuts()
    progress.message(
        f"target: {pruner.budget.sparsity:.1%} of {units.prunable_params:,} prunable parameters "
        f"({job.config.allocation}), by {len(cuts)} cuts from step {cuts[0]} to {cuts[-1]} of {job.total_steps}"
    )
    if abs(pruner.budget.sparsity - job.config.sparsity) > 1e-3:
        progress.message(f"(asked for {job.config.sparsity:.1%}; --round-to {job.config.round_to} snaps the widths)")


def _probe(job: PruneJob) -> torch.Tensor:
    """(1, tokens) of real training text, for comparing logits."""
    return torch.tensor([job.blocks[0]["input_ids"][:256]])
