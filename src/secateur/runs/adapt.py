"""The main path of `secateur adapt`: train a LoRA adapter from a high rank down to a low one, and write it."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedConfig, set_seed
from transformers.pytorch_utils import Conv1D

from ..architecture.building import empty_model, runs_code
from ..architecture.discovery import check_text_model
from ..architecture.experts.lora import adaptable, lost_on_reading
from ..architecture.nested import check_adapter_fits_whole
from ..checkpoint.adapter import AdapterPlace, AdapterReport, write_adapter, write_merged
from ..checkpoint.comparing import same_after_restoring
from ..config.adapt import AdaptConfig
from ..config.options import part_of
from ..config.ranks import RankOptions
from ..config.run import load_in_words
from ..evaluation.perplexity import Perplexity
from ..models.adapter import starting_from_adapter
from ..models.benchmark import parameter_count
from ..models.coverage import not_adapted, planned_lora, unreached_words, weight_sizes
from ..models.devices import device_of, dtype_of, name_of
from ..models.memory import WRITE_LATER, memory_for
from ..models.original import check_blocks, restore_, with_plain_lora
from ..models.stored import checkpoint_dtype
from ..pruning.schedule import Schedule
from ..ranks import RankPruner
from ..ranks.checks import check_given_adapter, rank_schedule
from ..system.errors import InputError
from ..system.launcher import rank as process_rank
from ..system.locks import locked
from ..system.progress import Progress, cutting, phase
from ..system.records import environment, write_json
from ..training.callback import PruningCallback
from ..training.checkpoints import drop_work, failure_noted, note_result
from ..training.finetune import (
    add_lora,
    check_resumable,
    linears_without_use,
    load_base,
    lora_config,
    lora_scaling,
)
from ..training.guard import DivergenceWatch, NumericsGuard
from ..training.job import Job, make_work, open_model, probe_of, read_inputs
from ..training.recording import RecordingCallback, WatchedRanks, rank_cut_words
from ..training.recovery.rates import Rates, lora_rates
from ..training.saving import Interruption, SavingCallback
from ..training.trainer import run_trainer
from .hub.public import weights_sha256
from .outcome import keep_run, measure, numerics, report_on, token_counts, training_kept, without_adapter
from .tracking import Tracking


@dataclass(frozen=True, eq=False)
class AdaptJob(Job):
    """An adapter run whose inputs are known to be good."""

    config: AdaptConfig
    schedule: Schedule
    init_rank: int
    """That of `--adapter` where one is given."""
    linears: tuple[str, ...] | str
    """Names of the linears that get LoRA unless `--targets` says otherwise, or `all-linear`."""
    without: tuple[str, ...]
    """Paths of those of them that get none."""


def prepare_adapt(config: AdaptConfig) -> AdaptJob:
    """Check a run's inputs, cheapest first, and read its data.

    Raises:
        InputError: anything about model, data, options, adapter or output that would make the run fail later.
    """
    config = starting_from_adapter(config)
    if config.adapter:
        check_given_adapter(config)
    source, model_config = open_model(config)
    fits = _check_ranks(config, model_config)
    job = read_inputs(config, source, model_config, fits.needed_bytes)
    schedule = rank_schedule(config, config.init_rank, job.total_steps)
    values = {**vars(job), "notes": (*job.notes, *fits.notes)}
    return AdaptJob(**values, schedule=schedule, init_rank=config.init_rank, linears=fits.linears, without=fits.without)


def adapt(job: AdaptJob, progress: Progress) -> dict[str, Any]:
    """Run a checked job to its end and return what `result.json` holds (nothing in processes other than the first).

    Raises:
        InputError, NumericsError, VerificationError: see `system.errors`; the output folder is then untouched.
    """
    if process_rank() > 0:
        return _adapt(job, progress, Tracking(job, progress))
    with locked(job.work), failure_noted(job.work), Tracking(job, progress) as tracking:
        result = _adapt(job, progress, tracking)
    report_on(job.output, progress)
    return result


def _adapt(job: AdaptJob, progress: Progress, tracking: Tracking) -> dict[str, Any]:
    config = job.config
    started = time.perf_counter()
    for note in job.notes:
        progress.message(note)
    set_seed(config.seed)
    dtype = dtype_of(config)
    base = load_base(job, dtype, experts_apart=False)
    progress.message(f"model {config.model}: {parameter_count(base):,} parameters, computing in {name_of(dtype)}")
    if config.load_in is not None:
        progress.message(load_in_words(config.load_in, cuts=False))
    tracking.before = before = measure(base, job, dtype, progress)
    unused = linears_without_use(base, job, dtype)
    if unused and not config.targets and not config.adapter:
        progress.message(f"no LoRA on {len(unused)} linears that no forward pass calls, such as {unused[0]}")
    model = add_lora(base, config, job.linears, scaling=first_scaling(config), without=[*unused, *job.without])
    training = time.perf_counter()
    pruner = train_adapter(model, job, dtype, progress, tracking)
    train_seconds = time.perf_counter() - training
    if process_rank() > 0:
        return {}  # the first process writes
    quantised: dict[str, Any] = {}
    if config.load_in is not None:
        quantised = {"quantised": {"load_in": config.load_in, "perplexity": before.to_dict() if before else None}}
        model = on_the_original(model, job, dtype)
        before = without_adapter(model, job, dtype, progress)
    after = measure(model, job, dtype, progress)
    progress.message("writing, then reading back in a fresh process ...")
    result: dict[str, Any] = {}

    def finish(folder: Path, report: AdapterReport) -> None:
        result.update(adapt_outcome(job, pruner, before, after, report), **quantised)
        result.update(train_seconds=train_seconds, total_seconds=time.perf_counter() - started, numerics=numerics(job))
        result["export"]["sha256"] = weights_sha256(folder)
        tracking.end(result)
        write_json(folder / "result.json", result)
        write_json(folder / "ranks.json", pruner.record())
        keep_run(job, folder, "adapt")
        note_result(job.work, folder)

    write = write_merged if config.merge else write_adapter
    with memory_for("writing the result", WRITE_LATER), training_kept(job), phase("writing the result"):
        write(model, place_of(job), finish)
    if not config.save_steps:
        drop_work(job.work)
    return result


def place_of(job: AdaptJob) -> AdapterPlace:
    config = job.config
    return AdapterPlace(
        job.output, config.overwrite, config.model, job.source, config.trust_remote_code, job.tokenizer,
        probe_of(job), checkpoint_dtype(job.model_config), runs_code(job.model_config, config.trust_remote_code),
        config.adapter_for != "peft", job.adapter.extras if job.adapter else (),
    )  # fmt: skip


@phase("putting the original weights in place")
def on_the_original(model: PeftModel, job: AdaptJob, dtype: torch.dtype) -> PeftModel:
    """The trained adapter on the weights that were quantised for training, held as a run without `--load-in` would."""
    with memory_for("putting the original weights in place", WRITE_LATER):
        with same_after_restoring(model, probe_of(job)):
            restore_(model, {}, job.source, trust=job.config.trust_remote_code)
        model = with_plain_lora(model)
        if dtype == torch.float32 and model.get_base_model().dtype != torch.float64:
            model.float()
    return model


def first_scaling(config: AdaptConfig) -> float:
    """What B·A is multiplied by at the run's start: `--alpha` tells of the end."""
    last = lora_scaling(config, 1.0)
    return last if config.scaling == "fixed" else last * float((config.rank / config.init_rank) ** 0.5)


