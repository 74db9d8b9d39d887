"""Task figures through lm-evaluation-harness: its own tasks, or ours on local rows without a network.

`tasks/*.yaml` define ours in the harness's format, with prompts and scoring as its tasks of the same name have
them. The harness and torch are imported only when tasks run.
"""

import hashlib
import json
import logging
import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from .errors import InputError, all_faults
from .evaluate import LEAST_PAIRS, NOISE
from .registry import did_you_mean
from .sandbox import run_untrusted

METRICS = ("acc_norm,none", "acc,none", "exact_match,strict-match", "pass@1,none")
"""Which of a task's metrics is its figure, the first that it has; all are recorded."""
PAD_MULTIPLE = 64


@dataclass(frozen=True)
class TaskFigure:
    """A task's figure with what it was measured under."""

    metric: str
    value: float
    stderr: float | None
    """Over rows, as the harness states it."""
    rows: int
    num_fewshot: int
    version: Any
    source: str
    """Which harness and which rows."""
    files: dict[str, str]
    """sha256 of local files by name."""
    metrics: dict[str, float]
    """All metrics by `name,filter`."""
    row_values: tuple[float, ...] = field(repr=False)
    """The metric of each row, in the task's order; empty when its mean is not the figure."""

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "row_values"}


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
    faults, definitions = [], _definitions()
    for name in options.names:
        if name not in definitions:
            hint = did_you_mean(name, definitions)
            faults.append(
                f"no local task {name!r}. {hint}Known: {', '.join(sorted(definitions))}. The harness's "
                "own tasks run without --task-data."
            )
            continue
        for file in definitions[name]["dataset_kwargs"]["data_files"].values():
            if not (options.folder / file).is_file():
                faults.append(f"task {name} needs {options.folder / file}, and there is no such file.")
    all_faults(faults)


def _code_refused(name: str, options: TaskOptions) -> str:
    """Why a task that runs the model's code does not run; empty if it does, or runs none."""
    if not name.startswith(("humaneval", "mbpp")):
        return ""
    if options.folder is None:
        return ", which secateur does for humaneval of local rows alone (in its own process): give --task-data."
    return "" if options.allow_code_execution else ": pass --allow-code-execution if you want that."


def run_tasks(model: Any, tokenizer: Any, options: TaskOptions, dtype: Any) -> tuple[dict[str, TaskFigure], list[str]]:
    """Figures by task, and warnings.

    Args:
        model: a causal LM on its device.
        dtype: of the computation; the half precisions go through autocast.
    Raises:
        InputError: the harness cannot load a task.
    """
    with _quiet():
        from lm_eval import simple_evaluate

        from .harness_model import padded_model

        wrapped = padded_model(model, tokenizer, batch_size=options.batch_size, dtype=dtype, multiple=PAD_MULTIPLE)
        tasks = _local_tasks(options) if options.folder else list(options.names)
        try:
            found = simple_evaluate(
                model=wrapped,
                tasks=tasks,
                num_fewshot=options.num_fewshot,
                limit=options.limit,
                task_manager=_manager(own_tasks=options.folder is None),
                bootstrap_iters=1000,  # of metrics that are no means
            )
        except (KeyError, OSError, ConnectionError) as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(
                f"--tasks {','.join(options.names)}: lm-evaluation-harness cannot load them ({reason}). Check the "
                "names and the network, or give local rows with --task-data."
            ) from None
    assert found is not None  # it is None in other processes than the first
    warnings = _own_examples(options)
    if wrapped.full_contexts:
        warnings.append(
            f"some tasks' prompts filled the context of {wrapped.max_length} tokens: the harness cut their start."
        )
    return _figures(found, options), warnings


def _own_examples(options: TaskOptions) -> list[str]:
    """Of local tasks with examples in their prompts: where these come from, if there is no split for them."""
    if options.folder is None or not options.num_fewshot:
        return []
    names = [name for name in options.names if _definitions()[name]["fewshot_split"] == "test"]
    return [f"the examples in the prompts of {', '.join(names)} are other rows of the same file."] if names else []


def paired_rows(first: TaskFigure, second: TaskFigure) -> dict[str, Any] | None:
    """`first` less `second` on the same rows: the mean difference, its standard error, whether that is noise.

    `within_noise` is None where the rows are too few to say.
    """
    if len(first.row_values) != len(second.row_values) or len(first.row_values) < 2:
        return None
    differences = [a - b for a, b in zip(first.row_values, second.row_values, strict=True)]
    mean = statistics.fmean(differences)
    stderr = statistics.stdev(differences) / math.sqrt(len(differences))
    within_noise = abs(mean) <= NOISE * stderr if len(differences) >= LEAST_PAIRS else None
    return {"difference": mean, "stderr": stderr, "within_noise": within_noise}


