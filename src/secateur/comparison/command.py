"""`secateur compare`: a grid of runs under the same data, steps and budget; each cell is run once and recorded."""

import gc
import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, set_seed

from ..checkpoint.export import build_small, round_
from ..config.formats import FORMATS
from ..config.prune import PruneConfig
from ..data.documents import check_spec
from ..data.same_source import same_source
from ..data.tokens import evaluation_tokens, left_out_of
from ..evaluation.perplexity import perplexity
from ..models.adapter import starting_from_adapter
from ..models.benchmark import parameter_count
from ..models.devices import device_of, dtype_of, widened
from ..models.source import resolve_model
from ..models.stored import checkpoint_dtype
from ..models.surgery import merged_and_sliced
from ..models.tokenizers import load_tokenizer
from ..parallel.distributed import Share
from ..pruning.allocation.reach import TOLERANCE
from ..pruning.pruner import Pruner
from ..runs.baseline import train_dense
from ..runs.outcome import units_record
from ..runs.prune import fine_tune_and_prune, prune
from ..runs.tracking import Tracking
from ..system.errors import InputError, NumericsError, OutOfMemoryError, VerificationError
from ..system.locks import locked
from ..system.output import check_output
from ..system.progress import Progress, human_seconds, phase
from ..system.records import environment, write_json
from ..system.terminal.tables import Words, tell
from ..training.checkpoints import find_latest, work_folder
from ..training.finetune import load_base, load_original
from ..training.job import make_work, open_model
from ..training.prepare import PruneJob, plan_budget, prepare
from ..training.routing import drop_by_routing
from .estimate import estimated_seconds
from .grid import Cell, Comparison
from .recorded import RECORD, check_inputs, recorded, tidy
from .rehearsal import rehearsed
from .tables import write_comparison


def compare(comparison: Comparison, share: Share = Share()) -> str:  # noqa: B008 - it is frozen
    """Run what is not there yet and return the table.

    A cell whose record exists is not run again, so a comparison that was stopped goes on where it was.

    Args:
        share: which cells this process runs, when several work at one comparison. The first waits for the others'
            records and writes the table.
    Raises:
        InputError: inputs of a cell that cannot work; cells or recorded ones that do not compare.
    """
    cells = tuple(replace(cell, config=starting_from_adapter(cell.config)) for cell in comparison.cells)
    comparison = replace(comparison, cells=cells)
    folder = Path(comparison.settings.output)
    check_output(folder, overwrite=True)  # it is added to, never replaced
    for spec in comparison.settings.evaluate_on:
        check_spec(spec)
    warnings = _same_source(comparison)
    for warning in warnings:
        tell(Words(f"warning: {warning}"))
    if any(cell.config.dry_run for cell in cells):
        return rehearsed({cell.name: prepare(_placed(cell, folder)) for cell in cells if cell.kind == "prune"}, share)
    with locked(folder) if share.number == 0 else nullcontext():
        return _compare(comparison, folder, share, warnings)


def _compare(comparison: Comparison, folder: Path, share: Share, warnings: Sequence[str]) -> str:
    settings, cells = comparison.settings, comparison.cells
    missing = [cell for cell in cells if not _was_run(folder, cell)]
    with phase("checking the cells"):
        jobs = {cell.name: prepare(_placed(cell, folder)) for cell in missing}
        texts, measured = _check_texts(comparison)
        if not settings.allow_different:
            check_inputs(folder, cells, texts)
            if missing:
                _check_budgets(cells, jobs, folder)
    if share.number == 0:
        for cell in missing:
            (folder / cell.name / RECORD).unlink(missing_ok=True)  # of a failed one that is run again
        tidy(folder, cells)
    share.meet("all cells checked")  # what another process has begun would look like a stopped run
    words = f"{len(cells)} cells, {len(missing)} to run"
    if missing and share.number == 0:
        records = [recorded(folder, cell) for cell in cells if cell.kind != "dense"]
        known = [seconds for record in records if record and (seconds := record.get("total_seconds"))]
        seconds = estimated_seconds(missing, jobs, known, measured)
        if seconds is not None:
            words += f", about {human_seconds(seconds / share.of)}"
    print(words, flush=True)
    mine = missing[share.number :: share.of]
    for count, cell in enumerate(mine, 1):
        print(f"\n== {cell.name} ({count} of {len(mine)})", flush=True)
        try:
            record = run_cell(cell, jobs[cell.name], comparison)
        except (NumericsError, OutOfMemoryError, VerificationError) as error:
            failed = {"status": "failed", "reason": str(error)}
            record = failed | {"config": asdict(cell.config), "environment": environment(device_of(cell.config))}
            print(f"failed: {error}\n(--overwrite runs failed cells again)", flush=True)
        (folder / cell.name).mkdir(exist_ok=True)
        write_json(folder / cell.name / RECORD, {"name": cell.name, "kind": cell.kind} | record, result=True)
        tidy(folder, [cell])
        if share.number == 0:
            write_comparison(folder, cells, settings.reference, warnings)
        gc.collect()
    if share.number > 0:
        return ""
    with phase("waiting for the cells of the other processes"):
        while not all((folder / cell.name / RECORD).exists() for cell in cells):
            time.sleep(1)
    return write_comparison(folder, cells, settings.reference, warnings)