def train_adapter(
    model: PeftModel, job: AdaptJob, dtype: torch.dtype, progress: Progress, tracking: Tracking
) -> RankPruner:
    """Train and prune an adapter; the records go to `job.work`."""
    config = job.config
    pruner = RankPruner(model, part_of(RankOptions, config), total_steps=job.total_steps, merges=config.merge)
    make_work(job)
    if job.checkpoint is not None:
        check_resumable(model, job.checkpoint)
        pruner.load(job.checkpoint)  # the shapes first, then Trainer loads weights into them
    progress.message(_plan_words(job, pruner))
    guard, divergence = NumericsGuard(config.on_nan, progress), DivergenceWatch(progress)
    pruning = PruningCallback(
        pruner, lambda cut: progress.told(rank_cut_words(cut)), guard=guard, seals=False, around=cutting
    )
    evaluate: Callable[[], Perplexity | None] = lambda: measure(model, job, dtype, progress)  # noqa: E731
    noted: Callable[[], dict[str, Any]] = lambda: guard.note() | divergence.note()  # noqa: E731
    watched = WatchedRanks(pruner)
    tracking.begin(watched)
    recording = RecordingCallback(watched, job, progress, evaluate, noted, tracking.step)
    with Interruption(job.output, saved=job.checkpoint is not None) as interruption, closing(recording):
        saving = SavingCallback(every_run=config.save_steps > 0)
        callbacks = [guard, divergence, pruning, recording, saving, interruption]
        rates = Rates(lora_rates(config, config.lr))
        run_trainer(model, job, dtype, callbacks, checkpoint=job.checkpoint, rates=rates)
    interruption.check(pruner.steps_done)
    return pruner