@cache
def _manager(*, own_tasks: bool) -> Any:
    """The harness's index of tasks; reading its own takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=own_tasks)


@cache
def _definitions() -> dict[str, dict[str, Any]]:
    """Our tasks by name."""
    folder = files(__package__).joinpath("tasks")
    loaded = [
        yaml.safe_load(file.read_text(encoding="utf-8")) for file in folder.iterdir() if file.name[-5:] == ".yaml"
    ]
    return {definition["task"]: definition for definition in loaded}


def _local_tasks(options: TaskOptions) -> list[dict[str, Any]]:
    """Our definitions with the paths of their files filled in; MMLU as one task per subject."""
    assert options.folder is not None
    found: list[dict[str, Any]] = []
    for name in options.names:
        definition = _definitions()[name]
        paths = {
            split: str(options.folder / file) for split, file in definition["dataset_kwargs"]["data_files"].items()
        }
        task = definition | {"dataset_kwargs": {"data_files": paths}}
        if name == "humaneval":
            task["process_results"] = _passes
        found += _by_subject(task) if name == "mmlu" else [task]
    return found


def _passes(row: dict[str, Any], answers: Sequence[str]) -> dict[str, float]:
    """Whether the first answer, put after the prompt, passes the row's tests."""
    program = f"{row['prompt']}{answers[0]}\n{row['test']}\ncheck({row['entry_point']})"
    return {"pass@1": float(run_untrusted(program).passed)}


def _by_subject(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One task per subject of MMLU, since examples are of the question's own subject."""
    path = Path(task["dataset_kwargs"]["data_files"]["test"])
    with path.open(encoding="utf-8", newline="\n") as lines:
        subjects = dict.fromkeys(json.loads(line)["subject"] for line in lines if line.strip())
    for subject in subjects:
        choose = partial(_of_subject, subject=subject)
        yield task | {
            "task": f"mmlu_{subject}",
            "process_docs": choose,
            "fewshot_config": task["fewshot_config"] | {"process_docs": choose},
        }


def _of_subject(rows: Any, *, subject: str) -> Any:
    return rows.filter(lambda row: row["subject"] == subject)


def _figures(found: dict[str, Any], options: TaskOptions) -> dict[str, TaskFigure]:
    """The harness's results as figures; MMLU's subjects joined as the harness's own group joins them, by rows."""
    figures = {name: _figure(name, found, options) for name in found["results"] if name in found["samples"]}
    if options.folder is None or "mmlu" not in options.names:
        return figures
    subjects = {name: figure for name, figure in figures.items() if name.startswith("mmlu_")}
    joined = _joined(list(subjects.values()))
    return {name: figure for name, figure in figures.items() if name not in subjects} | {"mmlu": joined}


def _figure(name: str, found: dict[str, Any], options: TaskOptions) -> TaskFigure:
    result, samples = found["results"][name], found["samples"][name]
    numbers = {
        key: float(value)
        for key, value in result.items()
        if "," in key and isinstance(value, int | float) and "_stderr," not in key
    }
    metric = next((key for key in METRICS if key in numbers), next(iter(numbers)))
    plain, _, filter_name = metric.partition(",")
    values = tuple(
        float(row[plain]) for row in samples if row["filter"] == filter_name and isinstance(row[plain], int | float)
    )
    is_mean = bool(values) and math.isclose(statistics.fmean(values), numbers[metric], abs_tol=1e-9)
    stderr = result.get(f"{plain}_stderr,{filter_name}")
    where = f", local rows of {options.folder}" if options.folder else ""
    return TaskFigure(
        metric=plain if filter_name == "none" else f"{plain} ({filter_name})",
        value=numbers[metric],
        stderr=float(stderr) if isinstance(stderr, int | float) else None,
        rows=found["n-samples"][name]["effective"],
        num_fewshot=found["n-shot"][name],
        version=found["versions"][name],
        source=f"lm-evaluation-harness {version('lm_eval')}{where}",
        files=_hashes(name, options.folder) if options.folder else {},
        metrics=numbers,
        row_values=values if is_mean else (),
    )


def _hashes(name: str, folder: Path) -> dict[str, str]:
    names = _definitions()["mmlu" if name.startswith("mmlu_") else name]["dataset_kwargs"]["data_files"].values()
    return {file: _sha256(folder / file) for file in names}


@cache
def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _joined(parts: Sequence[TaskFigure]) -> TaskFigure:
    """Several tasks as one over all of their rows."""
    values = tuple(value for part in parts for value in part.row_values)
    rows = sum(part.rows for part in parts)
    first = parts[0]
    return TaskFigure(
        metric=first.metric,
        value=sum(part.value * part.rows for part in parts) / rows,
        stderr=statistics.stdev(values) / math.sqrt(rows) if len(values) == rows > 1 else None,
        rows=rows,
        num_fewshot=first.num_fewshot,
        version=first.version,
        source=first.source,
        files=first.files,
        metrics={key: sum(part.metrics[key] * part.rows for part in parts) / rows for key in first.metrics},
        row_values=values,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's notes on what its options are; its errors still show."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
