"""The cost table of a run: a file's, the one that was kept of this machine, or measured now and kept."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import PreTrainedConfig

from ..architecture.building import empty_model
from ..architecture.discovery import find_units
from ..architecture.experts import unstack_experts
from ..architecture.units import Units
from ..config.prune import PruneConfig
from ..config.sizes import Timed, parse_speed_at
from ..data.embedded import cache_root
from ..models.devices import device_of, dtype_of, name_of
from ..models.stored import checkpoint_dtype
from ..system.errors import InputError
from ..system.machine.devices import clock_of, name_of_device
from ..system.progress import Progress, phase
from ..system.reading import PARSER_ERRORS
from ..system.records import cpu_name, version_of, write_json
from .costs import Costs, check_timed
from .measure import alike, measure_times
from .stack import Subject
from .table import CostTable, Times, read_table, table_of

log = logging.getLogger("secateur")
COSTS = "cost-table.json"
"""In a run's folder: the times that its budget was made from, with which it goes on."""
FOLDER = "cost-tables"
KEPT = 16
"""Tables that are kept of a model, of as many machines or settings."""


@dataclass(frozen=True)
class Found:
    """A table, and what there is to say of how it was come by."""

    table: CostTable
    note: str


def check_positions(config: Any, at: Sequence[Timed]) -> None:
    """Refuse what is longer than the model can read.

    Raises:
        InputError: names it and the model's length.
    """
    longest = getattr(config, "max_position_embeddings", None)
    for each in at:
        if longest is not None and each.prompt + each.generated > longest:
            raise InputError(
                f"--speed-at {each.name} is {each.prompt + each.generated} tokens, and the model has {longest} "
                "positions: ask for fewer."
            )


def costs_of(
    config: PruneConfig, model_config: PreTrainedConfig, units: Units, began: Path | None
) -> tuple[Costs, str]:
    """The times of a model's units, and how they were come by: of the run that goes on, of a file, or of this machine.

    Args:
        began: the table of the run that goes on, if one does.
    Raises:
        InputError: a file is of another model, or the model's layers cannot be timed.
    """
    if model_config.is_encoder_decoder:
        raise InputError(
            f"--model {config.model}: a target in time is of causal language models, and this is an encoder-decoder: "
            "ask for --sparsity or --target-params."
        )
    at = parse_speed_at(config.speed_at)
    if began is not None and began.is_file():
        return Costs(read_table(began), at, units, str(began)), "cost table: that of the run that goes on"
    if config.cost_table is not None:
        place = f"--cost-table {config.cost_table}"
        table = read_table(Path(config.cost_table).expanduser())
        check_positions(model_config, at)
        return Costs(table, at, units, place), f"cost table: {config.cost_table}, {table.source}"
    check_timed(units)
    dtype, weights = dtype_of(config), checkpoint_dtype(model_config)
    held = torch.float32 if dtype == torch.float32 else weights
    subject = Subject(model_config, units.family, device_of(config), dtype, held, config.trust_remote_code)
    found = kept_table(subject, at)
    return Costs(found.table, at, units), found.note


def about_machine(subject: Subject) -> dict[str, Any]:
    """What a time depends on beside the model."""
    device = cpu_name() if subject.device.type == "cpu" else name_of_device(subject.device)
    return {
        "device": device,
        "threads": torch.get_num_threads() if subject.device.type == "cpu" else None,
        "clock": clock_of(subject.device).__name__,
        "dtype": name_of(subject.dtype),
        "weights": name_of(subject.weights),
        "torch": version_of("torch"),
        "transformers": version_of("transformers"),
    }


def about_model(subject: Subject) -> dict[str, Any]:
    """The sizes that a time depends on."""
    empty = empty_model(subject.config, trust_remote_code=subject.trust_remote_code)
    unstack_experts(empty, subject.family)
    units = find_units(empty, subject.family, "none")
    text = subject.config.get_text_config()
    shapes = [[*shape.key(), shape.head_dim] for shape in units.shapes]
    return {
        "model_type": str(subject.config.model_type),
        "hidden": int(text.hidden_size),
        "vocabulary": int(text.vocab_size),
        "kinds": [sorted(group) for group in alike(empty, units)],
        "shapes": shapes[:1] if all(shape == shapes[0] for shape in shapes) else shapes,
        "windows": getattr(text, "sliding_window", None),
    }


def measured_table(subject: Subject, at: Sequence[Timed]) -> CostTable:
    """Measure a table on this machine.

    Raises:
        InputError: as `check_positions` and `measure_times`.
    """
    check_positions(subject.config, at)
    about = {"machine": about_machine(subject), "model": about_model(subject)}
    times: dict[str, Times] = {}
    step = 1
    with phase("measuring what heads and widths cost on this machine"):
        for each in at:
            told = Progress(0).counting(f"timing layers of each size, {each.name}", "turns")
            times[each.name], own = measure_times(subject, each, told)
            step = max(step, own)
    return CostTable(times, step, about, f"measured on {about['machine']['device']}")


def kept_table(subject: Subject, at: Sequence[Timed]) -> Found:
    """The table of this machine and model: the one that was kept, or measured now and kept.

    One process of a user measures at a time, and others wait for what it finds.

    Raises:
        InputError: as `measured_table`.
    """
    about = {"machine": about_machine(subject), "model": about_model(subject)}
    name = hashlib.sha256(json.dumps(about["model"], sort_keys=True).encode()).hexdigest()[:16]
    path = cache_root() / FOLDER / f"{subject.config.model_type}-{name}.json"
    check_positions(subject.config, at)
    with _alone(path):
        tables = _read(path)
        mine = next((table for table in tables if table.about == about), None)
        lacking = [each for each in at if mine is None or each.name not in mine.times]
        if mine is not None and not lacking:
            return Found(mine, f"cost table: kept from an earlier run ({path})")
        fresh = measured_table(subject, lacking)
        if mine is not None:
            fresh = CostTable(
                {**mine.times, **fresh.times}, max(mine.width_step, fresh.width_step), about, fresh.source
            )
        _write(path, [fresh, *(table for table in tables if table.about != about)][:KEPT])
    note = f"cost table: {fresh.source}"
    if mine is None and tables:
        note += f"; the one that was kept is of another machine or setting ({_differences(tables[0].about, about)})"
    return Found(fresh, note)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    old, new = before.get("machine", {}), now["machine"]
    return ", ".join(f"{key} {old.get(key)}, now {value}" for key, value in new.items() if old.get(key) != value)


def _read(path: Path) -> list[CostTable]:
    """The tables that a file of the cache holds; one that cannot be read holds none."""
    try:
        return [table_of(record) for record in json.loads(path.read_text(encoding="utf-8"))["tables"]]
    except (OSError, KeyError, TypeError, InputError, *PARSER_ERRORS):
        return []


def _write(path: Path, tables: Sequence[CostTable]) -> None:
    try:
        write_json(path, {"tables": [table.record() for table in tables]})
    except OSError as error:
        log.warning("the cost table could not be kept in %s (%s): the next run measures again.", path, error.strerror)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the cache's file, where the place has locks."""
    lock = FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        lock.release()
