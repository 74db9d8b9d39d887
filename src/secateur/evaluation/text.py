"""What `secateur eval` prints: perplexities with their conditions, tasks with their differences."""

from collections.abc import Mapping
from typing import Any

from ..data.packing import PLAIN_SEGMENTS
from ..system.terminal.tables import Table
from .figures import TaskFigure, seven_task_average
from .perplexity import Paired, Perplexity


def perplexity_lines(
    measured: Mapping[str, tuple[int, Perplexity]],
    info: Mapping[str, Any],
    difference: Paired | None,
    nats_per_byte: Mapping[str, float],
) -> list[str | Table]:
    """Lines for people.

    Args:
        measured: parameters and perplexity by model.
        info: the text's record.
        nats_per_byte: by model, where they cut the text into different tokens.
    """
    rows = [
        (name, f"{parameters:,}", f"{p.perplexity:.3f} ± {p.stderr:.3f}", f"{p.mean_nll:.4f} ± {p.stderr_nll:.4f}",
         *([f"{nats_per_byte[name]:.4f}"] if nats_per_byte else []))
        for name, (parameters, p) in measured.items()
    ]  # fmt: skip
    header = ("model", "parameters", "perplexity", "nats per token", *(["nats per byte"] if nats_per_byte else []))
    lines: list[str | Table] = [Table(header, rows)]
    figures = [p for _, p in measured.values()]
    if difference:
        lines.append(f"ratio {figures[0].perplexity / figures[1].perplexity:.3f}; {difference.verdict}")
    place = f"{info['text']}, {info['split']} split, {info['data']}" if info.get("text") else info["data"]
    scored = [
        f"{p.tokens_scored:,} tokens of targets scored, given their sources" if p.pairs
        else f"{p.tokens_scored:,} tokens scored in {p.segments} segments of {p.seq_len}" for p in figures
    ]  # fmt: skip
    if len(set(scored)) == 1:
        scored = [scored[0].replace(" in ", f" of {info['tokens']:,} in ")]
    begins = [words for words in dict.fromkeys(info.get("begins", {}).values()) if words != PLAIN_SEGMENTS]
    conditions = [" and ".join(scored), *begins, figures[0].dtype]
    lines.append(f"{place} ({info['joined']}), {', '.join(conditions)}")
    return lines


def task_lines(
    figures: Mapping[str, Mapping[str, TaskFigure]],
    differences: Mapping[str, dict[str, Any]],
    average: dict[str, Any] | None,
) -> list[str | Table]:
    """A table of tasks.

    Args:
        figures: of each model by task.
        differences: of each task's rows, for two models.
        average: of the seven-task average, for two models.
    """
    first, two = next(iter(figures.values())), len(figures) == 2
    rows = []
    for name, figure in first.items():
        values = [tasks[name] for tasks in figures.values()]
        about = f"{figure.metric}, {figure.rows:,} rows, {figure.num_fewshot}-shot"
        about += f", version {figure.version}" if figure.version is not None else ""
        cells = [_shown(f.value, f.stderr) for f in values]
        rows.append((f"{name} ({about})", *cells, *([_paired(differences.get(name))] if two else [])))
    averages = [seven_task_average(tasks) for tasks in figures.values()]
    if all(averages):
        cells = [_shown(found["value"], found["stderr"]) for found in averages if found]
        rows.append(("seven-task average", *cells, *([_paired(average)] if two else [])))
    header = ("task", *figures, *(("paired difference",) if two else ()))
    sources = dict.fromkeys(figure.source for figure in first.values())
    return ["", Table(header, rows), *sources]


def _shown(value: float, stderr: float | None) -> str:
    return f"{value:.2%}" + (f" ± {stderr:.2%}" if stderr is not None else "")


def _paired(found: dict[str, Any] | None) -> str:
    if not found:
        return ""
    noise = {True: " (noise)", False: "", None: " (few rows)"}[found["within_noise"]]
    return f"{found['difference']:+.2%} ± {found['stderr']:.2%}{noise}"
