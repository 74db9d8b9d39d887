"""Training checkpoints that survive a kill: complete only with a manifest, which is written last.

Trainer writes a checkpoint's files in place, one after the other. `seal` makes it a complete one; a folder without a
manifest, or with files that are not as it says, is a half-written one and is skipped.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from ..system.errors import InputError
from ..system.launcher import launched
from ..system.locks import LOCK
from ..system.reading import PARSER_ERRORS
from ..system.records import write_json

MANIFEST = "secateur-manifest.json"
KEPT = 2
"""Complete checkpoints that rotation leaves."""
RESULT = "result.json"
"""A run's record, in its output folder."""
RUN = "run.json"
"""A run's options and data, beside its checkpoints: a resumed run must have the same."""
DONE = "done.json"
"""Which result.json is the run's: it may be in place already when a run is killed, and its folder stands as before."""
FAILURE = "failure.json"
"""Why a run stopped before its end."""


def work_folder(output: Path) -> Path:
    """Where a run keeps its records and checkpoints until its result is written."""
    return output.parent / f"{output.name}.run"


def seal(folder: Path) -> None:
    """Declare a checkpoint complete: everything in it is on disk, and the manifest says what that is.

    An earlier manifest goes first: of a folder that is written a second time it says nothing any more.
    """
    (folder / MANIFEST).unlink(missing_ok=True)
    for half_written in folder.glob(f".{MANIFEST}.*"):
        half_written.unlink()
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb+") as file:  # Windows flushes what is open for writing alone
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    write_json(folder / MANIFEST, {"files": files})
    if os.name == "nt":  # which has no handle of a folder to sync
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # CIFS and others take no fsync of a folder; a disk that fails has failed above
            os.fsync(handle)
    finally:
        os.close(handle)


