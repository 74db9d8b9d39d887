"""A run's records as read from its folder: plain JSON of unknown origin, so nothing about it is trusted."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..system.errors import InputError
from ..system.reading import parse_json, read_text
from ..system.records import check_layout
from ..system.terminal.streams import safe
from ..training.checkpoints import FAILURE, RUN, work_folder
from .cells import from_cell, is_cell

COMPARISON = "comparison.json"
LARGEST = 1e30
"""Beyond every count, size and time there can be."""
EXTRA_RECORDS = ("eval*.json", "sample*.json")
"""Files in a run's folder that other commands' `--output` may have put there."""


@dataclass(frozen=True)
class Run:
    """What one run left behind. Every string is free of control characters; a missing record is empty."""

    folder: Path
    name: str
    """Tells runs on one page apart."""
    result: dict[str, Any]
    units: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    extras: list[dict[str, Any]] = field(default_factory=list)
    """Records of `secateur eval` and `secateur sample` that go with the run."""
    notices: tuple[str, ...] = ()
    """What a reader must know before the figures: not finished, failed, written by another version."""


def load_runs(folders: Sequence[str], records: Sequence[str] = ()) -> list[Run]:
    """The runs in `folders`; `records` are further files of `eval` or `sample`, shown with every run they name.

    Raises:
        InputError: a folder that is no run's, a record that is not JSON of the expected kind or of a newer version.
    """
    shared = [_extra(Path(path)) for path in records]
    names = _names([Path(folder) for folder in folders])
    return [_load_run(Path(folder), name, shared) for folder, name in zip(folders, names, strict=True)]


def load_run(folder: Path) -> Run:
    """One run. Errors as of `load_runs`."""
    return _load_run(folder, printable(folder.resolve().name), [])


def at(record: Any, *path: str | int) -> Any:
    """The value at `path` in nested JSON, or None where a step is missing."""
    for key in path:
        if isinstance(record, dict):
            record = record.get(key)
        elif isinstance(record, list) and isinstance(key, int) and -len(record) <= key < len(record):
            record = record[key]
        else:
            return None
    return record


def number(record: Any, *path: str | int) -> float | None:
    """The number at `path`, or None; one that is not finite, or out of any measure, is none."""
    value = at(record, *path)
    return value if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST else None


def text(record: Any, *path: str | int) -> str | None:
    """The string at `path`, or None."""
    value = at(record, *path)
    return value if isinstance(value, str) else None


def items(record: Any, *path: str | int) -> list[tuple[str, Any]]:
    """The (key, value) pairs of the object at `path`; none where it is not one."""
    value = at(record, *path)
    return list(value.items()) if isinstance(value, dict) else []


def rows(record: Any, *path: str | int) -> list[Any]:
    """The list at `path`, or an empty one."""
    value = at(record, *path)
    return value if isinstance(value, list) else []


def _load_run(folder: Path, name: str, shared: list[dict[str, Any]]) -> Run:
    if not (folder / "result.json").is_file():
        return _load_unfinished(folder, name, shared)
    units, ranks, metrics = folder / "units.json", folder / "ranks.json", folder / "metrics.jsonl"
    result = read_object(folder / "result.json")
    removed = read_object(units) if units.is_file() else {}
    if ranks.is_file():
        removed = joined_units(removed, rank_units(read_object(ranks)))
    own = sorted({path for pattern in EXTRA_RECORDS for path in folder.glob(pattern) if path.is_file()})
    extras = [_extra(path) for path in own]
    notices = _notices(result)
    if is_cell(result):
        dense = folder.parent / "dense" / "result.json"
        result, removed, measured = from_cell(result, read_object(dense) if dense.is_file() else {}, folder)
        extras = [*measured, *extras]
    return Run(
        folder=folder,
        name=name,
        result=result,
        units=removed,
        metrics=_read_lines(metrics) if metrics.is_file() else [],
        extras=[*extras, *shared],
        notices=notices,
    )


def _extra(path: Path) -> dict[str, Any]:
    """A record of `eval` or `sample`, with its file's name."""
    return read_object(path) | {"file": path.name}


def _load_unfinished(folder: Path, name: str, shared: list[dict[str, Any]]) -> Run:
    """A run that has not written its result, from the folder that it works in."""
    work = folder if (folder / RUN).is_file() else work_folder(folder)
    if not (work / RUN).is_file():
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder: give the output folder of a run.")
        if (folder / COMPARISON).is_file():
            raise InputError(f"{folder} is a comparison: give the folders of its runs, which are in it.")
        raise InputError(f"{folder} has no result.json, and no run works at it: give the output folder of a run.")
    run, metrics, failure = read_object(work / RUN), work / "metrics.jsonl", work / FAILURE
    lines = _read_lines(metrics, whole=False) if metrics.is_file() else []
    step = next((int(found) for line in reversed(lines) if (found := number(line, "step")) is not None), 0)
    notice, status = f"This run has no result: its records end at step {step}.", "no result"
    if failure.is_file():
        status = "failed"
        notice = f"This run failed after step {step}: {text(read_object(failure), 'reason') or 'no reason was noted'}"
    result = {"config": at(run, "options"), "data": {"training": at(run, "data")}, "status": status}
    return Run(folder=work, name=name, result=result, metrics=lines, extras=shared, notices=(notice,))


