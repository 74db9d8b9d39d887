"""Task figures of several models on the same local rows, and each one's paired difference from the first.

    SECATEUR_DATA=/path/to/data python benchmarks/quality/tasks.py runs/tasks --limit 200 \
        --models dense=smollm2-135m-instruct lora-20=runs/criteria-20-2048/lora/checkpoint ...
    python benchmarks/quality/tasks.py runs/tasks --limit 200 --table --models ...    # only from what is there

The pruning papers' seven tasks in their metrics, zero-shot, and their average; bfloat16 where the hardware has it.
A model that has its record is not run again. The figures of each record are lm-evaluation-harness's (`secateur eval
--tasks` gives the same).
"""

import argparse
import json
import math
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from secateur.evaluation.figures import (
    SEVEN_TASKS,
    TaskFigure,
    figure_metric,
    paired_average,
    paired_rows,
    seven_task_average,
)
from secateur.evaluation.harness import TaskOptions, check_tasks, run_tasks
from secateur.models.devices import compute_dtype, widened
from secateur.models.loading import load_model
from secateur.models.source import resolve_model
from secateur.models.tokenizers import load_tokenizer
from secateur.system.records import environment, markdown_table, write_json

HABIT = "boolq"
"""Two answers, most of them yes: a model that says yes to everything is ahead of one that does not."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=MODEL")
    parser.add_argument("--tasks", nargs="+", default=list(SEVEN_TASKS))
    parser.add_argument("--limit", type=int, help="rows of each task; default: all")
    parser.add_argument("--num-fewshot", type=int)
    parser.add_argument("--allow-code-execution", action="store_true", help="for humaneval")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--summary", type=Path, help="also write the records into one file, rows as strings of 0 and 1")
    given = parser.parse_args()
    models = dict(pair.split("=", 1) for pair in given.models)
    given.folder.mkdir(parents=True, exist_ok=True)
    if not given.table:
        data = Path(os.environ.get("SECATEUR_DATA") or sys.exit("set SECATEUR_DATA to the folder of the data sets"))
        options = TaskOptions(tuple(given.tasks), given.num_fewshot, given.limit, data, 8, given.allow_code_execution)
        check_tasks(options)
        for name, model in models.items():
            run(given.folder / f"{name}.json", model, options)
    print(
        table(
            {name: read(given.folder / f"{name}.json") for name in models if (given.folder / f"{name}.json").exists()}
        )
    )
    if given.summary:
        known = json.loads(given.summary.read_text()) if given.summary.exists() else {}
        write_json(given.summary, known | {name: summary(given.folder / f"{name}.json") for name in models})


def summary(path: Path) -> dict[str, object]:
    """A record without private paths."""
    record = json.loads(path.read_text(encoding="utf-8"))
    for figure in record["tasks"].values():
        figure["source"] = figure["source"].split(" of /")[0]
        figure["row_values"] = "".join(str(int(value)) for value in figure["row_values"])
    kept = ("commit", "versions", "python", "cpu", "secateur")
    record["environment"] = {key: value for key, value in record["environment"].items() if key in kept}
    return record


def run(path: Path, name: str, options: TaskOptions) -> None:
    """One model's record, with the value of every row."""
    if path.exists():
        return
    source, dtype, started = resolve_model(name), compute_dtype("auto"), time.perf_counter()
    model = widened(load_model(source, trust_remote_code=True), dtype)
    found, warnings = run_tasks(model, load_tokenizer(source), options, dtype)
    rows = {task: list(figure.row_values) for task, figure in found.items()}
    record = {
        "environment": environment(),
        "dtype": str(dtype),
        "limit": options.limit,
        "warnings": warnings,
        "seconds": time.perf_counter() - started,
        "tasks": {task: figure.to_dict() | {"row_values": rows[task]} for task, figure in found.items()},
    }
    write_json(path, record)
    print(f"{path.stem}: {record['seconds']:.0f} s", flush=True)


def read(path: Path) -> dict[str, TaskFigure]:
    tasks = json.loads(path.read_text(encoding="utf-8"))["tasks"]
    return {
        name: in_papers_metric(name, TaskFigure(**{**task, "row_values": tuple(map(float, task["row_values"]))}))
        for name, task in tasks.items()
    }


def in_papers_metric(name: str, figure: TaskFigure) -> TaskFigure:
    """A figure of an older record, which preferred acc_norm, in the metric of the papers.

    Its rows were of the other metric, so there is no paired difference; its standard error is that of shares.
    """
    metric = figure_metric(name, figure.metrics)
    if metric.removesuffix(",none") == figure.metric or not metric.endswith(",none"):
        return figure
    value = figure.metrics[metric]
    stderr = math.sqrt(value * (1 - value) / (figure.rows - 1))
    return replace(figure, metric=metric.removesuffix(",none"), value=value, stderr=stderr, row_values=())


def table(records: dict[str, dict[str, TaskFigure]]) -> str:
    """One row a model: each task's figure ± its standard error, the difference from the first where it is no noise."""
    first = next(iter(records.values()))
    header = (
        "model",
        *(f"{name} ({first[name].metric}, {first[name].rows} rows)" for name in first),
        "seven-task average",
        f"without {HABIT}",
    )
    lines = []
    for name, figures in records.items():
        cells = [
            cell(f.value, f.stderr, paired_rows(f, first[task]) if figures is not first else None)
            for task, f in figures.items()
        ]
        lines.append((name, *cells, average(figures, first), average(figures, first, without=HABIT)))
    return markdown_table(lines, header)


def average(figures: dict[str, TaskFigure], first: dict[str, TaskFigure], *, without: str | None = None) -> str:
    found = seven_task_average(figures, without=without)
    if found is None:
        return "–"
    paired = paired_average(figures, first, without=without) if figures is not first else None
    return cell(found["value"], found["stderr"], paired)


def cell(value: float, stderr: float | None, paired: dict[str, Any] | None) -> str:
    shown = f"{100 * value:.1f} ± {100 * (stderr or 0):.1f}"
    if paired is None:
        return shown
    noise = " (noise)" if paired["within_noise"] else ""
    return f"{shown}, {100 * paired['difference']:+.1f} ± {100 * paired['stderr']:.1f}{noise}"


if __name__ == "__main__":
    main()