def fault_of(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None when it is complete."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, expected in files.items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != expected["bytes"] or _sha256(path) != expected["sha256"]:
                return f"{name} is not as it was written"
    except (OSError, *PARSER_ERRORS, KeyError, TypeError, AttributeError):
        return "it was not finished"
    return None


def find_latest(work: Path) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint of a run's folder, and words on newer ones that are not complete."""
    skipped: list[str] = []
    for path in reversed(_by_step(work)):
        fault = fault_of(path)
        if fault is None:
            return path, skipped
        skipped.append(f"{path.name} is skipped: {fault}")
    return None, skipped


def step_of(checkpoint: Path) -> int:
    """The optimiser steps that a checkpoint comes after."""
    return int(checkpoint.name.rpartition("-")[2])


def rotate(work: Path, keep: int = KEPT) -> None:
    """Delete what is older than the newest `keep` complete checkpoints, and half-written or damaged ones.

    A manifest alone makes none complete: the files must be as it says, or the only good one might go. Where none is
    complete nothing goes.
    """
    newest = list(islice((path for path in reversed(_by_step(work)) if fault_of(path) is None), keep))
    if newest:
        _delete(path for path in _by_step(work) if path not in newest)


def drop_damaged(work: Path, checkpoint: Path) -> None:
    """Before a run goes on from `checkpoint`: delete later ones that are not complete, which it will write anew."""
    paths = _by_step(work)
    _delete(path for path in paths[paths.index(checkpoint) + 1 :] if fault_of(path) is not None)


def drop_unfinished(work: Path) -> None:
    """After a write that failed: what is half-written goes, so that it takes no room; complete checkpoints stay."""
    _delete(path for path in _by_step(work) if fault_of(path) is not None)


def _delete(paths: Iterable[Path]) -> None:
    for path in paths:
        # The manifest goes first: a kill in between leaves a folder that is known to be incomplete.
        (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path)


def write_run(work: Path, options: dict[str, Any], data: list[dict[str, Any]], model: str | None = None) -> None:
    """Note what the run is, before its first step.

    Args:
        model: `models.loading.contents_of` the model.
    """
    write_json(work / RUN, {"options": options, "data": data, "model": model, "processes": launched()})


def note_result(work: Path, folder: Path) -> None:
    """Note which result is about to be put in place: the one in `folder`, whole and with its records."""
    write_json(work / DONE, {"result_sha256": _sha256(folder / RESULT)})


def is_done(work: Path, output: Path) -> bool:
    """Whether the result that stands in `output` is that of the run in `work`."""
    try:
        noted = json.loads((work / DONE).read_text(encoding="utf-8"))["result_sha256"]
        return bool(noted == _sha256(output / RESULT))
    except (OSError, *PARSER_ERRORS, LookupError, TypeError):
        return False


def drop_work(work: Path) -> None:
    """The run is over and its folder goes; what tells a later `--resume` so goes last."""
    last = (RUN, DONE)
    paths = list(work.iterdir()) if work.is_dir() else []
    for path in sorted(paths, key=lambda path: last.index(path.name) if path.name in last else -1):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOCK:
            path.unlink(missing_ok=True)


@contextmanager
def failure_noted(work: Path) -> Iterator[None]:
    """Leave a note of what ended a run that had begun."""
    try:
        yield
    except BaseException as error:
        if (work / RUN).exists():
            with suppress(OSError):  # a full disk must not hide the first fault
                write_json(work / FAILURE, {"kind": type(error).__name__, "reason": str(error)})
        raise


def check_same_run(
    work: Path,
    options: dict[str, Any],
    data: list[dict[str, Any]],
    harmless: tuple[str, ...],
    model: str | None = None,
    formerly: Mapping[str, Any] | None = None,
) -> None:
    """Refuse to go on with other options, other data or another model under the same name.

    Args:
        formerly: options that runs of earlier versions do not have -> what these ran with.
    Raises:
        InputError: with the list of what differs.
    """
    try:
        before = json.loads((work / RUN).read_text(encoding="utf-8"))
        old_options, old_data, processes = before["options"], before["data"], before.get("processes", 1)
        if not isinstance(old_options, dict) or not isinstance(processes, int):
            raise TypeError
    except (OSError, *PARSER_ERRORS, KeyError, TypeError, AttributeError):
        raise InputError(
            f"--resume: {work / RUN} is missing or damaged, so it is not known what run the checkpoints belong to: "
            "start anew with --overwrite."
        ) from None
    old_options = {**(formerly or {}), **old_options}
    now = json.loads(json.dumps({"options": options, "data": data}))
    if processes != launched():
        _check_processes(work, old_options, now["options"], processes)
        harmless = (*harmless, "batch_size", "accumulation")
    changed = changed_options(old_options, now["options"], harmless)
    if old_data != now["data"]:
        changed.append("the contents of --data")
    if None not in (model, before.get("model")) and before["model"] != model:
        changed.append("the contents of --model (config.json, or the names and shapes of its weights)")
    if changed:
        raise InputError(
            f"--resume goes on with the run in {work}, whose options were others: {'; '.join(changed)}. Give the same "
            "ones, or start anew with --overwrite."
        )


def changed_options(old: dict[str, Any], now: dict[str, Any], harmless: tuple[str, ...]) -> list[str]:
    """What differs between two runs' options, both as JSON has them."""
    return [
        f"{name}: {old.get(name)} -> {value}"
        for name, value in now.items()
        if name not in harmless and old.get(name) != value
    ]


def _check_processes(work: Path, old: dict[str, Any], now: dict[str, Any], processes: int) -> None:
    """Whether another number of processes can go on: with the same batches, and nothing drawn in each process.

    Raises:
        InputError: it cannot, with the reason.
    """
    if not isinstance(old.get("batch_size"), int):
        raise InputError(f"--resume: {work / RUN} is damaged (batch_size): start anew with --overwrite.")
    batch, wanted = now["batch_size"] * launched(), old["batch_size"] * processes
    if batch != wanted:
        raise InputError(
            f"--resume: the run in {work} had {processes} processes with --batch-size {old['batch_size']}, a batch of "
            f"{wanted}; {launched()} with {now['batch_size']} make {batch}: choose --batch-size so that it is {wanted}."
        )
    if old.get("dropout"):
        raise InputError(
            f"--resume: with --dropout {old['dropout']} every process draws from a random state of its own, so the run "
            f"in {work} needs its {processes} processes again."
        )


def _by_step(work: Path) -> list[Path]:
    """Checkpoint folders, oldest step first."""
    found = [
        (int(m[1]), path) for path in work.glob("checkpoint-*") if (m := re.fullmatch(r"checkpoint-(\d+)", path.name))
    ]
    return [path for _, path in sorted(found)]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
