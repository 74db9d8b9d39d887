"""What a page says about one run, picked from its records: pure functions, None or empty where a record is missing."""

from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from ..system.progress import human_bytes, human_count, human_seconds
from .runs import Run, at, items, number, rows, text


@dataclass(frozen=True)
class Figure:
    """A quantity before and after."""

    label: str
    before: str | None
    after: str
    change: str
    note: str = ""


def model_name(run: Run) -> str:
    """The last part of the dense model's name or path."""
    return PurePath(text(run.result, "config", "model") or "model").name


def title(run: Run) -> str:
    """One line: which model, how much went."""
    gone = number(run.result, "sparsity", "model")
    return model_name(run) + (f", {gone:.1%} smaller" if gone else "")


def subtitle(run: Run) -> str:
    """One sentence on how it was done."""
    config, data = at(run.result, "config"), at(run.result, "data")
    parts = []
    if (reached := number(run.result, "sparsity", "reached")) is not None:
        parts.append(f"{reached:.2%} of the prunable parameters removed")
    if (share := number(run.result, "zeros", "share")) is not None:
        pattern, method = text(config, "pattern") or "?", text(config, "method") or "?"
        parts.append(f"{share:.0%} of the layers' weights are zero ({pattern}), by {method}")
    if criterion := text(config, "criterion"):
        units = f"units {units}, " if (units := text(config, "units") or "heads,channels") != "heads,channels" else ""
        parts.append(f"criterion {criterion}, {units}allocation {text(config, 'allocation') or '?'}")
    if (tokens := number(data, "calibration_tokens")) is not None:
        parts.append(f"no training, cuts: {number(config, 'cuts') or 1:.0f}, each by {tokens:,.0f} tokens")
    elif (trained := number(data, "trained_tokens")) is not None:
        parts.append(f"trained on {trained:,.0f} tokens in {number(data, 'steps') or 0:,.0f} steps")
    if (seconds := number(run.result, "total_seconds")) is not None:
        parts.append(f"took {human_seconds(seconds)}")
    return "; ".join(parts)


def headline(run: Run) -> list[Figure]:
    """Parameters, bytes, latency and quality, before and after."""
    dense, pruned = at(run.result, "dense"), at(run.result, "pruned")
    figures = []
    for key, label, show in (("parameters", "Parameters", human_count), ("bytes", "Weights on disk", human_bytes)):
        before, after = number(dense, key), number(pruned, key)
        if key == "bytes" and (stored := number(dense, "stored_bytes")) is not None:
            label = f"Weights on disk, both in {at(dense, 'dtype')} (dense files: {human_bytes(stored)})"
        if after is not None:
            change = f"{after / before - 1:+.1%}".replace("-", "−") if before else ""
            figures.append(Figure(label, show(before) if before is not None else None, show(after), change))
    return figures + _adapter(run) + _latency(run) + _asked_time(run)


def _adapter(run: Run) -> list[Figure]:
    """Rank and size of a trained adapter."""
    adapter = at(run.result, "adapter")
    before, after, parameters = (number(adapter, key) for key in ("init_rank", "mean_rank", "parameters"))
    if before is None or after is None or parameters is None:
        return []
    return [
        Figure("Adapter's rank", f"{before:g}", f"{after:.4g}", f"÷ {before / after:.3g}" if after else ""),
        Figure("Adapter's parameters", None, human_count(parameters), ""),
    ]


def _latency(run: Run) -> list[Figure]:
    """Median forward time; says so when the difference is within the spread of the repeats."""
    dense, pruned = at(run.result, "speed", "dense"), at(run.result, "speed", "pruned")
    before, after = number(dense, "median_ms"), number(pruned, "median_ms")
    if not before or not after:
        return []
    spread = max(number(dense, "spread_ms") or 0, number(pruned, "spread_ms") or 0)
    notes = [
        f"batch {at(dense, 'batch')} × {at(dense, 'seq_len')} tokens, {text(dense, 'dtype')}, "
        f"median of {at(dense, 'repeats')}"
    ]
    if (by_flops := number(run.result, "speed", "flop_speedup")) is not None:
        notes.append(f"{by_flops:.2f}× by FLOPs")
    change = f"{before / after:.2f}× as fast"
    if abs(before - after) < spread:
        notes.append(f"the difference is within the spread of the repeats, {spread:.0f} ms")
        change = f"{before / after:.2f}×, within the spread"
    return [Figure("Forward pass", f"{before:.1f} ms", f"{after:.1f} ms", change, "; ".join(notes))]


def _asked_time(run: Run) -> list[Figure]:
    """The time that was asked for, and what came of it."""
    asked, measured = at(run.result, "time", "asked"), at(run.result, "time", "measured")
    wanted, predicted = number(asked, "speedup"), number(run.result, "time", "predicted", "speedup")
    if wanted is None or predicted is None:
        return []
    before, after = number(measured, "dense_ms"), number(measured, "pruned_ms")
    reached = f"{before / after:.2f}×" if before and after else "not measured"
    note = f"{text(asked, 'words')}: {wanted:.2f}× asked, {predicted:.2f}× by the cost table"
    shown = [f"{ms:.1f} ms" if ms is not None else None for ms in (before, after)]
    return [Figure(f"Time of {text(asked, 'at')}", shown[0], shown[1] or "not measured", reached, note)]


def generations(run: Run) -> list[dict[str, Any]]:
    """Prompts with what each model wrote: [{"prompt", "answers": [(label, text)]}]."""
    found = []
    for record in [run.result, *run.extras]:
        for sample in rows(record, "samples"):
            answers = [(label, said) for label, said in items(sample, "answers") if isinstance(said, str)]
            if (prompt := text(sample, "prompt")) is not None and answers:
                found.append({"prompt": prompt, "answers": answers})
    return found


def data_rows(run: Run) -> list[tuple[str, str]]:
    """What the run was trained and evaluated on: (name, rows, characters and hash)."""
    found = []
    evaluation = at(run.result, "data", "evaluation")
    for part in [*rows(run.result, "data", "training"), *([evaluation] if isinstance(evaluation, dict) else [])]:
        name = text(part, "name") or text(part, "data")
        if name is None:
            continue
        count, characters = number(part, "rows"), number(part, "characters")
        facts = [
            f"{count:,.0f} rows" if count is not None else "evaluation",
            f"{characters:,.0f} characters" if characters is not None else "",
            f"sha256 {text(part, 'sha256')}" if text(part, "sha256") else "",
        ]
        found.append((name, ", ".join(fact for fact in facts if fact)))
    return found


def environment(run: Run) -> list[tuple[str, str]]:
    """Versions and hardware."""
    record = at(run.result, "environment")
    found = [
        (key.replace("_", " "), _shown(key, value))
        for key, value in items(record)
        if key not in ("versions", "record_format")
    ]
    return found + [(name, str(version)) for name, version in items(record, "versions")]


def _shown(key: str, value: Any) -> str:
    if key.endswith("_bytes") and (size := number(value)) is not None:
        return human_bytes(size)
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "unknown" if value is None else str(value)
