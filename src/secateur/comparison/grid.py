"""`secateur compare`'s options: which runs, and whether they compare. No torch here."""

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from itertools import product
from typing import Any

from ..config.compare import CompareConfig
from ..config.files.recipes import build_values, read_with_recipe
from ..config.files.rerun import RERUN
from ..config.lora import LoraOptions
from ..config.options import build, flag, known_options
from ..config.prune import PruneConfig
from ..config.run import RunConfig
from ..config.sizes import TARGETS
from ..config.sparsify import LEARNT, OF_TRAINING, SET_BY_LEARNT, SparsifyConfig
from ..system.errors import InputError, all_faults
from ..system.locks import LOCK
from ..system.registry import did_you_mean

SAME_EVERYWHERE = (
    "model", "data", "steps", "epochs", "batch_size", "seq_len", "response_only", "packing", "eval_seq_len",
    "eval_tokens", "device",
)  # fmt: skip
"""Cells that differ in one of these are not comparable."""
LISTS = ("data", "targets")
"""Options of `prune` that are lists themselves: more than one value is one cell's."""
UNTRAINED = ("model", "trust_remote_code", "seq_len", "eval_seq_len", "eval_tokens", "dtype")
"""What a model that is only measured depends on."""
TRAINED = (*SAME_EVERYWHERE, "lr", "seed")
"""Axes that the baselines take part in too."""
HOW = ("device", "output", "overwrite", "save_steps", "resume", "process_timeout", "report_to")
"""Options that change no result."""
ONLY = {
    "floor": ("allocation", ("global", "search")),
    "across_layers": ("allocation", ("global", "search")),
    "gate_tokens": ("criterion", ("gate",)),
    "mask_lr": ("criterion", ("learned", "projected", "compresso")),
}
"""Options that are felt where another one has one of some values, alone."""
OF_ZEROS = ("method", "pattern", "keep_pattern", "mask_lora")
"""Options of `sparsify` that are not of `prune`; one of the first two makes a cell a run of it."""
MADE_SMALLER = ("prune", "sparsify")
"""Kinds of cells that are no baselines."""
BY_STEPS = ("lr", "lr_warmup", "epochs", "gradient_checkpointing", "on_nan")
"""Options that training alone feels, beside those of LoRA and `sparsify`'s `OF_TRAINING`."""
CHANGES_BASE = ("adapter", "init_rank")
"""Options of LoRA that no run of `sparsify` takes: one that is shared is refused, not passed over."""
CONDITIONS = (*TRAINED, *TARGETS)
"""Axes that are no contenders by themselves: where cells are named, these are for them."""


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    name: str
    config: PruneConfig
    kind: str = "prune"
    """`prune`, `sparsify`, or a baseline: `dense` (not trained), `dense+lora` (trained, not pruned)."""
    series: str = ""
    """Its name without the seed: cells of one series differ in their seed alone."""
    contender: str = ""
    """Its name without seed and learning rate: what gets its best of the learning rates."""
    zeros: tuple[tuple[str, str], ...] = ()
    """Options of `sparsify`, of a cell of that kind; `config` has those that both commands know."""


@dataclass(frozen=True)
class Comparison:
    """A grid of runs whose options are good."""

    settings: CompareConfig
    cells: tuple[Cell, ...]
    given: Mapping[str, Any] = field(default_factory=dict)
    """The options that asked for it, a recipe's among them."""


