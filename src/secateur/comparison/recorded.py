"""Cells of a comparison that have been run: their records, and whether they belong to it as it is now."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from ..data.documents import fingerprint
from ..models.devices import dtype_of, name_of
from ..system.errors import InputError, InterruptedRun
from ..system.records import check_layout
from ..system.terminal.signals import exit_code_of
from ..training.checkpoints import work_folder
from .grid import Cell, differences

RECORD = "result.json"
AWAY = "choose another --output, or move that folder away to run it again."


def read_record(path: Path) -> dict[str, Any]:
    """A cell's record.

    Raises:
        InputError: it is damaged, or of a newer version.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        check_layout(record, path, f"update secateur, or {AWAY}")
        for name in ("name", "kind", "status", "config"):
            record[name]
        if record["status"] == "done":
            for measured in record["perplexity"].values():
                measured["perplexity"], measured["mean_nll"], measured["text"]["sha256"]
            record["parameters"], record["training_data"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise InputError(f"{path}: this cell's record is damaged ({type(error).__name__}: {reason}): {AWAY}") from None
    return dict(record)


def recorded(folder: Path, cell: Cell) -> dict[str, Any] | None:
    """The record of a cell that is there already, or None.

    Raises:
        InputError: it is there with other options; `read_record`.
    """
    path = folder / cell.name / RECORD
    if not path.exists():
        return None
    record = read_record(path)
    now = json.loads(json.dumps(asdict(cell.config)))
    then, zeros = record.get("zeros", {}), dict(cell.zeros)
    changed = differences(record["config"], now, cell.kind, zeros)
    changed += [f"{k}: {then.get(k)} -> {zeros.get(k)}" for k in then | zeros if then.get(k) != zeros.get(k)]
    if changed:
        raise InputError(f"{path.parent}: this cell was run with other options ({'; '.join(changed)}): {AWAY}")
    return record


def check_inputs(folder: Path, cells: Sequence[Cell], texts: dict[str, str]) -> None:
    """Whether recorded cells were trained and measured on what the files hold now.

    Args:
        texts: evaluation text -> sha256 of what it holds now.
    Raises:
        InputError: a cell was not.
    """
    contents = cache(lambda data: [_content(entry) for entry in fingerprint(data)])
    for cell in cells:
        record = recorded(folder, cell)
        if record is None or record["status"] != "done":
            continue
        place = folder / cell.name
        if cell.kind != "dense":
            then = [_content(entry) for entry in record["training_data"]]
            if then != contents(cell.config.data):
                raise InputError(
                    f"{place}: --data {' '.join(cell.config.data)} holds other text now than when this cell was run: "
                    f"{AWAY} With --allow-different it is compared as it is."
                )
        measured = {found["text"]["sha256"] for found in record["perplexity"].values()}
        now = name_of(dtype_of(cell.config))
        for found in record["perplexity"].values():
            if found.get("dtype", now) != now:
                raise InputError(
                    f"{place}: this cell was computed in {found['dtype']}, and on this machine others would be in "
                    f"{now}: {AWAY} With --allow-different they are compared as they are."
                )
        for spec, digest in texts.items():
            if digest not in measured:
                raise InputError(
                    f"{place}: this cell was not measured on --evaluate-on {spec} as it is now, but on "
                    f"{', '.join(record['perplexity'])}: {AWAY} With --allow-different the figure is left out."
                )


def stopped(error: InterruptedRun | KeyboardInterrupt, folder: str, cells: Sequence[Cell]) -> InterruptedRun:
    """What a comparison that was interrupted has come to."""
    done = sum((Path(folder) / cell.name / RECORD).exists() for cell in cells)
    left = "goes on from there" if done < len(cells) else "writes what is missing of its tables"
    code = error.exit_code if isinstance(error, InterruptedRun) else exit_code_of(error)
    return InterruptedRun(
        f"interrupted; {done} of {len(cells)} cells are recorded in {folder}. The same command {left}.", code - 128
    )


def tidy(folder: Path, cells: Sequence[Cell]) -> None:
    """Remove the checkpoints of cells that are recorded as done; a kill may have come between the two."""
    for cell in cells:
        work = work_folder(folder / cell.name / "checkpoint")
        if work.is_dir() and (record := recorded(folder, cell)) and record["status"] == "done":
            shutil.rmtree(work, ignore_errors=True)


def _content(entry: dict[str, Any]) -> tuple[Any, ...]:
    return entry.get("rows"), entry.get("characters"), entry.get("sha256")
