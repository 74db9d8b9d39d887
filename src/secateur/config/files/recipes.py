"""Recipes: sets of options that ship with the package, each a YAML file that says what it is for.

A recipe is a file that `--config` takes too. Its comment at the top has entries such as `# what: ...`, each with lines
of its own indented below it. Importing this module imports no torch.
"""

import re
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from textwrap import wrap
from typing import Any, ClassVar, TypeVar

import yaml

from ...system.errors import InputError
from ...system.registry import did_you_mean
from ...system.terminal.tables import Table, Words
from ..adapt import AdaptConfig
from ..options import Seeded, build, flag, option, read_options
from ..prune import PruneConfig
from ..pruning import OF_WIDTH, UNITS, PruningOptions
from ..sizes import TARGETS
from ..speed import PlanConfig

C = TypeVar("C")
KEY = "recipe"
PRUNING = ("prune", "plan", "compare")
UNTRAINED = "training-free"
"""The recipe of `--steps 0` where none is named."""
USUAL = "default"
"""That of a run which trains, where none is named and nothing is said of how to prune (`HOW`)."""
HOW = {each.name for each in fields(PruningOptions)} - {each.name for each in fields(Seeded)}
HOW -= {*TARGETS, "attention", "model_class", "round_to", "shrink"}  # what is to come out, not how
NO_REFIT = ("load_in", "stream_export")
"""Options beside which no weight of the base can be rewritten: the usual recipe then goes without a refit."""
ENTRY = re.compile(r"# (what|for|loads|measured|memory): (.*)")


@dataclass(frozen=True, kw_only=True)
class FromRecipe:
    """What a config that started from a recipe has beside its options."""

    recipe: str = option("start from these options, see secateur recipes; --config and flags win over them", group=KEY)
    origins: ClassVar[Mapping[str, str]] = {}
    """Option -> where its value came from, for those that were not given by flag or YAML."""


@dataclass(frozen=True, kw_only=True)
class PruneFromRecipe(FromRecipe, PruneConfig):
    """`PruneConfig` with the recipe's name, which so stands in the records of such runs, and of such runs alone."""


@dataclass(frozen=True, kw_only=True)
class PlanFromRecipe(FromRecipe, PlanConfig):
    """The same for `plan`."""


@dataclass(frozen=True, kw_only=True)
class AdaptFromRecipe(FromRecipe, AdaptConfig):
    """The same for `adapt`."""


CLASSES: dict[type, type] = {PruneConfig: PruneFromRecipe, PlanConfig: PlanFromRecipe, AdaptConfig: AdaptFromRecipe}


@dataclass(frozen=True)
class Recipe:
    """A recipe: its text, what it says of itself, its options."""

    name: str
    text: str
    about: Mapping[str, str]
    """`what`, `loads`, and where there is something to say `measured`, `memory` and `for` (the commands)."""
    options: Mapping[str, Any]
    of_model: bool
    """Whether it is for one model."""

    @property
    def commands(self) -> tuple[str, ...]:
        """The commands that take it."""
        return tuple(self.about["for"].split(", ")) if "for" in self.about else PRUNING


@dataclass(frozen=True, kw_only=True)
class RecipesConfig:
    """What `secateur recipes` can be told."""

    names: tuple[str, ...] = option("recipes to print; none: list all", (), group=KEY, metavar="NAME", positional=True)

    def faults(self) -> list[str]:
        """All faults that can be known from the options alone."""
        return []


@cache
def recipes() -> Mapping[str, Recipe]:
    """Name -> recipe: those for any model first, then those of one."""
    folder = files("secateur") / "recipes"
    found = {}
    for place, of_model in ((folder, False), (folder / "models", True)):
        for file in sorted(place.iterdir(), key=lambda file: file.name):
            if file.name.endswith(".yaml"):
                name, text = file.name.removesuffix(".yaml"), file.read_text(encoding="utf-8")
                found[name] = Recipe(name, text, _about(text), yaml.safe_load(text), of_model)
    return found


def find_recipe(name: Any) -> Recipe:
    """The recipe of a name.

    Raises:
        InputError: there is none, with what was meant.
    """
    known = recipes()
    if not isinstance(name, str) or name not in known:
        raise InputError(f"--recipe {name}: no such recipe. {did_you_mean(str(name), known)}Known: {', '.join(known)}.")
    return known[name]


def read_with_recipe(given: dict[str, Any], config_file: str | None, command: str) -> dict[str, Any]:
    """Options given, below them those of a YAML file, below those of the recipe that either of them names.

    Raises:
        InputError: the file cannot be read, there is no such recipe, or it is none of this command.
    """
    values = read_options(given, config_file)
    if values.get(KEY, KEY) is None:  # `recipe:` with nothing behind it
        del values[KEY]
    if KEY not in values and (unnamed := _recipe_of(values, command)):
        values[KEY] = unnamed
    if KEY not in values:
        return values
    recipe = find_recipe(values[KEY])
    if command not in recipe.commands:
        fitting = ", ".join(name for name, other in recipes().items() if command in other.commands)
        raise InputError(
            f"--recipe {recipe.name} is for {', '.join(recipe.commands)}, not for {command}: choose from {fitting}."
        )
    displaced = set(TARGETS) if any(name in values for name in TARGETS) else set()
    if (units := values.get("units", UNITS[0])) != UNITS[0]:
        displaced |= {"compensate"} if "," in str(units) else set(OF_WIDTH)
    if recipe.name == USUAL and any(values.get(name) for name in NO_REFIT):
        displaced |= {"compensate"}
    return {key: value for key, value in recipe.options.items() if key not in displaced} | values