def build_comparison(given: dict[str, Any], config_file: str | None = None) -> Comparison:
    """The grid that options and a YAML file ask for. An option of `prune` with several values is an axis.

    Raises:
        InputError: faults of any cell, cells that do not compare, two cells of one name.
    """
    values = read_with_recipe(given, config_file, "compare")
    own = known_options(CompareConfig)
    settings = build(CompareConfig, {key: value for key, value in values.items() if key in own}, command="compare")
    shared, axes = _axes({key: value for key, value in values.items() if key not in own or key == "output"})
    untrained = str(shared.get("steps")) == "0"
    baselines = [name for name in settings.baselines if not untrained or name == "dense"]  # dense + LoRA is dense then
    cells = [cell for name in baselines for cell in _baselines(name, shared, axes)]
    if not settings.cells or not axes.keys() <= set(CONDITIONS):
        cells += _crossed("", shared, axes)
    for line in settings.cells:
        name, changes = _named_cell(line)
        if {*OF_ZEROS[:2]} & changes.keys():
            cells += _sparse(name, changes, shared, axes)
            continue
        left = (set(TARGETS) if any(key in changes for key in TARGETS) else set()) | set(changes)
        others = {key: value for key, value in shared.items() if key not in left}
        cells += _crossed(name, others | changes, {key: values for key, values in axes.items() if key not in left})
    names = [cell.name for cell in cells]
    all_faults([f"two cells are called {name!r}: rename one." for name in set(names) if names.count(name) > 1])
    known = {name for cell in cells for name in (cell.name, cell.series, cell.contender)}
    if settings.reference is not None and settings.reference not in known:
        raise InputError(
            f"--reference {settings.reference}: no cell is called that. {did_you_mean(settings.reference, known)}"
            f"Choose from: {', '.join(dict.fromkeys(cell.contender for cell in cells))}."
        )
    if not settings.allow_different:
        _check_alike(cells)
    return Comparison(settings, tuple(cells), values)


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
            one = isinstance(value, list) and len(value) == 1 and key not in LISTS
            shared[key] = value[0] if one else value
    return shared, axes


def _baselines(name: str, shared: dict[str, Any], axes: dict[str, list[str]]) -> list[Cell]:
    """A baseline for each condition that it can feel: for a model that is not trained, no learning rate or seed."""
    felt = UNTRAINED if name == "dense" else TRAINED
    # A criterion scores nothing in a baseline; but LoRA on chosen linears alone does not go with every criterion.
    names = (*CONDITIONS, *(("criterion",) if "targets" in shared else ()))
    first = {key: values[0] for key, values in axes.items() if key in names}
    return _crossed(name, {**shared, **first}, {key: axes[key] for key in axes if key in felt}, kind=name)


def _sparse(name: str, zeros: dict[str, str], shared: dict[str, Any], axes: dict[str, list[str]]) -> list[Cell]:
    """A cell of `sparsify` for each condition that it can feel: without training no learning rate or seed."""
    felt = UNTRAINED if _is_untrained(zeros, shared.get("steps")) else TRAINED
    first = {key: values[0] for key, values in axes.items() if key in CONDITIONS}
    left = {key: values for key, values in axes.items() if key in felt and key not in zeros}
    cells = _crossed(name, {**shared, **first}, left, kind="sparsify")
    for cell in cells:
        zeros_config(cell.name, cell.config, zeros)
    return [replace(cell, zeros=tuple(zeros.items())) for cell in cells]


def zeros_config(name: str, config: PruneConfig, zeros: dict[str, str]) -> SparsifyConfig:
    """A cell's options as `sparsify` takes them: its own, and of the shared ones those that it feels.

    Raises:
        InputError: names the cell.
    """
    unfelt = _unfelt(zeros, config.steps)
    shared = {key: getattr(config, key) for key in known_options(RunConfig) if key not in unfelt}
    given = {key: list(value) if isinstance(value, tuple) else value for key, value in shared.items()}
    try:
        if config.steps is None and "steps" not in zeros:
            raise InputError("sparsify trains for --steps: give them (0: no training).")
        return build_values(SparsifyConfig, {k: v for k, v in given.items() if v not in (None, [])} | zeros)
    except InputError as error:
        raise InputError(f"cell {name!r}: {error}") from None


def _is_untrained(zeros: dict[str, str], steps: object) -> bool:
    return str(zeros.get("steps", steps)) == "0"


