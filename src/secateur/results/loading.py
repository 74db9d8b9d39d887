"""A folder or a file to the result that it holds."""

import os
from pathlib import Path

from ..report.cells import is_cell
from ..report.runs import COMPARISON, load_run, read_object
from ..system.errors import InputError
from ..system.voice import speaks_python
from ..training.checkpoints import RUN, work_folder
from .compared import CompareResult, compare_result
from .evaluated import EvalResult, eval_result
from .sparsified import SparsifyResult, sparsify_result
from .trained import AdaptResult, PruneResult, adapt_result, prune_result

WANTED = "give the output folder of prune, adapt, sparsify or compare, or the JSON file that eval wrote."
Trained = PruneResult | AdaptResult | SparsifyResult


@speaks_python()
def load_result(place: str | os.PathLike[str]) -> Trained | CompareResult | EvalResult:
    """What a run left behind, as the object that `prune`, `adapt`, `sparsify`, `compare` or `eval` returned.

    Args:
        place: the output folder of `prune`, `adapt`, `sparsify`, `quickstart` or `compare`, or the file of `eval`.
    Raises:
        InputError: it holds no such result, or one that is damaged or of a newer version.
    """
    path = Path(place)
    if path.is_file():
        record = read_object(path)
        if not isinstance(record.get("models"), dict):
            raise InputError(f"{path} is no record of eval: {WANTED}")
        return eval_result(record, str(path))
    if (path / "result.json").is_file():
        return _trained(path)
    if (path / COMPARISON).is_file():
        return compare_result(path, read_object(path / COMPARISON))
    if (work_folder(path) / RUN).is_file() or (path / RUN).is_file():
        raise InputError(f"{path} has no result yet: its run has not ended. secateur report {path} shows it so far.")
    if not path.exists():
        raise InputError(f"{path}: there is no such folder or file: {WANTED}")
    raise InputError(f"{path} holds no result: {WANTED}")


def _trained(folder: Path) -> Trained:
    record = read_object(folder / "result.json")
    if is_cell(record):
        raise InputError(
            f"{folder} is a cell of a comparison: load the comparison, {folder.parent}, or {folder / 'checkpoint'} "
            "where checkpoints were kept."
        )
    run = load_run(folder)
    if record.get("kind") == "adapt":
        ranks = folder / "ranks.json"
        return adapt_result(run, read_object(ranks) if ranks.is_file() else {})
    if record.get("kind") == "sparsify":
        return sparsify_result(run)
    if record.get("kind") is not None:
        raise InputError(
            f"{folder} is a result of {record['kind']}, for whose figures there is no object: read its "
            f"result.json, or look at it with secateur report {folder}."
        )
    units = folder / "units.json"
    return prune_result(run, read_object(units) if units.is_file() else {})