def adapt_outcome(
    job: AdaptJob, pruner: RankPruner, before: Perplexity | None, after: Perplexity | None, report: AdapterReport
) -> dict[str, Any]:
    """What `result.json` holds, but for the times."""
    ranks = pruner.ranks
    factors = sum(pruner.start_ranks.values())
    return {
        "kind": "adapt",
        "status": "done",
        "config": asdict(job.config),
        "environment": environment(device_of(job.config)),
        "data": {"training": job.data, "evaluation": job.eval_info, **token_counts(job)},
        "dense": {"perplexity": before.to_dict() if before else None},
        "adapted": {"perplexity": after.to_dict() if after else None},
        "adapter": {
            "init_rank": job.init_rank,
            "rank": job.config.rank,
            "mean_rank": sum(ranks.values()) / len(ranks),
            "components_before": factors,
            "components_after": sum(ranks.values()),
            "parameters": pruner.adapter_parameters,
        },
        "export": report.to_dict() | {"folder": str(job.output)},
    }


def _plan_words(job: AdaptJob, pruner: RankPruner) -> str:
    if job.init_rank == job.config.rank:
        return f"LoRA of rank {job.init_rank} on {len(pruner.layers)} linears, nothing to prune"
    cuts = job.schedule.cuts()
    return (
        f"target: rank {job.init_rank} to {job.config.rank} on {len(pruner.layers)} linears ({job.config.allocation}), "
        f"by {len(cuts)} cuts from step {cuts[0]} to {cuts[-1]} of {job.total_steps}"
    )


@dataclass(frozen=True)
class Fit:
    """What LoRA comes to on a model."""

    needed_bytes: int
    """What the result takes at most."""
    linears: tuple[str, ...] | str
    without: tuple[str, ...]
    notes: tuple[str, ...]


def _check_ranks(config: AdaptConfig, model_config: PreTrainedConfig) -> Fit:
    """LoRA must fit the model, and no layer's rank exceed its smaller side."""
    check_text_model(model_config)
    check_adapter_fits_whole(model_config, merged=config.merge)
    empty = empty_model(model_config, trust_remote_code=config.trust_remote_code)
    check_blocks(empty, config.load_in, device_of(config))
    head, names = empty.get_output_embeddings(), adaptable(empty)
    left = () if config.targets or config.adapter else tuple(not_adapted(empty, config.init_rank))
    asked = config.targets or (() if isinstance(names, str) else names)
    linears = {
        path: module
        for path, module in empty.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and path not in left
        and (not asked or any(path == t or path.endswith("." + t) for t in asked))
    }  # fmt: skip
    lost = [] if config.merge or config.adapter else lost_on_reading(linears, empty)
    if lost and config.targets:
        raise InputError(
            f"--targets {' '.join(config.targets)}: PEFT would not read LoRA on {lost[0]} of a "
            f"{model_config.model_type} back as it was: add --merge, or name other linears."
        )
    linears = {path: module for path, module in linears.items() if path not in lost}
    for path, module in linears.items():
        smaller = min(module.weight.shape)
        if config.init_rank > smaller:
            raise InputError(
                f"--init-rank {config.init_rank}: {path} is {' x '.join(map(str, module.weight.shape))}, so a rank "
                f"above {smaller} adds nothing there: use at most {smaller}, or leave it out with --targets."
            )
    needed = parameter_count(empty) * checkpoint_dtype(model_config).itemsize
    if not config.merge:
        needed = 4 * config.init_rank * sum(sum(module.weight.shape) for module in linears.values())
    sizes, parameters = weight_sizes(empty), parameter_count(empty)
    lora = lora_config(config, names)
    lora.exclude_modules = [*left, *lost] or None
    covered = planned_lora(empty, config, lora)
    words = None if config.targets else unreached_words(sizes, covered, parameters)
    rank = config.init_rank
    few = f"no LoRA on {len(left)} routers or linears narrower than --init-rank {rank}: {left[0]}" if left else None
    gone = f"no LoRA on {len(lost)} linears that an adapter cannot hold, such as {lost[0]}" if lost else ""
    notes = tuple(filter(None, (few, gone and f"{gone}: --merge takes them, too", words)))
    return Fit(needed, names if isinstance(names, str) else tuple(names), (*left, *lost), notes)
