"""What a refit in sequence and a search are made on: sequences of the training data."""

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from ..pruning.pruner import Pruner
from ..pruning.search import Watch
from ..system.errors import InputError
from ..system.launcher import launched, rank
from ..system.progress import Progress
from .job import SEARCH, Job

SEED = 0
"""Of the order in which rows of a Trainer's data are taken."""


def calibrate(pruner: Pruner, job: Job, dtype: torch.dtype, progress: Progress) -> None:
    """Give the pruner `--calibration-tokens` of the run's data, as blocks at even distances, where it needs some.

    Of several processes each takes every so-manieth of them. How far a search is, is shown, and kept in the run's
    folder.
    """
    if not pruner.pruned.calibrated_for:
        return
    timed = pruner.options.search_minutes and not pruner.options.search_evaluations
    told = progress.counting("searching the layers' shares", "seconds" if timed else "candidates")
    pruner.allocator.watch = Watch(told, job.work / SEARCH)
    blocks, each = job.blocks, launched()
    wanted = -(-pruner.options.calibration_tokens // (blocks.seq_len * each)) * each
    count = min(wanted, len(blocks) // each * each)
    rows = torch.tensor([number * len(blocks) // count for number in range(count)][rank() :: each])
    parts = rows.split(job.config.batch_size // job.config.accumulation)
    pruner.calibrate([blocks.batch(part)[0] for part in parts], dtype)


def calibrate_by_trainer(pruner: Pruner, loader: Any, args: TrainingArguments) -> None:
    """Give a pruner that has not been given any some rows of a Trainer's data, as its loader puts them together.

    Raises:
        InputError: the data cannot be asked for a row.
    """
    asked = pruner.pruned.calibrated_for
    if not asked or pruner.pruned.calibration is not None:
        return
    data: Any = getattr(loader, "dataset", None)
    if not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        raise InputError(
            f"{asked}: the trainer's data is a {type(data).__name__}, of which no row can be asked "
            "for: call pruner.calibrate(batches) before training."
        )
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(SEED)).tolist()
    rows, tokens = list[Any](), 0
    while order and tokens < pruner.options.calibration_tokens:
        rows.append(data[order.pop()])
        tokens += len(rows[-1]["input_ids"])
    rows = rows[: max(1, len(rows) // launched()) * launched()][rank() :: launched()]
    size = args.per_device_train_batch_size
    batches = [loader.collate_fn(rows[first : first + size]) for first in range(0, len(rows), size)]
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    pruner.calibrate((_inputs(pruner.pruned.base, batch) for batch in batches), dtype)


def _inputs(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """What of a batch the model takes."""
    takes = signature(model.forward).parameters
    return {name: value for name, value in batch.items() if name in takes and name != "labels"}