def _notices(result: dict[str, Any]) -> tuple[str, ...]:
    """What to say of a result that is not a finished run's, or of an older version."""
    found = []
    status = text(result, "status")
    if status not in (None, "done"):
        found.append(f"This run's status is {status}: {text(result, 'reason') or 'no reason was noted'}")
    if number(result, "environment", "record_format") is None:
        found.append("These records are of an older version of secateur: what it did not note is missing here.")
    return tuple(found)


def joined_units(units: dict[str, Any], ranks: dict[str, Any]) -> dict[str, Any]:
    """Units of the model and ranks of its adapter, both pruned in one run (`prune --init-rank`)."""
    cuts: dict[float, dict[str, Any]] = {}
    for cut in [*rows(units, "cuts"), *rows(ranks, "cuts")]:
        step = number(cut, "step") or 0
        known = cuts.setdefault(step, {"step": step, "removed": {}})
        known |= {key: value for key, value in cut.items() if key not in ("step", "removed")}
        known["removed"] |= dict(items(cut, "removed"))
    pools = dict(items(units, "pools")) | dict(items(ranks, "pools"))
    return units | {"pools": pools, "cuts": [cuts[step] for step in sorted(cuts)]}


def rank_units(ranks: dict[str, Any]) -> dict[str, Any]:
    """The ranks of an `adapt` run told as units: each LoRA layer a pool of as many rank components as it began with."""
    start = {
        path: int(rank) for path, _ in items(ranks, "start") if 0 < (rank := number(ranks, "start", path) or 0) < 1e6
    }
    names = {path: _pool_name(path, position) for position, path in enumerate(start)}
    left, cuts = dict(start), []
    for cut in rows(ranks, "cuts"):
        removed = {}
        for path in start:
            now = number(cut, "ranks", path)
            if now is not None and 0 < now < left[path]:
                removed[names[path]] = list(range(int(now), left[path]))
                left[path] = int(now)
        cuts.append({"step": at(cut, "step"), "removed": removed})
    pools = {names[path]: {"units": start[path], "kept": list(range(left[path]))} for path in start}
    return {"pools": pools, "cuts": cuts}


def _pool_name(path: str, position: int) -> str:
    """`model.layers.3.self_attn.q_proj` -> `layer.3.rank of q_proj`; a path without a number gets its position."""
    found = re.search(r"\.(\d+)\.", path)
    return f"layer.{found[1] if found else position}.rank of {path.rsplit('.', 1)[-1]}"


def _names(folders: list[Path]) -> list[str]:
    """The folders' last names; whole paths where these would not tell them apart."""
    last = [folder.resolve().name for folder in folders]
    return [
        printable(str(folder) if last.count(name) > 1 else name) for folder, name in zip(folders, last, strict=True)
    ]


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file, its strings free of control sequences.

    Raises:
        InputError: it is none, or of a newer version.
    """
    value = _parse(_read(path), str(path))
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a JSON object: give a file that secateur wrote.")
    for part in (value, value.get("conditions")):  # the second of a comparison
        check_layout(part, path)
    return value


def _read_lines(path: Path, *, whole: bool = True) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; with `whole` off, its last line may be cut short."""
    source = _read(path)
    if not whole:
        source = source[: source.rfind("\n") + 1]
    lines = [(i, line) for i, line in enumerate(source.split("\n"), 1) if line.strip()]
    found = [_parse(line, f"{path}:{i}") for i, line in lines]
    return [line for line in found if isinstance(line, dict)]


def _read(path: Path) -> str:
    return read_text(path, str(path))


def _parse(source: str, place: str) -> Any:
    remedy = "was the run's record cut short?"
    try:
        return cleaned(parse_json(source, place, remedy, parse_constant=lambda _: None))
    except RecursionError:
        raise InputError(f"{place} is not valid JSON (nested too deeply): {remedy}") from None


def printable(words: str) -> str:
    """Without control sequences, and without what UTF-8 has no bytes for (half a surrogate pair is legal in JSON)."""
    return safe(words).encode("utf-8", "replace").decode("utf-8")


def cleaned(value: Any) -> Any:
    """The same JSON with control sequences taken out of all strings."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {cleaned(key): cleaned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [cleaned(item) for item in value]
    return value
