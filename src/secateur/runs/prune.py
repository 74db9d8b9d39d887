"""The main path of `secateur prune`: prune while LoRA fine-tunes, write the small checkpoint, measure both models."""

import gc
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoConfig, PreTrainedModel, set_seed

from ..architecture.building import empty_model
from ..architecture.discovery import find_units
from ..architecture.experts import unstack_experts
from ..architecture.stock import auto_class
from ..checkpoint.comparing import same_after_restoring
from ..checkpoint.export import ExportReport, Finish, export_checkpoint
from ..checkpoint.streaming import export_streamed
from ..checkpoint.verify import reader_waits
from ..config.formats import FORMATS
from ..config.options import part_of
from ..config.pruning import PruningOptions
from ..config.ranks import RankOptions
from ..config.schedule import ScheduleOptions
from ..evaluation.perplexity import Perplexity
from ..models.benchmark import parameter_count
from ..models.devices import device_of, dtype_of, name_of, widened, with_room
from ..models.memory import WRITE_LATER, memory_for
from ..models.stored import checkpoint_dtype
from ..models.surgery import removals
from ..pruning.pruner import Pruner
from ..ranks import RankPruner
from ..system.errors import OutOfMemoryError, out_of_memory
from ..system.launcher import rank
from ..system.locks import locked
from ..system.machine.devices import free_cache
from ..system.progress import Progress, cutting, phase
from ..system.quiet import quiet_transformers
from ..system.records import write_json
from ..training.calibration import calibrate
from ..training.callback import PruningCallback
from ..training.checkpoints import drop_work, failure_noted, note_result
from ..training.contact import contact_kept
from ..training.finetune import add_lora, check_resumable, load_base, load_original, without_weights
from ..training.guard import DivergenceWatch, NumericsGuard
from ..training.job import make_work, probe_of
from ..training.one_shot import score_and_cut
from ..training.prepare import PruneJob, lora_names
from ..training.recording import RecordingCallback, WatchedUnits, cut_words, rank_cut_words
from ..training.recovery.teacher import Teacher
from ..training.recovery.whole import Recovery, make_recovery
from ..training.routing import drop_by_routing, note_experts, tell_unused
from ..training.saving import Interruption, SavingCallback
from ..training.trainer import Distillation, run_trainer
from .outcome import measure, outcome, report_on, training_kept, write_records
from .target import announce, reached_time
from .tracking import Tracking


def prune(job: PruneJob, progress: Progress, *, page: bool = True) -> dict[str, Any]:
    """Run a checked job to its end and return what `result.json` holds (nothing in processes other than the first).

    Args:
        page: whether report.html is drawn, to which no records are to come.
    Raises:
        InputError, NumericsError, VerificationError: see `system.errors`; the output folder is then untouched.
    """
    if rank() > 0:
        return _prune(job, progress, Tracking(job, progress))
    with locked(job.work), failure_noted(job.work), Tracking(job, progress) as tracking:
        result = _prune(job, progress, tracking)
    if page:
        report_on(job.output, progress)
    return result


