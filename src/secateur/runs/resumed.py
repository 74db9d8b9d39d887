"""`--resume` where there is nothing to train any more, or an earlier result to replace."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..config.run import RunConfig
from ..models.adapter import starting_from_adapter
from ..system.errors import InputError
from ..system.launcher import rank
from ..system.locks import locked
from ..system.output import tidy_beside
from ..system.progress import Progress
from ..system.reading import PARSER_ERRORS
from ..system.records import check_layout
from ..training.checkpoints import DONE, RESULT, RUN, changed_options, drop_work, find_latest, is_done, work_folder
from ..training.job import HARMLESS
from .outcome import report_on


def finished(config: RunConfig) -> dict[str, Any] | None:
    """The result of a run that was stopped when it was in place already; what is left to tidy up then is.

    Returns:
        What its result.json holds; None where the run is to go on, or where no such run was.
    Raises:
        InputError: a newer version wrote it; the run had other options; another process is at it.
    """
    output, work = Path(config.output), work_folder(Path(config.output))
    if not config.resume or not (output / RESULT).is_file():
        return None
    noted = is_done(work, output)
    if not noted and ((work / RUN).exists() or (work / DONE).exists()):
        return None  # what stands there is an earlier run's
    result = _read(output / RESULT)
    check_layout(result, output / RESULT, "upgrade secateur, or choose another --output.")
    if result is None or result.get("status") != "done" or not isinstance(result.get("config"), dict):
        return None
    now = json.loads(json.dumps(asdict(starting_from_adapter(config))))
    changed = changed_options(result["config"], now, HARMLESS)
    if changed:
        raise InputError(
            f"--resume: the run in {output} is done, and its options were others: {'; '.join(changed)}. Choose another "
            "--output, or start anew with --overwrite."
        )
    if rank() == 0:
        _tidy(config, output, work)
    return result


def _tidy(config: RunConfig, output: Path, work: Path) -> None:
    tidy_beside(output)
    with locked(work):
        if not config.save_steps:
            drop_work(work)
    if not (output / "report.html").is_file():
        report_on(output, Progress(0))


def going_on(config: RunConfig) -> RunConfig:
    """The options of a run that goes on: one that began with `--overwrite` may still replace what stands there."""
    work = work_folder(Path(config.output))
    if not config.resume or config.overwrite or find_latest(work)[0] is None:
        return config
    options = (_read(work / RUN) or {}).get("options")
    began = isinstance(options, dict) and options.get("overwrite") is True
    return replace(config, overwrite=True) if began else config


def _read(path: Path) -> dict[str, Any] | None:
    """A record, or None where it is none of ours."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, *PARSER_ERRORS):
        return None
    return found if isinstance(found, dict) else None
