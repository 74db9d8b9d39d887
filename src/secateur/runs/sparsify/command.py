"""The main path of `secateur sparsify`: zeros by a pattern, LoRA over them, an ordinary checkpoint."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, set_seed

from ...architecture.layered import is_layered, layered_family
from ...architecture.units import Linear, weight_of
from ...checkpoint.adapter import merged_model
from ...checkpoint.card import sparse_card
from ...checkpoint.comparing import MOST_KL, compare_logits, in_precision, logits_of, wide_of
from ...checkpoint.export import ExportReport, Finish, round_, write_checkpoint
from ...config.formats import LAYERED, STOCK
from ...config.sparsify import LEARNT
from ...evaluation.perplexity import Perplexity
from ...models.benchmark import parameter_count
from ...models.devices import device_of, dtype_of, name_of, widened
from ...models.memory import WRITE_LATER, memory_for
from ...models.stored import checkpoint_dtype
from ...sparsity.masked import keep_pattern_
from ...sparsity.pst import Pst, PstCallback
from ...sparsity.walk import sparsify_layers
from ...system.locks import locked
from ...system.progress import Progress, phase
from ...system.records import environment, write_json
from ...training.checkpoints import drop_work, failure_noted, note_result, step_of
from ...training.finetune import add_lora, check_packing, check_resumable, load_base
from ...training.guard import DivergenceWatch, NumericsGuard
from ...training.job import make_work, probe_of
from ...training.recording import RecordingCallback
from ...training.recovery.rates import Rates, lora_rates
from ...training.saving import Interruption, SavingCallback
from ...training.trainer import run_trainer
from ..baseline import WatchedSteps
from ..hub.public import weights_sha256
from ..outcome import keep_run, measure, numerics, report_on, source_bytes, token_counts, training_kept
from ..tracking import Tracking
from .job import SparsifyJob

FILE = "sparse.safetensors"
"""In the run's folder: the linears with zeros, and which of their weights stay, for a run that goes on."""
FEWER = "Lower --calibration-tokens or --batch-size, or choose another --method."


def sparsify(job: SparsifyJob, progress: Progress) -> dict[str, Any]:
    """Run a checked job to its end and return what `result.json` holds.

    Raises:
        InputError, NumericsError, VerificationError: see `system.errors`; the output folder is then untouched.
    """
    with locked(job.work), failure_noted(job.work), Tracking(job, progress) as tracking:
        result = _sparsify(job, progress, tracking)
    report_on(job.output, progress)
    return result


def _sparsify(job: SparsifyJob, progress: Progress, tracking: Tracking) -> dict[str, Any]:
    config, started = job.config, time.perf_counter()
    for note in job.notes:
        progress.message(note)
    set_seed(config.seed)
    dtype = dtype_of(config)
    base = load_base(job, dtype, experts_apart=False)
    progress.message(f"model {config.model}: {parameter_count(base):,} parameters, computing in {name_of(dtype)}")
    dense = measure(base, job, dtype, progress)
    make_work(job)
    (job.work / "metrics.jsonl").touch()  # of a run without steps, too
    pruning, learnt = time.perf_counter(), config.method == LEARNT
    keep = {} if learnt else zeros_(base, job, dtype, progress)
    seconds = {"sparsify_seconds": time.perf_counter() - pruning}
    untrained, training = None, time.perf_counter()
    model: nn.Module = base
    if job.total_steps:
        untrained = None if learnt else measure(base, job, dtype, progress)
        if untrained is not None:
            progress.message(f"perplexity {untrained.perplexity:.2f} before training")
        tracking.before = dense if learnt else untrained
        model, keep = train(base, keep, job, dtype, progress, tracking)
        seconds["train_seconds"] = time.perf_counter() - training
    with phase("merging"):
        small, merge = merged(model, keep, job)
        round_(small, checkpoint_dtype(job.model_config))
    after = measure(widened(small, dtype), job, dtype, progress)
    round_(small, checkpoint_dtype(job.model_config))  # as they are by now: nothing is lost
    progress.message("writing, then reading back in a fresh process ...")
    result: dict[str, Any] = {}

    def finish(folder: Path, report: ExportReport) -> None:
        result.update(outcome(job, small, keep, (dense, untrained, after), report))
        result.update(seconds, total_seconds=time.perf_counter() - started, numerics=numerics(job))
        result["export"]["sha256"] = weights_sha256(folder)
        tracking.end(result)
        write_json(folder / "result.json", result)
        keep_run(job, folder, "sparsify")
        place = Path(job.source.path) if Path(job.source.path).is_dir() else None
        (folder / "README.md").write_text(sparse_card(result, place), encoding="utf-8")
        note_result(job.work, folder)

    with memory_for("writing the result", WRITE_LATER), training_kept(job):
        write(small, job, merge, finish)
    if not config.save_steps:
        drop_work(job.work)
    return result