def _recipe_of(values: Mapping[str, Any], command: str) -> str | None:
    """The recipe of options that name none; `compare` is told what differs, so it has no usual one."""
    if command not in PRUNING:
        return None
    if str(values.get("steps")) == "0":
        return UNTRAINED
    return USUAL if command != "compare" and not HOW & values.keys() else None


def build_values(cls: type[C], values: dict[str, Any], command: str = "") -> C:
    """A config of values that `read_with_recipe` read; its faults say which options the recipe gave.

    Raises:
        InputError: as `options.build`.
    """
    if KEY not in values or cls not in CLASSES:
        return build(cls, values, command=command)
    recipe = find_recipe(values[KEY])
    same = [key for key, value in recipe.options.items() if key in values and values[key] == value]
    origins = dict.fromkeys(same, f"--recipe {recipe.name}")
    config: C = build(CLASSES[cls], values, origins=origins, command=command)
    object.__setattr__(config, "origins", origins)
    return config


def displaced_refit(config: Any) -> str | None:
    """Why a run that started from the usual recipe came without its refit, where an option displaced it."""
    if getattr(config, KEY, None) != USUAL or "compensate" in config.given:
        return None
    return next((f"{flag(name)} reads the base anew, or rounds it" for name in NO_REFIT if getattr(config, name)), None)


def less_usual(config: C, **instead: Any) -> C | None:
    """The config with other values of options that the usual recipe gave; None: they were asked for."""
    origins: Mapping[str, str] = getattr(config, "origins", {})
    if any(origins.get(name) != f"--recipe {USUAL}" for name in instead):
        return None
    changed = copy(config)
    for name, value in instead.items():
        object.__setattr__(changed, name, value)
    object.__setattr__(changed, "origins", {name: origin for name, origin in origins.items() if name not in instead})
    return changed


def recipes_text(names: tuple[str, ...]) -> str:
    """The recipes of these names as they stand, or a list of all.

    Raises:
        InputError: there is no recipe of a name.
    """
    if names:
        return "\n".join(find_recipe(name).text.rstrip("\n") for name in names)
    any_model = [recipe for recipe in recipes().values() if not recipe.of_model]
    lines = []
    for recipe in any_model:
        words = f"{recipe.name:12} {recipe.about['what']} ({', '.join(recipe.commands)}; loads: "
        lines += _wrapped(f"{words}{recipe.about['loads']})", 13)
        if "measured" in recipe.about:
            lines += _wrapped(f"{'':12} measured: {recipe.about['measured']}", 13)
    table = Table(
        ("recipe", "what it is, and what was measured of it", "of", "loads"),
        [(r.name, _measured(r), ", ".join(r.commands), r.about["loads"]) for r in any_model],
        align="llll",
    )
    rows = [
        (recipe.name, str(recipe.options["model"]), f"{recipe.options['sparsity']:.0%}", recipe.about["loads"],
         *(_fits(recipe, size) for size in ("24 GB", "80 GB")))
        for recipe in recipes().values() if recipe.of_model
    ]  # fmt: skip
    rest: list[str | Table] = [
        "",
        "of one model (prune, plan, compare):",
        Table(("", "model", "gone", "loads", "24 GB", "80 GB"), rows, align="llrlll"),
        "",
        "secateur recipes NAME prints one with its comments; --recipe NAME takes it, and flags win over it.",
    ]
    return Words(table, *rest, plain="\n".join(map(str, [*lines, *rest])))


def _measured(recipe: Recipe) -> str:
    what, measured = recipe.about["what"], recipe.about.get("measured")
    return f"{what}. Measured: {measured}" if measured else what


def _fits(recipe: Recipe, size: str) -> str:
    """`yes` or `no`, from the recipe's comment."""
    return "yes" if f"{size}: fits" in recipe.about["memory"] else "no"


def _about(text: str) -> dict[str, str]:
    """The entries of a recipe's comment, each as one line."""
    found: dict[str, str] = {}
    last = None
    for line in text.splitlines():
        if entry := ENTRY.fullmatch(line):
            last = entry[1]
            found[last] = entry[2].strip()
        elif last and line.startswith("#   "):
            found[last] += " " + line[1:].strip()
        else:
            last = None
    return found


def _wrapped(text: str, indent: int) -> list[str]:
    """Lines of at most 110 characters; all but the first are indented."""
    return wrap(text, 110, subsequent_indent=" " * indent, drop_whitespace=True, break_on_hyphens=False) if text else []
