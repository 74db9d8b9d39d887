"""`secateur compare`'s options: which runs, and whether they compare. No torch here."""

from dataclasses import MISSING, Field, dataclass, fields
from itertools import product
from typing import Any

from .config import CompareConfig, PruneConfig
from .errors import InputError, all_faults
from .options import build, flag, known_options, read_options
from .registry import did_you_mean

SAME_EVERYWHERE = (
    "model", "data", "steps", "epochs", "batch_size", "seq_len", "response_only", "packing", "eval_seq_len",
    "eval_tokens",
)  # fmt: skip
"""Cells that differ in one of these are not comparable."""
TARGETS = ("sparsity", "target_params", "target_bytes")
"""Ways to say how small the model gets."""
LISTS = ("data", "targets")
"""Options of `prune` that are lists themselves: more than one value is one cell's."""


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    name: str
    config: PruneConfig
    kind: str = "prune"
    """`prune`, or a baseline: `dense` (not trained), `dense+lora` (trained, not pruned)."""


@dataclass(frozen=True)
class Comparison:
    """A grid of runs whose options are good."""

    settings: CompareConfig
    cells: tuple[Cell, ...]


def build_comparison(given: dict[str, Any], config_file: str | None = None) -> Comparison:
    """The grid that options and a YAML file ask for. An option of `prune` with several values is an axis.

    Raises:
        InputError: faults of any cell, cells that do not compare, two cells of one name.
    """
    values = read_options(given, config_file)
    own = known_options(CompareConfig)
    settings = build(CompareConfig, {key: value for key, value in values.items() if key in own})
    shared, axes = _axes({key: value for key, value in values.items() if key not in own or key == "output"})
    cells = [_baseline(name, shared, axes) for name in settings.baselines]
    if axes or not settings.cells:
        for combination in product(*axes.values()):
            changes = dict(zip(axes, combination, strict=True))
            cells.append(_cell("_".join(_label(key, changes[key]) for key in changes) or "run", shared, changes))
    for line in settings.cells:
        name, changes = _named_cell(line)
        defaults = shared | {key: values[0] for key, values in axes.items()}
        if any(key in changes for key in TARGETS):  # one of them stands in for the others
            defaults = {key: value for key, value in defaults.items() if key not in TARGETS}
        cells.append(_cell(name, defaults, changes))
    names = [cell.name for cell in cells]
    all_faults([f"two cells are called {name!r}: rename one." for name in set(names) if names.count(name) > 1])
    if not settings.allow_different:
        _check_alike(cells)
    return Comparison(settings, tuple(cells))


def _axes(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Options with one value, and those with several (`lora,taylor`, or a YAML list)."""
    shared: dict[str, Any] = {}
    axes: dict[str, list[str]] = {}
    for key, value in values.items():
        items = value.split(",") if isinstance(value, str) else value
        several = isinstance(items, list) and len(items) > 1
        if several and key not in (*LISTS, "output"):
            axes[key] = [str(item).strip() for item in items]
        else:
            shared[key] = value
    return shared, axes


def _baseline(name: str, shared: dict[str, Any], axes: dict[str, list[str]]) -> Cell:
    # A criterion scores nothing in a baseline; but LoRA on chosen linears alone does not go with every criterion.
    names = (*SAME_EVERYWHERE, "lr", "seed", *(("criterion",) if "targets" in shared else ()))
    first = {key: values[0] for key, values in axes.items() if key in names}
    return Cell(name, _cell(name, {**shared, **first}, {}).config, kind=name)


def _cell(name: str, shared: dict[str, Any], changes: dict[str, Any]) -> Cell:
    try:
        return Cell(name, build(PruneConfig, {**shared, **changes}))
    except InputError as error:
        raise InputError(f"cell {name!r}: {error}") from None


def _named_cell(line: str) -> tuple[str, dict[str, str]]:
    """`best: criterion=gate lora_init=pissa` -> its name and options."""
    name, colon, rest = line.partition(":")
    pairs = [item.partition("=") for item in rest.split()]
    if not colon or not pairs or any(not equals for _, equals, _ in pairs):
        raise InputError(f"--cells {line!r}: write it as `name: option=value option=value`.")
    changes = {key.replace("-", "_"): value for key, _, value in pairs}
    known = known_options(PruneConfig)
    all_faults(
        [f"--cells {name}: unknown option {key!r}. {did_you_mean(key, known)}" for key in changes if key not in known]
    )
    return name.strip(), changes


def _label(key: str, value: str) -> str:
    """`lora` for criterion=lora, `sparsity0.5` otherwise; safe as a folder's name."""
    text = value if key in ("criterion", "schedule", "allocation") else f"{key.replace('_', '-')}{value}"
    return "".join(c if c.isalnum() or c in ".+-" else "-" for c in text)


def _check_alike(cells: list[Cell]) -> None:
    faults = []
    for name in SAME_EVERYWHERE:
        found = {str(getattr(cell.config, name)) for cell in cells}
        if len(found) > 1:
            faults.append(
                f"cells differ in {flag(name)} ({', '.join(sorted(found))}), so their results do not compare: give all "
                "the same, or pass --allow-different."
            )
    all_faults(faults)


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """`lr: 0.0005 -> 0.001` for every option of `prune` in which two recorded configs differ.

    An option that a record of an earlier version does not have was at its default then.
    """
    ignored = {"output", "overwrite", "save_steps", "process_timeout"}

    def value(config: dict[str, Any], option: Field[Any]) -> Any:
        found = config.get(option.name, None if option.default is MISSING else option.default)
        return list(found) if isinstance(found, tuple) else found

    return [
        f"{f.name}: {value(one, f)} -> {value(other, f)}"
        for f in fields(PruneConfig)
        if f.name not in ignored and value(one, f) != value(other, f)
    ]
