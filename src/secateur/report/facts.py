"""What a page says about one run, picked from its records: pure functions, None or empty where a record is missing."""

from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from ..system.progress import human_bytes, human_count, human_seconds
from .runs import Run, at, items, number, rows, text

WORDS = {
    "ffn": ("FFN channels", "FFN channel"),
    "kv_group": ("KV groups", "KV group"),
    "query_head": ("query heads", "query head"),
    "layer": ("layers", "layer"),
    "attention_block": ("attention blocks", "attention block"),
    "ffn_block": ("FFN blocks", "FFN block"),
}
"""Kind of unit, as the last part of a pool's name -> words for many and for one."""

SHOWN_CUTS = 12  # rows of the picture of layers over time


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
    return figures + _adapter(run) + _latency(run)


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


def kinds(run: Run) -> list[str]:
    """The kinds of prunable unit, attention before FFN as in the record."""
    return list(dict.fromkeys(_kind(name) for name, _ in items(run.units, "pools")))


def words(kind: str) -> str:
    """`FFN channels` for `ffn`; an unknown kind as it is written."""
    return WORDS[kind][0] if kind in WORDS else kind.replace("_", " ")


@dataclass(frozen=True)
class Cell:
    """What is left of one kind of unit in one layer."""

    layer: int
    kept: int
    units: int

    @property
    def share(self) -> float:
        return self.kept / self.units if self.units else 1.0


def layers(run: Run) -> dict[str, list[Cell]]:
    """What is left, by kind: (label, one cell per layer in order). Query heads follow from the KV groups."""
    found: dict[str, list[Cell]] = {}
    for name, pool in items(run.units, "pools"):
        units = number(pool, "units")
        if units is None:
            continue
        cells = found.setdefault(words(_kind(name)), [])
        cells.append(Cell(_layer(name, len(cells)), len(rows(pool, "kept")), int(units)))
    groups = found.get("KV groups")
    if groups and "query heads" not in found and (heads := _heads(run, groups)):
        return {"query heads": heads, **found}
    return found


def layer_rows(found: dict[str, list[Cell]]) -> list[tuple[int, list[Cell | None]]]:
    """The same as rows of a table, (layer, a cell or None per kind); kinds need not be in all layers."""
    places: dict[tuple[int, int], list[Cell | None]] = {}
    for column, cells in enumerate(found.values()):
        seen: dict[int, int] = {}
        for cell in cells:
            place = (cell.layer, seen.get(cell.layer, 0))  # a layer of experts has several
            seen[cell.layer] = place[1] + 1
            places.setdefault(place, [None] * len(found))[column] = cell
    return [(layer, places[layer, i]) for layer, i in sorted(places)]


def _heads(run: Run, groups: list[Cell]) -> list[Cell]:
    """Query heads of each layer where whole KV groups went: as many to a group as the result's shapes say."""
    shapes = rows(run.result, "shapes")
    cells = []
    for group in groups:
        heads, kv_heads = (number(shapes, group.layer, key) for key in ("heads", "kv_heads"))
        if not heads or not kv_heads:
            return []
        cells.append(Cell(group.layer, int(heads), int(group.units * heads / kv_heads)))
    return cells


def layers_over_time(run: Run) -> dict[str, dict[str, list[Cell]]]:
    """What was left after each cut, {kind: {"step 20": cells}}, of the kinds whose layers were not always alike."""
    sizes = {name: number(pool, "units") for name, pool in items(run.units, "pools")}
    left = {name: int(size) for name, size in sizes.items() if size is not None}
    found: dict[str, dict[str, list[Cell]]] = {}
    for cut in rows(run.units, "cuts"):
        for name, gone in items(cut, "removed"):
            if name in left and isinstance(gone, list):
                left[name] -= len(gone)
        for name in left:
            cells = found.setdefault(words(_kind(name)), {}).setdefault(f"step {at(cut, 'step')}", [])
            cells.append(Cell(_layer(name, len(cells)), left[name], int(sizes[name] or 0)))
    return {
        kind: _thinned(steps)
        for kind, steps in found.items()
        if any(len({cell.share for cell in cells}) > 1 for cells in steps.values())
    }


def _thinned(steps: dict[str, list[Cell]]) -> dict[str, list[Cell]]:
    """At most `SHOWN_CUTS` of the steps, evenly spaced, the last one among them."""
    names = list(steps)
    chosen = {names[len(names) - 1 - i * len(names) // SHOWN_CUTS] for i in range(min(SHOWN_CUTS, len(names)))}
    return steps if len(names) <= SHOWN_CUTS else {name: steps[name] for name in names if name in chosen}


def share_left(cells: list[Cell]) -> float:
    """Of one kind of unit, over all layers."""
    units = sum(cell.units for cell in cells)
    return sum(cell.kept for cell in cells) / units if units else 1.0


@dataclass(frozen=True)
class CutRow:
    """One cut, in words."""

    step: int
    removed: str
    sparsity: str


def cuts(run: Run) -> list[CutRow]:
    """What each cut took."""
    found = []
    for cut in rows(run.units, "cuts"):
        counts: dict[str, int] = {}
        for name, gone in items(cut, "removed"):
            counts[_kind(name)] = counts.get(_kind(name), 0) + (len(gone) if isinstance(gone, list) else 0)
        step, sparsity = number(cut, "step"), number(cut, "sparsity")
        if step is None:
            continue
        listed = ", ".join(f"{count:,} {words(kind) if count != 1 else _one(kind)}" for kind, count in counts.items())
        found.append(CutRow(int(step), listed or "nothing", f"{sparsity:.2%}" if sparsity is not None else ""))
    return found


@dataclass(frozen=True)
class Scores:
    """The scores of a kind of unit in one layer just before the first cut."""

    layer: int
    kept: list[float]
    gone: list[float]

    @property
    def threshold(self) -> float | None:
        """The score below which as many units lie as went in the end; None where nothing went."""
        ranked = sorted(self.kept + self.gone)
        return ranked[len(self.gone)] if self.gone and self.kept else None


def scores(run: Run, kind: str) -> list[Scores]:
    """Scores before the cuts, by what became of the units in the end."""
    found: list[Scores] = []
    for name, values in items(run.units, "scores_before_cuts"):
        if _kind(name) != kind or not isinstance(values, list):
            continue
        kept = {unit for unit in rows(run.units, "pools", name, "kept") if isinstance(unit, int)}
        known = [(unit, value) for unit, value in enumerate(values) if number(value) is not None]
        found.append(
            Scores(
                _layer(name, len(found)),
                [value for unit, value in known if unit in kept],
                [value for unit, value in known if unit not in kept],
            )
        )
    return found


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


def _kind(pool: str) -> str:
    return pool.rsplit(".", 1)[-1]


def _one(kind: str) -> str:
    return WORDS[kind][1] if kind in WORDS else words(kind)


def _layer(pool: str, position: int) -> int:
    """The layer in a pool's name (`layer.3.ffn`), or its place in the record."""
    part = pool.split(".")[1] if pool.count(".") > 1 else ""
    return int(part) if part.isdecimal() else position
