"""Config keys that may lie in a part of a config: `ffn_config.ffn_hidden_size`."""

from collections.abc import Mapping
from functools import reduce
from typing import Any


def value_of(config: Any, key: str) -> Any:
    """What a config says under a key."""
    return reduce(getattr, key.split("."), config)


def put_(config: Any, key: str, value: Any) -> None:
    """Let a config say something else."""
    place, _, leaf = key.rpartition(".")
    setattr(value_of(config, place) if place else config, leaf, value)


def with_values(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A config's values with others under some keys."""
    changed = dict(values)
    for key, value in changes.items():
        part, _, leaf = key.rpartition(".")
        changed[part or leaf] = {**changed[part], leaf: value} if part else value
    return changed
