"""The main path: prune a model while LoRA fine-tunes it, write the small checkpoint, measure both."""

import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
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

from .benchmark import Latency, checkpoint_bytes, forward_flops, forward_latency, parameter_count
from .callback import PruningCallback
from .config import PruneConfig, steps_of
from .criteria import Scoring
from .embedded import quiet_transformers
from .errors import InputError
from .evaluate import Perplexity, perplexity
from .export import ExportReport, export_checkpoint
from .loss import causal_lm_loss
from .modelcard import model_card
from .models import autocast, compute_dtype, default_device, load_model
from .prepare import Job, checkpoint_dtype, make_work
from .progress import Progress
from .pruner import Cut, Pruner
from .recording import RecordingCallback
from .records import environment, write_json

LATENCY_BATCH, LATENCY_REPEATS = 1, 7


def prune(job: Job, progress: Progress) -> dict[str, Any]:
    """Run a checked job to its end and return what `result.json` holds.

    Raises:
        InputError, NumericsError, VerificationError: see `errors`; the output folder is then untouched.
    """
    config = job.config
    started = time.perf_counter()
    make_work(job.work)
    set_seed(config.seed)
    dtype = compute_dtype(config.dtype)
    base = load_base(job, dtype)
    progress.message(f"model {config.model}: {parameter_count(base):,} parameters, computing in {name_of(dtype)}")
    dense = measure(base, job, dtype)
    dense_size = {"parameters": parameter_count(base), "bytes": _source_bytes(job, base)}
    model = add_lora(base, job)
    pruner = make_pruner(model, job)
    _announce(job, pruner, progress)
    train_seconds = _train(model, pruner, job, dtype, progress, dense_size["parameters"])
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
        original = load_base(job, dtype)
        result.update(
            {
                "status": "done",
                "config": asdict(config),
                "environment": environment(),
                "data": {"training": job.data, "evaluation": job.eval_info, **_token_counts(job)},
                "dense": dense_size | _perplexity_dict(dense),
                "pruned": {"parameters": parameter_count(small), "bytes": checkpoint_bytes(folder)}
                | _perplexity_dict(measure(small, job, dtype)),
                "sparsity": _sparsity(pruner, small, original),
                "shapes": [dict(zip(("heads", "kv_heads", "ffn"), s.key(), strict=True))
                           for s in pruner.units.shapes_after(pruner.keep)],
                "speed": _speed(original, small, job, dtype),
                "alternatives": pruner.alternatives(),
                "export": report.to_dict() | {"folder": str(job.output)},
                "train_seconds": train_seconds,
                "total_seconds": time.perf_counter() - started,
            }
        )  # fmt: skip
        write_json(folder / "result.json", result)
        source = Path(job.source.path) if Path(job.source.path).is_dir() else None
        (folder / "README.md").write_text(model_card(folder, result, source), encoding="utf-8")
        write_json(folder / "units.json", units_record(pruner))
        shutil.copyfile(job.work / "metrics.jsonl", folder / "metrics.jsonl")

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


def measure(model: nn.Module, job: Job, dtype: torch.dtype) -> Perplexity | None:
    """Perplexity on the run's evaluation text, if there is one."""
    if job.eval_ids is None:
        return None
    return perplexity(model, job.eval_ids, seq_len=job.eval_seq_len, batch_size=2, dtype=dtype)


def units_record(pruner: Pruner) -> dict[str, Any]:
    """What `units.json` holds: per pool what stayed, and per cut what went with which score."""
    return {
        "pools": {
            pool.name: {
                "units": pool.size,
                "unit_params": pool.unit_params,
                "kept": pruner.keep[pool.name].nonzero().flatten().tolist(),
            }
            for pool in pruner.units.pools
        },
        "cuts": [vars(cut) for cut in pruner.cuts],
        "scores_before_cuts": {name: scores.tolist() for name, scores in pruner.scores_before_cuts.items()},
    }


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


def _token_counts(job: Job) -> dict[str, int]:
    per_step = job.config.batch_size * job.config.seq_len
    return {
        "documents": job.blocks.n_documents,
        "available_tokens": job.blocks.n_tokens,
        "tokens_per_step": per_step,
        "trained_tokens": per_step * job.total_steps,
        "steps": job.total_steps,
    }


def _perplexity_dict(measured: Perplexity | None) -> dict[str, Any]:
    return {"perplexity": measured.to_dict() if measured else None}


def _sparsity(pruner: Pruner, small: nn.Module, dense: nn.Module) -> dict[str, Any]:
    """Asked and reached; the latter recounted from the parameters of the checkpoint as loaded."""
    gone = parameter_count(dense) - parameter_count(small)
    assert gone == pruner.removed_params, "the written checkpoint lacks other parameters than were pruned"
    return {
        "target": pruner.budget.sparsity,
        "reached": gone / pruner.units.prunable_params,
        "prunable_parameters": pruner.units.prunable_params,
        "removed_parameters": gone,
        "model": gone / parameter_count(dense),
    }


def _speed(dense: nn.Module, small: nn.Module, job: Job, dtype: torch.dtype) -> dict[str, Any]:
    """Forward latency of both, alternating in one run, beside the ratio of their FLOPs."""
    models = {"dense": dense, "pruned": small}
    with torch.no_grad():
        latency: dict[str, Latency] = forward_latency(
            models, batch=LATENCY_BATCH, seq_len=job.config.seq_len, repeats=LATENCY_REPEATS, dtype=dtype
        )
    flops = {name: forward_flops(model, job.config.seq_len) for name, model in models.items()}
    return {
        **{name: latency[name].to_dict() | {"flops": flops[name]} for name in models},
        "speedup": latency["dense"].median_ms / latency["pruned"].median_ms,
        "flop_speedup": flops["dense"] / flops["pruned"],
    }


def _source_bytes(job: Job, base: nn.Module) -> int:
    """Bytes of the dense checkpoint's weights on disk; of the tensors where it is not a local folder."""
    folder = Path(job.source.path)
    found = checkpoint_bytes(folder) if folder.is_dir() else 0
    return found or sum(p.numel() * p.element_size() for p in base.parameters())


__all__ = ["Cut", "add_lora", "load_base", "make_pruner", "measure", "prune", "training_arguments", "units_record"]
