"""`secateur compare`: a grid of runs under the same data, steps and budget; each cell is run once and recorded."""

import gc
import time
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..config.files.rerun import RERUN, comparison_text
from ..config.prune import PruneConfig
from ..data.documents import check_spec
from ..data.same_source import same_source
from ..data.tokens import evaluation_tokens
from ..models.adapter import starting_from_adapter
from ..models.devices import device_of
from ..models.source import resolve_model
from ..models.tokenizers import load_tokenizer
from ..parallel.distributed import Share
from ..plan.speed import expected_ms
from ..pruning.allocation.reach import TOLERANCE
from ..runs.sparsify.job import prepare_sparsify
from ..system.errors import InputError, NumericsError, OutOfMemoryError, VerificationError
from ..system.locks import locked
from ..system.output import check_output
from ..system.progress import human_seconds, phase
from ..system.records import environment, write_json, write_whole
from ..system.terminal.tables import Words, tell
from ..training.checkpoints import find_latest, work_folder
from ..training.job import Job, open_model
from ..training.prepare import PruneJob, plan_budget, prepare
from .cell import run_cell
from .estimate import estimated_seconds
from .grid import MADE_SMALLER, Cell, Comparison, zeros_config
from .recorded import RECORD, check_inputs, recorded, tidy
from .rehearsal import rehearsed
from .tables import write_comparison

CHECKING = "checking the cells"
ALIKE = 0.03
"""How far times of cells may lie apart, over the time that is asked for: whole layers come to it in steps."""


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
        with phase(CHECKING):
            jobs = {cell.name: _prepared(cell, folder) for cell in cells if cell.kind in MADE_SMALLER}
        return rehearsed(jobs, share)
    with locked(folder) if share.number == 0 else nullcontext():
        return _compare(comparison, folder, share, warnings)


def _compare(comparison: Comparison, folder: Path, share: Share, warnings: Sequence[str]) -> str:
    settings, cells = comparison.settings, comparison.cells
    missing = [cell for cell in cells if not _was_run(folder, cell)]
    with phase(CHECKING):
        jobs = {cell.name: _prepared(cell, folder) for cell in missing}
        texts, measured = _check_texts(comparison)
        if not settings.allow_different:
            check_inputs(folder, cells, texts)
            if missing:
                _check_budgets(cells, jobs, folder)
    if share.number == 0:
        for cell in missing:
            (folder / cell.name / RECORD).unlink(missing_ok=True)  # of a failed one that is run again
        tidy(folder, cells)
        write_whole(folder / RERUN, comparison_text(comparison.given).encode())
    share.meet("all cells checked")  # what another process has begun would look like a stopped run
    words = f"{len(cells)} cells, {len(missing)} to run"
    if missing and share.number == 0:
        records = [recorded(folder, cell) for cell in cells if cell.kind != "dense"]
        known = [seconds for record in records if record and (seconds := record.get("total_seconds"))]
        with phase("estimating the time"):
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
            failed = {"status": "failed", "reason": str(error), "zeros": dict(cell.zeros)}
            record = failed | {"config": asdict(cell.config), "environment": environment(device_of(cell.config))}
            print(f"failed: {error}\n(--overwrite runs failed cells again)", flush=True)
        (folder / cell.name).mkdir(exist_ok=True)
        write_json(folder / cell.name / RECORD, {"name": cell.name, "kind": cell.kind} | record, result=True)
        tidy(folder, [cell])
        if share.number == 0:
            write_comparison(folder, cells, settings.reference, warnings)
        with phase("freeing memory"):
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


def _prepared(cell: Cell, folder: Path) -> Job:
    placed = _placed(cell, folder)
    if not cell.zeros:
        return prepare(placed, encoder_decoders=False)
    where = {name: getattr(placed, name) for name in ("output", "overwrite", "resume")}
    return prepare_sparsify(replace(zeros_config(cell.name, cell.config, dict(cell.zeros)), **where))


def _check_budgets(cells: Sequence[Cell], jobs: dict[str, Job], folder: Path) -> None:
    """Cells that ask for the same sparsity or size must lose the same share of parameters, recorded ones too; those
    that ask for the same time must take the same by the cost table."""
    first: dict[float, tuple[str, float]] = {}
    timed: dict[tuple[str, float], tuple[str, float]] = {}
    for cell in cells:
        if cell.kind != "prune":
            continue
        if isinstance(job := jobs.get(cell.name), PruneJob):
            target, budget = job.target, job.budget
        else:
            config = _placed(cell, folder)
            planned = plan_budget(config, open_model(config)[1])
            target, budget = planned.target, planned.budget
        if (asked := target.time) is not None:
            ms = expected_ms(target, budget)
            other, others = timed.setdefault((asked.at, round(asked.ms, 6)), (cell.name, ms))
            if abs(ms - others) > ALIKE * asked.ms:
                raise InputError(
                    f"cells {other} and {cell.name} would take {others:.4g} ms and {ms:.4g} ms ({asked.at}): give them "
                    "the same --cost-table and a time that both come to, or pass --allow-different."
                )
            continue
        other, sparsity = first.setdefault(target.sparsity, (cell.name, budget.sparsity))
        if abs(sparsity - budget.sparsity) > TOLERANCE:
            raise InputError(
                f"cells {other} and {cell.name} would lose {sparsity:.1%} and {budget.sparsity:.1%} of the prunable "
                "parameters: give them the same budget, or pass --allow-different."
            )
    _check_shares(cells, first)


def _check_shares(cells: Sequence[Cell], sparsities: Collection[float]) -> None:
    """Zeros are to be as many as others lose."""
    for cell in (cell for cell in cells if cell.zeros and sparsities):
        share = zeros_config(cell.name, cell.config, dict(cell.zeros)).zeros.share
        if min(abs(share - sparsity) for sparsity in sparsities) > TOLERANCE:
            asked = ", ".join(f"{sparsity:.1%}" for sparsity in sparsities)
            raise InputError(
                f"cell {cell.name} makes {share:.1%} of the weights zero, and others lose {asked} of the prunable "
                "parameters: give them the same budget, or pass --allow-different."
            )


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
