"""Task figures: one task's, several joined, two models' paired, and the seven-task average of the pruning papers."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

NOISE = 2.0
"""Standard errors under which a difference counts as noise."""
LEAST_PAIRS = 10
"""With fewer pairs their own spread says too little about the noise."""
SEVEN_TASKS = {
    "boolq": "acc",
    "piqa": "acc",
    "hellaswag": "acc_norm",
    "winogrande": "acc",
    "arc_easy": "acc",
    "arc_challenge": "acc_norm",
    "openbookqa": "acc_norm",
}
"""The seven tasks of LLM-Pruner's and LoRAPrune's tables with the metric that each is reported in, all zero-shot.

LLM-Pruner's code writes both metrics and its paper names none; these are the ones that reproduce its table
(github.com/horseee/LLM-Pruner/issues/25). LoRAPrune compares itself with that table.
"""
METRICS = ("acc_norm,none", "acc,none", "exact_match,strict-match", "pass@1,none")
"""The figure of other tasks: the first of these that a task has. All of a task's metrics are recorded."""


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
    stderrs: dict[str, float] = field(default_factory=dict)
    """Standard errors of `metrics` that have one."""
    row_texts: tuple[str, ...] = field(default=(), repr=False)
    """What each row says, to look for in the text that a model was trained on."""

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key not in ("row_values", "row_texts")}


def figure_metric(task: str, known: Mapping[str, float]) -> str:
    """Which of a task's metrics (`name,filter`) is its figure: the papers' where they have the task."""
    papers = f"{SEVEN_TASKS.get(task)},none"
    return papers if papers in known else next((key for key in METRICS if key in known), next(iter(known)))


def paired_rows(first: TaskFigure, second: TaskFigure) -> dict[str, Any] | None:
    """`first` less `second` on the same rows: the mean difference, its standard error, whether that is noise.

    `within_noise` is None where the rows are too few to say.
    """
    if len(first.row_values) != len(second.row_values) or len(first.row_values) < 2:
        return None
    differences = [a - b for a, b in zip(first.row_values, second.row_values, strict=True)]
    stderr = statistics.stdev(differences) / math.sqrt(len(differences))
    return _difference(statistics.fmean(differences), stderr, few=len(differences) < LEAST_PAIRS)


def joined(parts: Sequence[TaskFigure]) -> TaskFigure:
    """Several tasks as one over all of their rows."""
    values = tuple(value for part in parts for value in part.row_values)
    rows = sum(part.rows for part in parts)
    first = parts[0]
    stderr = statistics.stdev(values) / math.sqrt(rows) if len(values) == rows > 1 else None
    return TaskFigure(
        metric=first.metric,
        value=sum(part.value * part.rows for part in parts) / rows,
        stderr=stderr,
        rows=rows,
        num_fewshot=first.num_fewshot,
        version=first.version,
        source=first.source,
        files=first.files,
        metrics={key: sum(part.metrics[key] * part.rows for part in parts) / rows for key in first.metrics},
        row_values=values,
        row_texts=tuple(text for part in parts for text in part.row_texts),
    )


def seven_task_average(tasks: Mapping[str, TaskFigure], *, without: str | None = None) -> dict[str, Any] | None:
    """The papers' average: the mean of the seven figures, each task counting the same; None unless all are there.

    All must be zero-shot and in the papers' metric. The standard error takes the tasks as independent of each other.

    Args:
        without: a task that is left out, such as one that says nothing of these models.
    """
    wanted = {name: metric for name, metric in SEVEN_TASKS.items() if name != without}
    found = [tasks[name] for name in wanted if name in tasks]
    if [figure.metric for figure in found] != list(wanted.values()) or any(f.num_fewshot for f in found):
        return None
    errors = [figure.stderr for figure in found if figure.stderr is not None]
    return {
        "value": statistics.fmean(figure.value for figure in found),
        "stderr": _mean_error(errors) if len(errors) == len(found) else None,
        "rows": sum(figure.rows for figure in found),
        "metrics": wanted,
    }


def paired_average(
    first: Mapping[str, TaskFigure], second: Mapping[str, TaskFigure], *, without: str | None = None
) -> dict[str, Any] | None:
    """`first` less `second` of `seven_task_average`, as `paired_rows` gives it; None where a task has no such pair."""
    if not (seven_task_average(first, without=without) and seven_task_average(second, without=without)):
        return None
    pairs = [paired_rows(first[name], second[name]) for name in SEVEN_TASKS if name != without]
    known = [pair for pair in pairs if pair is not None]
    if len(known) < len(pairs):
        return None
    mean, stderr = statistics.fmean(pair["difference"] for pair in known), _mean_error([p["stderr"] for p in known])
    return _difference(mean, stderr, few=any(pair["within_noise"] is None for pair in known))


def _mean_error(errors: Sequence[float]) -> float:
    """Standard error of the mean of independent figures."""
    return math.sqrt(sum(error**2 for error in errors)) / len(errors)


def _difference(mean: float, stderr: float, *, few: bool) -> dict[str, Any]:
    return {"difference": mean, "stderr": stderr, "within_noise": None if few else abs(mean) <= NOISE * stderr}