def _was_run(folder: Path, cell: Cell) -> bool:
    """Whether a cell's record is there; with `--overwrite` a failed one is to be run again."""
    record = recorded(folder, cell)
    return record is not None and not (cell.config.overwrite and record["status"] != "done")


def run_cell(cell: Cell, job: PruneJob, comparison: Comparison) -> dict[str, Any]:
    """Train, prune, measure; what the cell's record holds."""
    started = time.perf_counter()
    set_seed(job.config.seed)
    dtype = dtype_of(job.config)
    for note in job.notes:
        print(note, flush=True)
    make_work(job)
    record: dict[str, Any] = {"status": "done", "config": asdict(job.config)}
    record["environment"] = environment(device_of(job.config))
    small: nn.Module
    details: dict[str, Any] = {}
    if cell.kind == "dense":
        small = load_original(job, dtype, device_of(job.config))
    elif cell.kind == "dense+lora":
        small = train_dense(job, dtype, Progress(job.total_steps, every_seconds=60))
    elif comparison.settings.keep_checkpoints:
        small, details = _checkpoint(job)
    else:
        small, details = _trained_small(job, dtype)
    record |= details
    record["parameters"] = parameter_count(small)
    record["weights_sha256"] = _weights_sha256(small)
    record["perplexity"] = {}
    for spec in comparison.settings.evaluate_on:
        ids, info = evaluation_tokens(
            spec, job.tokenizer, max_tokens=job.config.eval_tokens, seq_len=job.eval_seq_len, bos=job.config.bos
        )
        told = Progress(job.total_steps).measuring()
        unscored = info.get("unscored", 1)
        measured = perplexity(small, ids, seq_len=job.eval_seq_len, dtype=dtype, unscored=unscored, told=told)
        record["perplexity"][spec] = measured.to_dict() | {"text": info}
        print("\n".join([f"perplexity {measured.perplexity:.2f} on {spec}", *left_out_of(info)]), flush=True)
    record["training_data"], record["left_out"] = job.data, job.blocks.left_out.record()
    record["step_seconds"] = _keep_metrics(job)
    record["total_seconds"] = time.perf_counter() - started
    return record


def _trained_small(job: PruneJob, dtype: torch.dtype) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Train and prune; the merged, sliced model as a checkpoint would hold it."""
    base, progress = load_base(job, dtype), Progress(job.total_steps, every_seconds=60)
    drop_by_routing(base, job, dtype, progress)
    dense = parameter_count(base)
    with Tracking(job, progress) as tracking:
        model, pruner, _ = fine_tune_and_prune(base, job, dtype, progress, tracking)
    device = base.device
    if job.config.load_in is not None:
        pruner.restore(job.source, trust_remote_code=job.config.trust_remote_code)
    pruner.close()
    with phase("merging and slicing"):
        shapes = pruner.units.shapes_after(pruner.keep)
        tensors = merged_and_sliced(model, pruner.live, pruner.live_keep)
        small = build_small(base.config, pruner.units.family, shapes, tensors, torch.float32, job.config.model_class)
        round_(small, checkpoint_dtype(job.model_config))
        nn.Module.to(widened(small, dtype), device)
    assert dense - parameter_count(small) == pruner.removed_params
    return small, _details(pruner)


def _checkpoint(job: PruneJob) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The whole of `secateur prune`, its checkpoint read back."""
    from transformers import AutoModelForCausalLM

    result = prune(job, Progress(job.total_steps, every_seconds=60))
    trust = FORMATS[result["export"]["format"]].trust
    small = AutoModelForCausalLM.from_pretrained(job.output, dtype="auto", trust_remote_code=trust)
    widened(small, dtype_of(job.config))
    return small, {"sparsity": result["sparsity"]["reached"], "shapes": result["shapes"], "checkpoint": str(job.output)}


