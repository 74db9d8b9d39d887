"""Task figures through lm-evaluation-harness: its own tasks, or ours on local rows without a network.

`tasks/*.yaml` define ours in the harness's format, with prompts and scoring as its tasks of the same name have
them. The harness and torch are imported only when tasks run.
"""

import logging
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jinja2

from ..system.errors import InputError, all_faults
from ..system.progress import Progress, phase
from ..system.registry import did_you_mean
from ..system.terminal.streams import Barless
from .figures import TaskFigure, figure_metric, joined
from .local_tasks import definitions, hashes, local_tasks
from .task_rows import row_faults

PAD_MULTIPLE = 64
ANYONES = (AssertionError, IndexError, StopIteration, TypeError, ValueError)
"""What the harness raises at rows that it did not expect, and a model's code may raise as well."""


@dataclass(frozen=True)
class TaskOptions:
    """What to run, once `check_tasks` has passed it."""

    names: tuple[str, ...]
    num_fewshot: int | None
    limit: int | None
    folder: Path | None
    """Of our local rows; None: the harness's own tasks."""
    batch_size: int
    allow_code_execution: bool = False
    """Run what the model writes as answers to HumanEval."""


def check_tasks(options: TaskOptions) -> None:
    """Refuse tasks that cannot run; loads nothing.

    Raises:
        InputError: the harness is not installed, a task that is not known, a local file that is missing.
    """
    if find_spec("lm_eval") is None:
        raise InputError("--tasks needs lm-evaluation-harness: pip install 'secateur[eval]'.")
    all_faults([f"task {name} would run code that the model writes{reason}"
                for name in options.names if (reason := _code_refused(name, options))])  # fmt: skip
    if options.folder is None:
        known = _manager(own_tasks=True).task_index
        all_faults([f"unknown task {name!r}. {did_you_mean(name, known)}List them with: lm-eval ls tasks."
                    for name in options.names if name not in known])  # fmt: skip
        return
    if not options.folder.is_dir():
        raise InputError(f"--task-data {options.folder} is not a folder: give the one that holds the .jsonl files.")
    faults, ours = [], definitions()
    for name in options.names:
        if name not in ours:
            hint = did_you_mean(name, ours)
            faults.append(
                f"no local task {name!r}. {hint}Known: {', '.join(sorted(ours))}. The harness's "
                "own tasks run without --task-data."
            )
            continue
        paths = [options.folder / file for file in ours[name]["dataset_kwargs"]["data_files"].values()]
        absent = [path for path in paths if not path.is_file()]
        faults += [f"task {name} needs {path}, and there is no such file." for path in absent]
        faults += row_faults(name, [path for path in paths if path not in absent])
    all_faults(faults)


def tokenizer_faults(tokenizer: Any, options: TaskOptions, name: str) -> list[str]:
    """What the harness lacks in a model's tokenizer: a token to begin with, and one that ends an answer."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is None and eos is None:
        needs = "neither bos_token nor eos_token, and one stands before each prompt that is empty"
    elif eos is None and any(definitions().get(task, {}).get("output_type") == "generate_until"
                             for task in options.names if options.folder):  # fmt: skip
        needs = "no eos_token, which ends an answer"
    else:
        return []
    return [f"--tasks: the tokenizer of {name} has {needs}: name it in its tokenizer_config.json."]


def _code_refused(name: str, options: TaskOptions) -> str:
    """Why a task that runs the model's code does not run; empty if it does, or runs none."""
    if not name.startswith(("humaneval", "mbpp")):
        return ""
    if options.folder is None:
        return ", which secateur does for humaneval of local rows alone (in its own process): give --task-data."
    if find_spec("resource") is None:
        return ", and this platform has no limits to run it under (Python's module `resource`)."
    return "" if options.allow_code_execution else ": pass --allow-code-execution if you want that."


def run_tasks(model: Any, tokenizer: Any, options: TaskOptions, dtype: Any) -> tuple[dict[str, TaskFigure], list[str]]:
    """Figures by task, and warnings.

    Args:
        model: a causal LM on its device.
        dtype: of the computation; the half precisions go through autocast.
    Raises:
        InputError: the harness cannot load a task, or the rows, the examples or the model's context are too few for it.
    """
    unconfined: list[str] = []
    doing = f"tasks: {', '.join(options.names)}"
    told = Progress(0).counting(doing, "prompts")
    with phase(doing), _quiet():
        from datasets.exceptions import DatasetsError
        from lm_eval import simple_evaluate

        from .harness_model import padded_model

        wrapped = padded_model(
            model, tokenizer, batch_size=options.batch_size, dtype=dtype, multiple=PAD_MULTIPLE, told=told
        )
        try:
            found = simple_evaluate(
                model=wrapped,
                tasks=local_tasks(options.folder, options.names, unconfined) if options.folder else list(options.names),
                num_fewshot=options.num_fewshot,
                limit=options.limit,
                task_manager=_manager(own_tasks=options.folder is None),
                bootstrap_iters=1000,  # of metrics that are no means
            )
        except (*ANYONES, KeyError, OSError, DatasetsError, jinja2.UndefinedError) as error:
            if isinstance(error, ANYONES) and not _of_the_harness(error):
                raise
            raise InputError(_cannot_run(options, error)) from None
    assert found is not None  # it is None in other processes than the first
    warnings = _own_examples(options)
    if wrapped.cut_prompts:
        warnings.append(
            f"{len(wrapped.cut_prompts):,} prompts of the tasks did not fit into the context of {wrapped.max_length:,} "
            "tokens: the harness cut their start."
        )
    if unconfined:
        warnings.append(
            f"{len(unconfined)} programs that the model wrote ran with the network and the files within reach: this "
            "platform does not let them be cut off (it takes Linux with user namespaces)."
        )
    return _figures(found, options), warnings