def _prune(job: PruneJob, progress: Progress, tracking: Tracking) -> dict[str, Any]:
    config = job.config
    started = time.perf_counter()
    for note in job.notes:
        progress.message(note)
    set_seed(config.seed)
    dtype = dtype_of(config)
    base = load_base(job, dtype)
    progress.message(f"model {config.model}: {parameter_count(base):,} parameters, computing in {name_of(dtype)}")
    tracking.before = start_perplexity = measure(base, job, dtype, progress)
    training = time.perf_counter()
    dropped = drop_by_routing(base, job, dtype, progress)
    note_experts(job, dropped)
    model, pruner, recovery = fine_tune_and_prune(base, job, dtype, progress, tracking)
    train_seconds = time.perf_counter() - training
    if rank() > 0:
        return {}  # the first process writes
    progress.message("writing, then reading back in a fresh process ...")
    result, streamed = dict[str, Any](), config.stream_export
    if streamed or config.load_in is not None:  # the model as it is computes the logits to compare with
        recovery.beside.narrow_()
    device = base.device if config.load_in is None or streamed else restore_original(model, pruner, job)

    def finish(folder: Path, report: ExportReport) -> None:
        """Measure the written checkpoint itself and put the records beside it."""
        pruner.close()

        def measured(place: torch.device) -> dict[str, Any]:
            alone = place.type == "meta"
            small = load_result(job, folder, report, place, dtype)
            dense = without_weights(job) if streamed or alone else load_original(job, dtype, place)
            dense_perplexity = None if alone else start_perplexity
            if config.load_in is not None:
                dense_perplexity = None if streamed or alone else measure(dense, job, dtype, progress)
            found = outcome(job, pruner, dense, small, dense_perplexity, report, folder, dtype, progress, dropped)
            return found | reached_time(job, pruner, dense, small, dtype)

        # What was trained is still there.
        place = with_room(device_of(config), 2 * report.bytes) if streamed else device
        result.update(measured_somewhere(measured, place, progress))
        result.update(train_seconds=train_seconds, total_seconds=time.perf_counter() - started)
        result.update(recovery.record(), target=asdict(job.target))
        if config.load_in is not None:
            found = start_perplexity.to_dict() if start_perplexity else None
            result["quantised"] = {"load_in": config.load_in, "perplexity": found}
        tracking.end(result)
        write_records(folder, job, pruner, result)
        note_result(job.work, folder)

    with memory_for("writing the result", WRITE_LATER), training_kept(job), reader_waits():
        write_result(model, pruner, job, finish)
    if not config.save_steps:
        drop_work(job.work)
    return result


@phase("loading the result")
def load_result(
    job: PruneJob, folder: Path, report: ExportReport, place: torch.device, dtype: torch.dtype
) -> nn.Module:
    """The written checkpoint on a device, to compute in a dtype; on the meta device its shapes alone."""
    trust = FORMATS[report.format].trust
    with quiet_transformers():
        if place.type == "meta":
            small = empty_model(AutoConfig.from_pretrained(folder, trust_remote_code=trust), trust_remote_code=trust)
        else:
            small = auto_class(job.model_config).from_pretrained(folder, dtype="auto", trust_remote_code=trust)
            nn.Module.to(widened(small, dtype), place)
    unstack_experts(small, job.family)
    return cast(nn.Module, small)


def measured_somewhere(
    measured: Callable[[torch.device], dict[str, Any]], device: torch.device, progress: Progress
) -> dict[str, Any]:
    """What `measured` finds, on another device where the first has no room: the result is verified and must stay.

    In the end the shapes alone say what they can, and `not_measured` why.
    """
    reason = ""
    for place in dict.fromkeys((device, torch.device("cpu"))):
        try:
            return measured(place)
        except Exception as error:
            if not isinstance(error, OutOfMemoryError | RuntimeError) and not out_of_memory(error):
                raise
            reason = f"{type(error).__name__} on {place}: {' '.join(str(error).split())[:200]}"
        gc.collect()
        free_cache()
    progress.message(f"warning: the result is written and verified, but could not be measured ({reason})")
    return measured(torch.device("meta")) | {"not_measured": reason}


@phase("merging, slicing and writing the result")
def write_result(model: PeftModel, pruner: Pruner, job: PruneJob, finish: Finish) -> None:
    """The merged checkpoint: from the model in memory, or with `--stream-export` from the original's files."""
    config = job.config
    options: dict[str, Any] = {
        "tokenizer": job.tokenizer, "model_class": config.model_class, "overwrite": config.overwrite,
        "probe_ids": probe_of(job), "dtype": checkpoint_dtype(job.model_config), "finish": finish,
    }  # fmt: skip
    if not config.stream_export:
        export_checkpoint(model, pruner.live, pruner.live_keep, job.output, **options)
        return
    live = {} if pruner.masks else removals(pruner.units, pruner.keep)
    export_streamed(
        model, pruner.live, pruner.live_keep, job.output, source=job.source, live=live,
        trust=config.trust_remote_code, **options,
    )  # fmt: skip


@phase("putting the original weights in place")
def restore_original(model: PeftModel, pruner: Pruner, job: PruneJob) -> torch.device:
    """Put the original weights in a quantised base's place; where there is room to measure them on."""
    waiting = memory_for("putting the original weights in place", WRITE_LATER)
    with waiting, same_after_restoring(model, probe_of(job)):
        pruner.restore(job.source, trust_remote_code=job.config.trust_remote_code)
    needed = 3 * parameter_count(model.get_base_model()) * checkpoint_dtype(job.model_config).itemsize
    return with_room(device_of(job.config), needed)