def _details(pruner: Pruner) -> dict[str, Any]:
    shapes = pruner.units.shapes_after(pruner.keep)
    return {
        "sparsity": pruner.sparsity,
        "shapes": [shape.to_dict() for shape in shapes],
        "units": units_record(pruner),
    }


@phase("hashing the weights")
def _weights_sha256(model: nn.Module) -> str:
    """Of all parameters and buffers, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _placed(cell: Cell, folder: Path) -> PruneConfig:
    """The cell's options with its own output folder, going on from its newest checkpoint where there is one.

    `--overwrite` starts a cell that was not finished anew.
    """
    output = folder / cell.name / "checkpoint"
    begun = not cell.config.overwrite and find_latest(work_folder(output))[0] is not None
    return replace(cell.config, output=str(output), overwrite=True, resume=begun)


def _check_texts(comparison: Comparison) -> tuple[dict[str, str], int]:
    """Evaluation text -> the sha256 of what it holds; and the tokens that a cell is measured on, of all texts.

    Raises:
        InputError: one is too short for a segment.
    """
    found, kinds, measured = dict[str, str](), dict[Any, PruneConfig](), 0
    for config in (cell.config for cell in comparison.cells):
        length = config.eval_seq_len or config.seq_len
        kinds[config.model, config.trust_remote_code, config.eval_tokens, length, config.bos] = config
    for model, trust, tokens, length, bos in kinds:
        tokenizer = load_tokenizer(resolve_model(model), trust_remote_code=trust)
        lengths = []
        for spec in comparison.settings.evaluate_on:
            ids, info = evaluation_tokens(spec, tokenizer, max_tokens=tokens, seq_len=length, bos=bos)
            if len(ids) < length:
                raise InputError(
                    f"--evaluate-on {spec}: {len(ids)} tokens, fewer than one segment of {length}: lower "
                    "--eval-seq-len, raise --eval-tokens, or give more text."
                )
            found[spec] = info["sha256"]
            lengths.append(len(ids))
        measured = max(measured, sum(lengths))
    return found, measured


def _check_budgets(cells: Sequence[Cell], jobs: dict[str, PruneJob], folder: Path) -> None:
    """Cells that ask for the same sparsity or size must lose the same share of parameters, recorded ones too."""
    first: dict[float, tuple[str, float]] = {}
    for cell in cells:
        if cell.kind != "prune":
            continue
        if cell.name in jobs:
            target, budget = jobs[cell.name].target, jobs[cell.name].budget
        else:
            config = _placed(cell, folder)
            planned = plan_budget(config, open_model(config)[1])
            target, budget = planned.target, planned.budget
        other, sparsity = first.setdefault(target.sparsity, (cell.name, budget.sparsity))
        if abs(sparsity - budget.sparsity) > TOLERANCE:
            raise InputError(
                f"cells {other} and {cell.name} would lose {sparsity:.1%} and {budget.sparsity:.1%} of the prunable "
                "parameters: give them the same budget, or pass --allow-different."
            )


def _keep_metrics(job: PruneJob) -> float | None:
    """Put the run's metrics beside the cell's record; returns the median seconds of an optimiser step."""
    found = [path for folder in (job.work, job.output) if (path := folder / "metrics.jsonl").exists()]
    lines = found[0].read_text(encoding="utf-8") if found else ""
    if found:
        (job.output.parent / "metrics.jsonl").write_text(lines, encoding="utf-8")
    # One-shot may score in all steps and train in none.
    return median(json.loads(line)["seconds"] for line in lines.splitlines()) if lines else None


def _same_source(comparison: Comparison) -> list[str]:
    """Warnings of calibration text from an evaluation's source, which flatters what was calibrated on it."""
    data = dict.fromkeys(name for cell in comparison.cells for name in cell.config.data)
    return [
        f"{text} and the training data {name} come from the same source by their names: perplexity on it says less "
        "about other text."
        for text in comparison.settings.evaluate_on
        for name in data
        if same_source(name, text)
    ]