def _of_the_harness(error: BaseException) -> bool:
    """Whether the harness (or our reading of the rows) objected, and not the model's code."""
    step = error.__traceback__
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    where = step.tb_frame.f_globals.get("__name__", "") if step is not None else ""
    return where.startswith(("lm_eval.", "json", "datasets.", "secateur.evaluation.local_tasks"))


def _cannot_run(options: TaskOptions, error: BaseException) -> str:
    reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
    remedy = (
        "Check the names and the network, or give local rows with --task-data."
        if options.folder is None
        else f"Check the rows in {options.folder}, that there are enough for --num-fewshot, and the model's context."
    )
    return f"--tasks {','.join(options.names)}: lm-evaluation-harness cannot run them ({reason}). {remedy}"


def _own_examples(options: TaskOptions) -> list[str]:
    """Of local tasks with examples in their prompts: where these come from, if there is no split for them."""
    if options.folder is None or not options.num_fewshot:
        return []
    names = [name for name in options.names if definitions()[name]["fewshot_split"] == "test"]
    return [f"the examples in the prompts of {', '.join(names)} are other rows of the same file."] if names else []


@cache
def _manager(*, own_tasks: bool) -> Any:
    """The harness's index of tasks; reading its own takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=own_tasks)


def _figures(found: dict[str, Any], options: TaskOptions) -> dict[str, TaskFigure]:
    """The harness's results as figures; a group that it aggregates (MMLU of 57 subjects) as one."""
    figures = {name: _figure(name, found, options) for name in found["results"] if name in found["samples"]}
    groups = {
        name: _leaves(name, found["group_subtasks"]) for name in options.names if name in (found.get("groups") or {})
    }
    if options.folder and "mmlu" in options.names:
        groups["mmlu"] = [name for name in figures if name.startswith("mmlu_")]
    for name, leaves in groups.items():
        figures[name] = _group(name, [figures[leaf] for leaf in leaves], found)
    inner = {leaf for leaves in groups.values() for leaf in leaves if leaf not in options.names}
    return {name: figure for name, figure in figures.items() if name not in inner}


def _leaves(name: str, children: dict[str, list[str]]) -> list[str]:
    """The tasks in a group, groups in it taken apart."""
    return [leaf for child in children[name] for leaf in _leaves(child, children)] if name in children else [name]


def _group(name: str, parts: Sequence[TaskFigure], found: dict[str, Any]) -> TaskFigure:
    """A group over all of its rows; its figure is the harness's where the harness states one."""
    whole = joined(parts)
    numbers, errors = _numbers(found["results"].get(name, {}))
    if not numbers:
        return whole
    metric = figure_metric(name, numbers)
    by_rows = math.isclose(numbers[metric], whole.value, abs_tol=1e-9)  # else its tasks count alike
    return replace(
        whole,
        metric=_shown(metric),
        value=numbers[metric],
        stderr=errors.get(metric),
        version=found["versions"].get(name, whole.version),
        metrics=numbers,
        stderrs=errors,
        row_values=whole.row_values if by_rows else (),
    )


def _figure(name: str, found: dict[str, Any], options: TaskOptions) -> TaskFigure:
    numbers, errors = _numbers(found["results"][name])
    metric = figure_metric(name, numbers)
    plain, _, filter_name = metric.partition(",")
    values = tuple(
        float(row[plain])
        for row in found["samples"][name]
        if row["filter"] == filter_name and isinstance(row[plain], int | float)
    )
    is_mean = bool(values) and math.isclose(statistics.fmean(values), numbers[metric], abs_tol=1e-9)
    where = f", local rows of {options.folder}" if options.folder else ""
    return TaskFigure(
        metric=_shown(metric),
        value=numbers[metric],
        stderr=errors.get(metric),
        rows=found["n-samples"][name]["effective"],
        num_fewshot=found["n-shot"][name],
        version=found["versions"][name],
        source=f"lm-evaluation-harness {version('lm_eval')}{where}",
        files=hashes(name, options.folder) if options.folder else {},
        metrics=numbers,
        row_values=values if is_mean else (),
        stderrs=errors,
        row_texts=tuple(_row_text(row["doc"]) for row in found["samples"][name] if row["filter"] == filter_name),
    )


def _row_text(row: Any) -> str:
    """All that a row says, field after field."""
    if isinstance(row, str):
        return row
    parts = row.values() if isinstance(row, dict) else row if isinstance(row, list) else ()
    return " ".join(filter(None, map(_row_text, parts)))


def _numbers(result: dict[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """The metrics of one of the harness's results by `name,filter`, and their standard errors."""
    known = {key: float(value) for key, value in result.items() if "," in key and isinstance(value, int | float)}
    errors = {key.replace("_stderr,", ","): value for key, value in known.items() if "_stderr," in key}
    return {key: value for key, value in known.items() if "_stderr," not in key}, errors


def _shown(metric: str) -> str:
    """`acc,none` -> `acc`."""
    plain, _, filter_name = metric.partition(",")
    return plain if filter_name == "none" else f"{plain} ({filter_name})"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's bars and its notes on what its options are; its errors still show."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    barless: Any = Barless(sys.stderr)
    try:
        with redirect_stderr(barless):
            yield
    finally:
        logger.setLevel(level)