def fine_tune_and_prune(
    base: PreTrainedModel, job: PruneJob, dtype: torch.dtype, progress: Progress, tracking: Tracking | None = None
) -> tuple[PeftModel, Pruner, Recovery]:
    """Everything between loading the model and writing the result; the records go to `job.work`."""
    tracking = tracking or Tracking(job, progress)
    linears = lora_names(job.budget.units.family)
    dense_parameters = parameter_count(base)
    model = add_lora(base, job.config, linears)
    recovery = recovery_of(model, job, progress)
    pruner = make_pruner(model, job)
    recovery.follow(pruner)
    calibrate(pruner, job, dtype, progress)
    rank_pruner = make_rank_pruner(model, job)
    make_work(job)
    announce(job, pruner, dense_parameters, progress)
    distillation = None
    if job.config.distill:
        distillation = Distillation(
            Teacher(model, pruner, recovery.beside.parameters), job.config.distill, job.config.distill_temperature
        )
    if job.checkpoint is not None:
        pruner.load(job.checkpoint)  # the shapes first, then Trainer loads weights into them
        check_resumable(model, job.checkpoint)
        recovery.load(job.checkpoint)
        if rank_pruner is not None:
            rank_pruner.load(job.checkpoint)
    watched = WatchedUnits(pruner, dense_parameters, rank_pruner)
    tracking.begin(watched)
    steps = job.total_steps - job.scoring_steps
    if job.scoring_steps and job.checkpoint is None:
        with contact_kept(job):
            score_and_cut(model, pruner, job, dtype, progress)
    guard, divergence = NumericsGuard(job.config.on_nan, progress), DivergenceWatch(progress)
    ours: dict[str, Any] = {"guard": guard, "seals": False, "around": cutting}
    pruning = [PruningCallback(pruner, lambda cut: progress.told(cut_words(cut)), **ours)]
    if rank_pruner is not None:
        pruning.append(PruningCallback(rank_pruner, lambda cut: progress.told(rank_cut_words(cut)), **ours))
    evaluate: Callable[[], Perplexity | None] = lambda: measure(model, job, dtype, progress)  # noqa: E731
    recording = RecordingCallback(watched, job, progress, evaluate, recovery.noting(guard, divergence), tracking.step)
    with Interruption(job.output, saved=job.checkpoint is not None) as interruption, closing(recording):
        saving = SavingCallback(every_run=job.config.save_steps > 0)
        callbacks = [guard, divergence, *pruning, *recovery.callbacks, recording, saving, interruption]
        if steps:
            run_trainer(
                model, job, dtype, callbacks, steps=steps, distillation=distillation, checkpoint=job.checkpoint,
                rates=recovery.rates,
            )  # fmt: skip
    interruption.check(pruner.steps_done)
    if rank_pruner is not None and rank() == 0:
        write_json(job.work / "ranks.json", rank_pruner.record())
    tell_unused(model, progress)
    assert pruner.steps_done >= job.schedule.last_cut
    return model, pruner, recovery


def recovery_of(model: PeftModel, job: PruneJob, progress: Progress) -> Recovery:
    """What the model learns with beyond LoRA at one rate; before the pruner is made."""
    # Not the budget's units: experts may have gone since.
    units = find_units(model.get_base_model(), job.budget.units.family, job.config.attention)
    return make_recovery(model, job.config, units, job.schedule, job.total_steps, progress.told)


def make_pruner(model: nn.Module, job: PruneJob) -> Pruner:
    """The pruner that the options describe."""
    config = job.config
    options = replace(part_of(PruningOptions, config), sparsity=job.target.sparsity, shrink=config.shrinks)
    return Pruner(model, options, total_steps=job.total_steps, family=config.family, costs=job.costs)


def make_rank_pruner(model: nn.Module, job: PruneJob) -> RankPruner | None:
    """The pruner of the adapter's rank (`--init-rank`), at the same steps as the units' one."""
    config = job.config
    if config.init_rank is None:
        return None
    options = RankOptions(**vars(part_of(ScheduleOptions, config)), rank=config.rank, seed=config.seed)
    return RankPruner(model, options, total_steps=job.total_steps, merges=True)
