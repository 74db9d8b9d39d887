"""A JSON schema of a command's options, so that an editor completes and checks its YAML. Imports no torch."""

from dataclasses import MISSING, dataclass, fields
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from ..options import FORMAT, FORMAT_KEY, choice_faults, option
from .recipes import KEY, recipes

WRITTEN = {"number": r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$", "integer": r"^[-+]?\d+$"}
"""Numbers as text: YAML 1.1 reads 1e-3 as such, and a command takes it."""
JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null"}


@dataclass(frozen=True, kw_only=True)
class SchemaConfig:
    """What `secateur schema` can be told."""

    of: str = option(
        "the command whose options it describes",
        "prune",
        group="options",
        choices=("prune", "adapt", "sparsify", "compare", "eval", "plan", "bench", "sample", "export"),
    )

    def faults(self) -> list[str]:
        """All faults that can be known from the options alone."""
        return choice_faults(self)


def options_schema(command: str, classes: tuple[type, ...]) -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a YAML file for `secateur COMMAND --config`.

    Args:
        classes: the command's configs; the first one's options stand for those of a name.
    """
    hints = {name: hint for cls in reversed(classes) for name, hint in get_type_hints(cls).items()}
    known = {f.name: f for cls in reversed(classes) for f in fields(cls)}
    described = {name: _property(f, hints[name], axes=len(classes) > 1) for name, f in known.items()}
    if names := [name for name, recipe in recipes().items() if command in recipe.commands]:
        described = {KEY: {"enum": [*names, None], "description": "start from a recipe's options"}} | described
    described[FORMAT_KEY] = {"const": FORMAT, "description": "version of this list of options"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"secateur {command}",
        "type": "object",
        "properties": described,
        # `seq-len` is `seq_len`; what stands here is not offered by editors.
        "patternProperties": {
            f"^{name.replace('_', '-')}$": {"$ref": f"#/properties/{name}"} for name in described if "_" in name
        },
        "additionalProperties": False,
    }


def _property(f: Any, hint: Any, axes: bool) -> dict[str, Any]:
    """One option; of a comparison's, lists of values make an axis."""
    said: dict[str, Any] = {"description": f.metadata["help"]}
    if get_origin(hint) is tuple:
        said["anyOf"] = [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]
    else:
        kinds = list(dict.fromkeys(JSON_TYPES[kind] for kind in get_args(hint) or (hint,)))
        value: dict[str, Any] = {"type": kinds if len(kinds) > 1 else kinds[0]}
        if "string" not in kinds and (written := [WRITTEN[kind] for kind in ("number", "integer") if kind in kinds]):
            value = {"type": [*kinds, "string"], "pattern": written[0]}
        if f.metadata["choices"]:
            value = {"enum": [*f.metadata["choices"], *([None] if "null" in kinds else [])]}
        if axes:
            said["anyOf"] = [value, {"type": "array", "items": value}, {"type": "string"}]
        else:
            said |= value
    if f.metadata["known"]:
        said["examples"] = list(f.metadata["known"])
    if f.default not in (MISSING, None, ()):
        said["default"] = f.default
    return said
