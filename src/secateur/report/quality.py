"""Perplexities and task figures of the dense and the pruned model, gathered from a run's own and eval's records."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

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
            return f"{value:.2f}" if value < 1e4 else f"{value:,.0f}"
        return f"{100 * value:.1f} %" + (f" ± {100 * stderr:.1f}" if stderr is not None else "")


def measures(run: Run) -> list[Measure]:
    """Every figure that the records hold for this run: perplexities first, then tasks.

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
    return sorted(useful, key=lambda measure: not measure.lower_is_better)


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
    places = {run.folder.resolve()}
    if folder := text(run.result, "export", "folder"):
        places.add(Path(folder).resolve())
    dense = text(run.result, "config", "model")
    found = {}
    for name, figures in items(record, "models"):
        if Path(name).resolve() in places:
            found["pruned"] = figures
        elif name == dense:
            found["dense"] = figures
    return found


def _perplexity(data: Any, dense: Any, pruned: Any, verdict: str) -> Measure:
    # A preset's name says the segment length too, which the conditions have.
    name = text(data, "text") or PurePath(text(data, "data") or "evaluation text").name
    one = pruned if number(pruned, "perplexity") is not None else dense
    scored, seq_len = number(one, "tokens_scored") or 0, number(one, "seq_len") or 0
    conditions = (
        f"{text(data, 'joined') or 'joining not stated'}, {scored:,.0f} tokens scored in segments of {seq_len:,.0f}, "
        f"{text(one, 'dtype')}"
    )
    return Measure(
        label=f"Perplexity, {name}",
        conditions=conditions,
        lower_is_better=True,
        dense=number(dense, "perplexity"),
        pruned=number(pruned, "perplexity"),
        verdict=verdict,
    )


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
