"""How to get a run again: its options, and the command line that they make."""

import shlex
from dataclasses import MISSING, fields
from typing import Any

from ..config.adapt import AdaptConfig
from ..config.files.recipes import UNTRAINED, USUAL, recipes
from ..config.options import flag
from ..config.prune import PruneConfig
from ..config.sparsify import SparsifyConfig
from .runs import Run, items, text

DEFAULTS = {
    verb: {f.name: f.default for f in fields(cls) if f.default is not MISSING}
    for verb, cls in (("prune", PruneConfig), ("adapt", AdaptConfig), ("sparsify", SparsifyConfig))
}


def command(run: Run) -> str:
    """The command of this run with every option that is not at its default, quoted for a POSIX shell."""
    config = dict(items(run.result, "config"))
    if not config:
        return ""
    config.pop("recipe", None)  # its options are among the others, also where they are back at their defaults
    verb = _verb(run)
    chosen = [_argument(key, value) for key, value in config.items() if _was_set(verb, key, value, config)]
    parts = [["secateur", verb], *chosen]
    return " \\\n    ".join(" ".join(map(shlex.quote, part)) for part in parts)


def options(run: Run) -> list[tuple[str, str, bool]]:
    """(flag, value, is it other than the default) of every option."""
    verb, config = _verb(run), dict(items(run.result, "config"))
    return [(flag(key), _shown(value), _was_set(verb, key, value, config)) for key, value in config.items()]


def differing(runs: list[Run]) -> list[tuple[str, list[str]]]:
    """(flag, value in each run) of the options that are not the same in all runs, the output folder left out.

    One that a run's command does not have, or its version did not, differs where another run has set it.
    """
    configs = [dict(items(run.result, "config")) for run in runs]
    keys = dict.fromkeys(key for config in configs for key in config if key not in ("output", "overwrite", "recipe"))
    shown = {key: [_shown(config[key]) if key in config else "" for config in configs] for key in keys}
    return [(flag(key), values) for key, values in shown.items() if _differs(key, runs, configs)]


def _differs(key: str, runs: list[Run], configs: list[dict[str, Any]]) -> bool:
    known = [(_verb(run), config) for run, config in zip(runs, configs, strict=True) if key in config]
    if len({_shown(config[key]) for _, config in known}) > 1:
        return True
    return len(known) < len(configs) and any(_was_set(verb, key, config[key], config) for verb, config in known)


def _verb(run: Run) -> str:
    kind = text(run.result, "kind") or ""
    return kind if kind in DEFAULTS else "prune"


def _was_set(verb: str, key: str, value: Any, config: dict[str, Any]) -> bool:
    """Whether it is to be said: also where it is at its default and the recipe has another that such a run takes."""
    if isinstance(value, list):
        value = tuple(value)
    if value is None:
        return False
    usual = recipes()[UNTRAINED if config.get("steps") == 0 else USUAL].options if verb == "prune" else {}
    return value != DEFAULTS[verb].get(key, MISSING) or value != usual.get(key, value)


def _argument(key: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag(key) if value else "--no-" + flag(key)[2:]]
    values = [str(part) for part in value] if isinstance(value, list) else [str(value)]
    if len(values) == 1 and values[0].startswith("-"):
        return [f"{flag(key)}={values[0]}"]  # a value that looks like a flag
    return [flag(key), *values]


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "not set"
    return str(value)
