"""Options from flags and YAML to checked dataclasses. Knows no particular option.

A config is a frozen dataclass whose fields are made by `option`; `build` fills one and names every fault in
one message. Importing this module imports no torch.
"""

from dataclasses import MISSING, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from ..system.errors import InputError, all_faults
from ..system.reading import PARSER_ERRORS, read_text, reason_of
from ..system.registry import did_you_mean

C = TypeVar("C")
LARGEST_INT = 2**63
"""Beyond what tensors, files and steps can count."""


def option(
    help: str,
    default: Any = MISSING,
    *,
    group: str,
    choices: tuple[str, ...] = (),
    metavar: str = "",
    positional: bool = False,
) -> Any:
    """A dataclass field that also describes a command-line flag, or the arguments without a flag (`positional`)."""
    metadata = {"help": help, "group": group, "choices": choices, "metavar": metavar, "positional": positional}
    return field(default=default, metadata=metadata)


def build(cls: type[C], given: dict[str, Any], config_file: str | None = None) -> C:
    """Make a config from options given (they win) and a YAML file; every fault in one message.

    Raises:
        InputError: unknown keys, wrong types, missing required options, values out of range.
    """
    values = read_options(given, config_file)
    hints = get_type_hints(cls)
    known = known_options(cls)
    faults = [
        f"unknown option {key!r}. {did_you_mean(key, known)}See secateur --help." for key in values if key not in known
    ]
    converted = {}
    for name, value in values.items():
        if name in known:
            try:
                converted[name] = _convert(value, hints[name])
            except ValueError:
                faults.append(f"{flag(name)} is {_shown(value)}: expected {_type_name(hints[name])}.")
    missing = [n for n, f in known.items() if f.default is MISSING and n not in converted and n not in values]
    for name in missing:
        metadata = known[name].metadata
        label = metadata["metavar"] if metadata["positional"] else flag(name)
        faults.append(f"{label} is required: {metadata['help']}.")
    all_faults(faults)
    config = cls(**converted)
    object.__setattr__(config, "given", frozenset(converted))
    all_faults(config.faults())  # type: ignore[attr-defined]
    return config


def read_options(given: dict[str, Any], config_file: str | None = None) -> dict[str, Any]:
    """Options given and, below them, those of a YAML file; values are not converted yet.

    Raises:
        InputError: the file cannot be read, or is no mapping.
    """
    return {**(_read_yaml(Path(config_file)) if config_file else {}), **given}


def known_options(cls: type) -> dict[str, Any]:
    """Option name -> dataclass field."""
    return {f.name: f for f in fields(cls)}


def steps_of(value: float | int, total_steps: int) -> int:
    """Whole steps from a fraction of the run (float) or from steps (int)."""
    return round(value * total_steps) if isinstance(value, float) else value


def _read_yaml(path: Path) -> dict[str, Any]:
    text = read_text(path, f"--config {path}")
    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--config {path}: not valid YAML ({' '.join(str(error).split())}).") from None
    # Its constructors leak Python's own errors: of dates (2024-13-45), of numbers with a tag, of deep nesting.
    except (*PARSER_ERRORS, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"--config {path}: not valid YAML ({reason_of(error)}).") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict) or not all(isinstance(key, str) for key in loaded):
        raise InputError(f"--config {path}: expected `option: value` lines, found {type(loaded).__name__}.")
    return {key.replace("-", "_"): value for key, value in loaded.items()}


def _convert(value: Any, hint: Any) -> Any:
    """`value` as the annotated type; ValueError when it is not one. Strings are parsed as a flag is."""
    allowed = get_args(hint) if get_origin(hint) is not tuple else ()
    if value is None:
        if type(None) in allowed:
            return None
        raise ValueError
    if get_origin(hint) is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        if not all(isinstance(item, str) for item in items):
            raise ValueError
        return tuple(items)
    kinds = [kind for kind in (allowed or (hint,)) if kind is not type(None)]
    if bool in kinds:
        if isinstance(value, bool):
            return value
        if value in ("true", "false"):  # in a cell of a comparison
            return value == "true"
        raise ValueError
    if isinstance(value, bool):
        raise ValueError
    if str in kinds:
        if isinstance(value, str):
            return value
        if int not in kinds:
            raise ValueError
    if int in kinds:
        try:
            if not isinstance(value, float) and abs(whole := int(value)) < LARGEST_INT:
                return whole
        except (ValueError, TypeError):
            pass
    if float in kinds:
        try:
            real = float(value)
        except (TypeError, OverflowError):
            raise ValueError from None
        if real - real != 0:  # NaN or infinite
            raise ValueError
        return real
    raise ValueError


def _shown(value: Any) -> str:
    """A value for a message: whole where it is short; Python does not write out numbers of thousands of digits."""
    try:
        shown = repr(value)
    except PARSER_ERRORS:
        return f"a {type(value).__name__} beyond any measure"
    return shown if len(shown) <= 200 else shown[:200] + " ..."


def _type_name(hint: Any) -> str:
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    if get_origin(hint) is tuple:
        return "text or a list of texts"
    kinds = [kind for kind in (get_args(hint) or (hint,)) if kind is not type(None)]
    return " or ".join(names[kind] for kind in kinds)


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def at_least(config: Any, name: str, minimum: int) -> list[str]:
    value = getattr(config, name)
    return [] if value is None or value >= minimum else [f"{flag(name)} is {value}: it must be at least {minimum}."]


def below_one(config: Any, name: str) -> list[str]:
    value = getattr(config, name)
    return [] if value is None or 0 <= value < 1 else [f"{flag(name)} is {value}: give a number from 0 up to 1."]


def step_faults(config: Any, name: str) -> list[str]:
    value = getattr(config, name)
    if value < 0 or (isinstance(value, float) and value > 1):
        return [f"{flag(name)} is {value}: give a fraction of the run from 0.0 to 1.0, or whole steps."]
    return []


def choice_faults(config: Any) -> list[str]:
    found = []
    for f in fields(config):
        value, choices = getattr(config, f.name), f.metadata["choices"]
        if choices and value is not None and value not in choices:
            found.append(
                f"{flag(f.name)} is {value!r}. {did_you_mean(value, choices)}Choose from: {', '.join(choices)}."
            )
    return found
