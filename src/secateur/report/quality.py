"""Perplexities and task figures of the dense and the pruned model, gathered from a run's own and eval's records."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from ..evaluation.figures import SEVEN_TASKS
from .runs import Run, at, items, number, rows, text


@dataclass(frozen=True)
class Measure:
    """One quality figure under stated conditions; dense and pruned were measured alike or are missing."""

    label: str
    conditions: str
    lower_is_better: bool
    dense: float | None = None
    pruned: float | None = None
    dense_stderr: float | None = None
    pruned_stderr: float | None = None
    verdict: str = ""
    """What eval said of the paired difference."""

    @property
    def change(self) -> str:
        if not self.dense or self.pruned is None:
            return ""
        if self.lower_is_better:
            return f"{self.pruned / self.dense:.3f} ×"
        return f"{100 * (self.pruned - self.dense):+.1f} points".replace("-", "−")

    def show(self, value: float | None, stderr: float | None = None) -> str:
        if value is None:
            return ""
        if self.lower_is_better:
            if value >= 1e4:
                return f"{value:,.0f}"
            return f"{value:.2f}" + (f" ± {stderr:.2f}" if stderr is not None else "")
        return f"{100 * value:.1f} %" + (f" ± {100 * stderr:.1f}" if stderr is not None else "")


def measures(run: Run) -> list[Measure]:
    """Every figure that the records hold for this run: perplexities first, then the seven-task average and tasks.

    Figures with the same label and conditions are one row: the dense model may have been measured in a file of
    its own.
    """
    merged: dict[tuple[str, str], Measure] = {}
    for measure in _all(run):
        key = (measure.label, measure.conditions)
        known = merged.get(key)
        if known is None:
            merged[key] = measure
            continue
        merged[key] = replace(
            known,
            dense=measure.dense if known.dense is None else known.dense,
            pruned=measure.pruned if known.pruned is None else known.pruned,
            dense_stderr=measure.dense_stderr if known.dense is None else known.dense_stderr,
            pruned_stderr=measure.pruned_stderr if known.pruned is None else known.pruned_stderr,
            verdict=known.verdict or measure.verdict,
        )
    useful = [measure for measure in merged.values() if measure.pruned is not None]
    return [
        *(measure for measure in useful if measure.lower_is_better),
        *_average(run),
        *(measure for measure in useful if not measure.lower_is_better),
    ]


def headline(found: list[Measure]) -> list[Measure]:
    """What stands at the top of the page: the first perplexity, and the seven-task average or else the first task."""
    perplexities = [measure for measure in found if measure.lower_is_better]
    shares = [measure for measure in found if not measure.lower_is_better]
    return perplexities[:1] + shares[:1]


def unmatched(run: Run) -> list[str]:
    """Names of eval's records that speak of neither this run's checkpoint nor the model that it was made from."""
    return [
        f"{text(record, 'file') or 'A record'} is not shown: it is about "
        f"{' and '.join(name for name, _ in items(record, 'models'))}, not this run's checkpoint or its dense model."
        for record in run.extras
        if items(record, "models") and not _sides(run, record)
    ]


def warnings(run: Run) -> list[str]:
    """What eval warned of (overlap with the training text and the like)."""
    found = [str(warning) for record in run.extras if _sides(run, record) for warning in rows(record, "warnings")]
    return list(dict.fromkeys(found))


def _all(run: Run) -> Iterator[Measure]:
    own = at(run.result, "data", "evaluation")
    after = at(run.result, "pruned", "perplexity") or at(run.result, "adapted", "perplexity")
    if after:
        yield _perplexity(own, at(run.result, "dense", "perplexity"), after, "")
    for record in run.extras:
        sides = _sides(run, record)
        dense, pruned = sides.get("dense"), sides.get("pruned")
        # The difference is `--model` less `--against`: it speaks of this run where these are pruned and dense.
        paired = len(sides) == 2 and at(record, "models", text(record, "config", "model") or "") is pruned
        for side in (dense, pruned):
            if number(side, "perplexity") is not None:
                verdict = text(record, "paired", "verdict") or "" if paired else ""
                yield _perplexity(at(record, "data"), dense, pruned, verdict)
                break
        yield from _tasks(dense, pruned, at(record, "paired_tasks") if paired else None)


def _sides(run: Run, record: dict[str, Any]) -> dict[str, Any]:
    """An eval record's figures of this run's own checkpoint and of the model that it was pruned from."""
    places: set[str | None] = {str(run.folder.resolve())}
    if folder := text(run.result, "export", "folder"):
        places.add(str(Path(folder).resolve()))
    dense = text(run.result, "config", "model")
    found = {}
    for name, figures in items(record, "models"):
        here = {str(Path(name).resolve()), text(record, "folders", name)}  # eval may have run in another folder
        if here & places:
            found["pruned"] = figures
        elif dense is not None and (name == dense or str(Path(dense).resolve()) in here):
            found["dense"] = figures
    return found


def _average(run: Run) -> Iterator[Measure]:
    """The seven-task average where all seven are known of the result, be it from several records."""
    known: dict[str, dict[str, tuple[float, float, float]]] = {"dense": {}, "pruned": {}}
    verdict = ""
    for record in run.extras:
        sides = _sides(run, record)
        for side, figures in sides.items():
            for name, task in items(figures, "tasks"):
                if (figure := _in_papers_metric(name, task)) is not None:
                    known[side].setdefault(name, figure)
        if at(record, "models", text(record, "config", "model") or "") is sides.get("pruned"):
            verdict = verdict or _task_verdict(at(record, "paired_average"))
    dense, pruned = known["dense"], known["pruned"]
    if set(pruned) != set(SEVEN_TASKS):
        return
    rows = {name: figure[2] for name, figure in pruned.items()}
    alike = {name: figure[2] for name, figure in dense.items()} == rows
    metrics = ", ".join(f"{name} {metric}" for name, metric in SEVEN_TASKS.items())
    before, after = _mean(dense) if alike else None, _mean(pruned)
    yield Measure(
        label="Seven-task average",
        conditions=f"zero-shot, {sum(rows.values()):,.0f} rows; {metrics}",
        lower_is_better=False,
        dense=before[0] if before else None,
        pruned=after[0],
        dense_stderr=before[1] if before else None,
        pruned_stderr=after[1],
        verdict=verdict if before else "",
    )


def _in_papers_metric(name: str, task: Any) -> tuple[float, float, float] | None:
    """(value, standard error, rows) of one of the seven tasks; an older record has the value among its metrics."""
    metric, rows = SEVEN_TASKS.get(name), number(task, "rows")
    if metric is None or not rows or rows < 2 or number(task, "num_fewshot"):
        return None
    value, stderr = number(task, "metrics", f"{metric},none"), number(task, "stderrs", f"{metric},none")
    if text(task, "metric") == metric:
        value, stderr = number(task, "value"), number(task, "stderr")
    if value is None or not 0 <= value <= 1:
        return None
    return value, stderr if stderr is not None else math.sqrt(value * (1 - value) / (rows - 1)), rows


def _mean(figures: dict[str, tuple[float, float, float]]) -> tuple[float, float]:
    values = figures.values()
    return sum(v[0] for v in values) / len(values), math.sqrt(sum(v[1] ** 2 for v in values)) / len(values)


def _perplexity(data: Any, dense: Any, pruned: Any, verdict: str) -> Measure:
    # A preset's name says the segment length too, which the conditions have.
    name = text(data, "text") or PurePath(text(data, "data") or "evaluation text").name
    one = pruned if number(pruned, "perplexity") is not None else dense
    scored, seq_len = number(one, "tokens_scored") or 0, number(one, "seq_len") or 0
    where = f"in segments of {seq_len:,.0f}"
    if isinstance(one, dict) and one.get("pairs"):
        where = "of targets, given their sources"
    split = text(data, "split")
    conditions = (
        f"{split + ' split, ' if split else ''}{text(data, 'joined') or 'joining not stated'}, {scored:,.0f} tokens "
        f"scored {where}, {text(one, 'dtype')}"
    )
    return Measure(
        label=f"Perplexity, {name}",
        conditions=conditions,
        lower_is_better=True,
        dense=number(dense, "perplexity"),
        pruned=number(pruned, "perplexity"),
        dense_stderr=_perplexity_stderr(dense),
        pruned_stderr=_perplexity_stderr(pruned),
        verdict=verdict,
    )


def _perplexity_stderr(figures: Any) -> float | None:
    """To first order, where the record has it of the mean loss alone."""
    of_mean, value = number(figures, "stderr_nll"), number(figures, "perplexity")
    return of_mean * value if of_mean is not None and value is not None else None


def _tasks(dense: Any, pruned: Any, paired: Any) -> Iterator[Measure]:
    for name in dict.fromkeys(key for side in (dense, pruned) for key, _ in items(side, "tasks")):
        one = at(pruned, "tasks", name) or at(dense, "tasks", name)
        yield Measure(
            label=f"{name}, {text(one, 'metric')}",
            conditions=(
                f"{number(one, 'rows') or 0:,.0f} rows, {number(one, 'num_fewshot') or 0:.0f}-shot, "
                f"version {at(one, 'version')}, {text(one, 'source') or 'lm-evaluation-harness'}"
            ),
            lower_is_better=False,
            dense=number(dense, "tasks", name, "value"),
            pruned=number(pruned, "tasks", name, "value"),
            dense_stderr=number(dense, "tasks", name, "stderr"),
            pruned_stderr=number(pruned, "tasks", name, "stderr"),
            verdict=_task_verdict(at(paired, name)),
        )


def _task_verdict(paired: Any) -> str:
    """The paired difference of the rows, in words."""
    difference, stderr = number(paired, "difference"), number(paired, "stderr")
    if difference is None or stderr is None:
        return ""
    within = at(paired, "within_noise")
    place = "too few rows to tell from noise" if within is None else f"{'within' if within else 'outside'} the noise"
    shown = f"{100 * difference:+.1f}".replace("-", "−")
    return f"{shown} ± {100 * stderr:.1f} points (paired, one standard error): {place}"