def _unfelt(zeros: dict[str, str], steps: object) -> set[str]:
    """Shared options that a cell of `sparsify` does not feel, with these of its own: they stay those of others."""
    if _is_untrained(zeros, steps):
        return {*BY_STEPS, *OF_TRAINING, *known_options(LoraOptions)} - {*CHANGES_BASE}
    return {*SET_BY_LEARNT} if zeros.get("method") == LEARNT else set()


def _crossed(name: str, shared: dict[str, Any], axes: dict[str, list[str]], kind: str = "prune") -> list[Cell]:
    """A cell for each combination of the axes' values, called by them."""
    cells = []
    for combination in product(*axes.values()):
        changes = dict(zip(axes, combination, strict=True))
        whole, series, contender = (
            "_".join([name] * bool(name) + [_label(key, changes[key]) for key in changes if key not in left]) or "run"
            for left in ((), ("seed",), ("seed", "lr"))
        )
        cells.append(Cell(whole, _config(whole, {**shared, **changes}), kind, series, contender))
    return cells


def _config(name: str, options: dict[str, Any]) -> PruneConfig:
    try:
        config = build_values(PruneConfig, options, "compare")
        all_faults(
            ["a comparison goes to no hub: leave --push-to-hub out, and push a result."] * bool(config.push_to_hub)
        )
        return config
    except InputError as error:
        raise InputError(f"cell {name!r}: {error}") from None


def _named_cell(line: str) -> tuple[str, dict[str, str]]:
    """`best: criterion=gate lora_init=pissa` -> its name and options."""
    name, colon, rest = line.partition(":")
    pairs = [item.partition("=") for item in rest.split()]
    if not colon or not pairs or any(not equals for _, equals, _ in pairs):
        raise InputError(f"--cells {line!r}: write it as `name: option=value option=value`.")
    name = name.strip()
    if name in ("", LOCK, RERUN) or name.startswith(".") or not all(c.isalnum() or c in " ._+-" for c in name):
        raise InputError(
            f"--cells {line!r}: {name!r} is to be a folder's name: use letters, digits, spaces and ._+- (no dot first)."
        )
    changes = {key.replace("-", "_"): value for key, _, value in pairs}
    known = {*known_options(PruneConfig), *OF_ZEROS}
    if {*OF_ZEROS[:2]} & changes.keys():
        known = {*known_options(SparsifyConfig)}
    all_faults(
        [f"--cells {name}: unknown option {key!r}. {did_you_mean(key, known)}" for key in changes if key not in known]
    )
    return name, changes


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


def differences(
    one: dict[str, Any], other: dict[str, Any], kind: str = "prune", zeros: dict[str, str] | None = None
) -> list[str]:
    """`lr: 0.0005 -> 0.001` for every option in which two recorded configs differ and that a cell of this kind feels.

    An option that a record of an earlier version does not have was at its default then.

    Args:
        zeros: the second's own options of `sparsify`, which stand before those of its config.
    """
    own = zeros or {}
    felt = {*known_options(PruneConfig)}
    if kind == "dense":
        felt = {*UNTRAINED}
    elif kind == "dense+lora":
        felt = {*known_options(RunConfig), "lr_decay", "schedule", "prune_end"}  # the rate is held until the last cut
    elif kind == "sparsify":  # which cuts nothing: its rate falls from the start
        felt = {*known_options(RunConfig)} - {*own} - _unfelt(own, other.get("steps"))
    felt.difference_update(
        name for name, (where, needed) in ONLY.items() if not {one.get(where), other.get(where)} & {*needed}
    )

    def value(config: dict[str, Any], option: Field[Any]) -> Any:
        default = PruneConfig.formerly(config).get(option.name, None if option.default is MISSING else option.default)
        found = config.get(option.name, default)
        return list(found) if isinstance(found, tuple) else found

    return [
        f"{f.name}: {value(one, f)} -> {value(other, f)}"
        for f in fields(PruneConfig)
        if f.name in felt and f.name not in HOW and value(one, f) != value(other, f)
    ]
