"""What became of a run's units, picked from its records: layer by layer, cut by cut, and by their scores."""

from dataclasses import dataclass
from functools import cached_property

from .runs import Run, at, items, number, rows

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

    @cached_property
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


def _kind(pool: str) -> str:
    return pool.rsplit(".", 1)[-1]


def _one(kind: str) -> str:
    return WORDS[kind][1] if kind in WORDS else words(kind)


def _layer(pool: str, position: int) -> int:
    """The layer in a pool's name (`layer.3.ffn`), or its place in the record."""
    part = pool.split(".")[1] if pool.count(".") > 1 else ""
    return int(part) if part.isdecimal() else position