def zeros_(base: PreTrainedModel, job: SparsifyJob, dtype: torch.dtype, progress: Progress) -> dict[str, Tensor]:
    """Put the zeros into the base: path of a linear -> (out, in) bool, which weights stay.

    A run that goes on takes those that it began with.
    """
    config, saved = job.config, job.work / FILE
    if job.checkpoint is not None and saved.is_file():
        found = load_file(saved)
        for name in (name for name in found if name.endswith(".keep")):
            path = name.removesuffix(".keep")
            base.get_submodule(path).weight.data.copy_(found[f"{path}.weight"])  # type: ignore[operator]
        return {name.removesuffix(".keep"): mask for name, mask in found.items() if name.endswith(".keep")}
    if config.packing == "separate":
        check_packing(base)
    rows = torch.tensor(job.calibration_rows).split(config.batch_size // config.accumulation)
    batches = [job.blocks.batch(part, base.device)[0] for part in rows if len(part)]
    told = progress.counting(f"{config.method}, {config.pattern}", "layers")
    with memory_for("pruning layer by layer", FEWER):
        keep = sparsify_layers(base, job.layers, config.zeros, config.method, batches, dtype=dtype, told=told)
    if config.save_steps:
        tensors = {f"{path}.keep": mask for path, mask in keep.items()}
        tensors |= {f"{path}.weight": base.get_submodule(path).weight.data for path in keep}  # type: ignore[misc]
        partial = saved.with_suffix(".partial")
        with phase("saving the zeros"):
            save_file(tensors, partial)
        partial.rename(saved)
    return keep


def train(
    base: PreTrainedModel,
    keep: dict[str, Tensor],
    job: SparsifyJob,
    dtype: torch.dtype,
    progress: Progress,
    tracking: Tracking,
) -> tuple[PeftModel, dict[str, Tensor]]:
    """LoRA over the base with its zeros, as `prune` trains it; or with zeros that it learns. And which weights stay."""
    config, learnt = job.config, job.config.method == LEARNT
    model = add_lora(base, config, job.linears, scaling=1.0 if learnt else None)
    pst = Pst(model, config.zeros.share) if learnt else None
    if config.mask_lora:
        keep_pattern_(model, keep)
    if job.checkpoint is not None:
        check_resumable(model, job.checkpoint)
    done = step_of(job.checkpoint) if job.checkpoint else 0
    steps = WatchedSteps(done, config.zeros.text) if pst is None else PstCallback(pst, job.total_steps, done)
    guard, watch = NumericsGuard(config.on_nan, progress), DivergenceWatch(progress)
    tracking.begin(steps)
    evaluate: Callable[[], Perplexity | None] = lambda: measure(model, job, dtype, progress)  # noqa: E731
    noted: Callable[[], dict[str, Any]] = lambda: guard.note() | watch.note()  # noqa: E731
    recording = RecordingCallback(steps, job, progress, evaluate, noted, tracking.step)
    with Interruption(job.output, saved=job.checkpoint is not None) as interruption, closing(recording):
        saving = SavingCallback(every_run=config.save_steps > 0)
        callbacks = [guard, watch, steps, recording, saving, interruption]
        rates = Rates(lora_rates(config, config.lr))
        run_trainer(model, job, dtype, callbacks, checkpoint=job.checkpoint, rates=rates)
    interruption.check(steps.steps_done())
    return model, keep if pst is None else pst.keep()


def merged(model: nn.Module, keep: dict[str, Tensor], job: SparsifyJob) -> tuple[PreTrainedModel, tuple[float, float]]:
    """What is to be written, in float32 at least, and how far it is from what was trained (KL, largest |Δlogit|).

    With the pattern kept, LoRA's part where zeros are is dropped, and the two differ by what it did. With zeros that
    were learnt, or LoRA that was masked, it did nothing there.
    """
    if not isinstance(model, PeftModel):
        assert isinstance(model, PreTrainedModel)
        return model, (0.0, 0.0)
    ids, wide = probe_of(job), wide_of(checkpoint_dtype(job.model_config))
    with in_precision(model, wide):
        trained = logits_of(model, ids)
    small = merged_model(model, keep if job.config.keep_pattern else {})
    dropped = job.config.keep_pattern and job.config.method != LEARNT and not job.config.mask_lora
    allowed = float("inf") if dropped else MOST_KL[wide]
    with in_precision(small, wide):
        return small, compare_logits("the merged", logits_of(small, ids), "the trained", trained, allowed)


@phase("merging and writing the result")
def write(small: PreTrainedModel, job: SparsifyJob, merge: tuple[float, float], finish: Finish) -> ExportReport:
    """The checkpoint, verified before it is put in place."""
    small.cpu()
    small.config.use_cache = True
    family = layered_family(small.config) if is_layered(small.config) else None
    format = STOCK if family is None else LAYERED
    return write_checkpoint(small, family, job.output, format, probe_of(job), job.tokenizer, merge, finish)


def outcome(
    job: SparsifyJob,
    small: PreTrainedModel,
    keep: dict[str, Tensor],
    measured: tuple[Perplexity | None, Perplexity | None, Perplexity | None],
    report: ExportReport,
) -> dict[str, Any]:
    """What `result.json` holds, but for the times.

    Args:
        measured: of the dense model, of that with its zeros before training, and of the result.
    """
    dense, untrained, after = (None if found is None else found.to_dict() for found in measured)
    zeros = {path: int((_weight(small, path) == 0).sum()) for path in keep}
    kept = job.total_steps == 0 or job.config.keep_pattern
    assert not kept or all(not _weight(small, path)[~mask.cpu()].any() for path, mask in keep.items()), (
        "zeros were filled"
    )
    entries, parameters = sum(mask.numel() for mask in keep.values()), parameter_count(small)
    return {
        "kind": "sparsify",
        "status": "done",
        "config": asdict(job.config),
        "environment": environment(device_of(job.config)),
        "data": {"training": job.data, "evaluation": job.eval_info, **token_counts(job)},
        "dense": {"parameters": parameters, **source_bytes(job, parameters), "perplexity": dense},
        "pruned": {"parameters": parameters, "bytes": report.bytes, "perplexity": after},
        "zeros": {
            "linears": len(keep),
            "entries": entries,
            "zeros": sum(zeros.values()),
            "share": sum(zeros.values()) / entries,
            "of_model": sum(zeros.values()) / parameters,
            "calibration_tokens": len(job.calibration_rows) * job.config.seq_len,
            "perplexity_before_training": untrained,
        },
        "export": report.to_dict() | {"folder": str(job.output)},
    }


def _weight(model: nn.Module, path: str) -> Tensor:
    linear = model.get_submodule(path)
    assert isinstance(linear, Linear)
    return weight_of(linear).detach()
