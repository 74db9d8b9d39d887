"""`run.yaml`: the options of a run, complete, so that the same command repeats it."""

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import yaml

from ...system.version import VERSION
from ..options import FORMAT, FORMAT_KEY, known_options

RERUN = "run.yaml"
"""The file's name in the folder of a run."""

OF_ONE_RUN = frozenset({"output", "overwrite", "resume", "dry_run"})
"""Options that are about where one run writes and how it goes on, not about what it computes."""

OF_ADAPTER = frozenset({"init_rank", "alpha", "dropout", "rslora", "targets"})
"""What `--adapter` decides."""


def rerun_text(command: str, config: Any) -> str:
    """YAML for `--config` that repeats a run of `command`, to the bit on the same machine and versions.

    What was left to its default is in it too: another version may have another default.

    Args:
        config: the options as the run had them, in the end.
    """
    left_out = OF_ONE_RUN | (OF_ADAPTER if config.adapter else frozenset())
    given = {name: getattr(config, name) for name in known_options(type(config)) if name not in left_out}
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    defaults = {field.name: field.default for field in fields(config)}
    said = {name: value for name, value in values.items() if value is not None and value != []}
    cleared = {name: None for name, value in values.items() if value is None and defaults[name] is not None}
    return _text(command, said | cleared)


def comparison_text(given: Mapping[str, Any]) -> str:
    """The same for a comparison, of the options that were given: those with several values are its axes."""
    values = json.loads(json.dumps(dict(given), default=str))  # numbers of numpy are none to YAML
    return _text("compare", {name: value for name, value in values.items() if name not in OF_ONE_RUN})


def _text(command: str, values: Mapping[str, Any]) -> str:
    head = f"# secateur {VERSION}: repeat this run with\n#   secateur {command} --config run.yaml --output FOLDER\n"
    return head + yaml.safe_dump({FORMAT_KEY: FORMAT, **values}, sort_keys=False, allow_unicode=True, width=120)
