"""Options from flags and YAML to checked dataclasses. Knows no particular option.

A config is a frozen dataclass whose fields are made by `option`; `build` fills one and names every fault in
one message. Importing this module imports no torch.
"""

import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

from ..system.errors import InputError, all_faults
from ..system.reading import read_mapping, shown
from ..system.registry import did_you_mean, unknown_options
from ..system.voice import CHOICES

C = TypeVar("C")
D = TypeVar("D", bound="Options")
LARGEST_INT = 2**63
"""Beyond what tensors, files and steps can count."""
FORMAT, FORMAT_KEY = 1, "options_format"
"""Version of the options' names and meanings, as a YAML may state it; one of a newer version is refused."""


def option(
    help: str,
    default: Any = MISSING,
    *,
    group: str,
    choices: tuple[str, ...] = (),
    metavar: str = "",
    positional: bool = False,
    known: tuple[str, ...] = (),
) -> Any:
    """A dataclass field that also describes a command-line flag, or the arguments without a flag (`positional`).

    It is one of `choices`, or anything, of which shells and editors offer what is `known`.
    """
    said = {"help": help, "group": group, "choices": choices, "metavar": metavar, "positional": positional}
    return field(default=default, metadata=said | {"known": known})


def build(
    cls: type[C],
    given: dict[str, Any],
    config_file: str | None = None,
    origins: Mapping[str, str] = MappingProxyType({}),
    command: str = "",
) -> C:
    """Make a config from options given (they win) and a YAML file; every fault in one message.

    Args:
        origins: option -> where its value came from, for faults that name it, where the user did not give it.
        command: whose help lists the options.
    Raises:
        InputError: unknown keys, wrong types, missing required options, values out of range.
    """
    values = read_options(given, config_file)
    hints = get_type_hints(cls)
    known = known_options(cls)
    labels = {name: f.metadata["metavar"] if f.metadata["positional"] else flag(name) for name, f in known.items()}
    faults = unknown_options(values, known, f"See secateur {command} --help-all." if command else "Leave it out.")
    converted = {}
    for name, value in values.items():
        if name in known:
            try:
                converted[name] = _convert(value, hints[name])
            except ValueError:
                faults.append(f"{flag(name)} {_type_fault(value, hints[name])}.")
    for name, f in known.items():
        if f.default is MISSING and values.get(name, []) == []:
            faults.append(f"{labels[name]} is required: {f.metadata['help']}.")
    # What is wrong with the others is said, too, where it is not about these.
    open_ = {n for n, f in known.items() if n in values or f.default is MISSING} - converted.keys()
    blank = {n: "" if hints[n] is str else () for n in open_ if known[n].default is MISSING}
    config = cls(**converted, **blank)
    object.__setattr__(config, "given", frozenset(converted))
    of_config: list[str] = config.faults()  # type: ignore[attr-defined]
    faults += [fault for fault in of_config if not any(_names(fault, labels[name]) for name in open_)]
    all_faults([with_origin(fault, origins) for fault in faults])
    return config


def _names(message: str, label: str) -> bool:
    return re.search(rf"{label}(?![\w-])", message) is not None


def with_origin(message: str, origins: Mapping[str, str]) -> str:
    """A message, and where the values of the options that it names came from."""
    named: dict[str, list[str]] = {}
    for name, origin in origins.items():
        if _names(message, flag(name)):
            named.setdefault(origin, []).append(flag(name))
    words = [
        f"{' and '.join(flags)} {'is' if len(flags) == 1 else 'are'} from {where}." for where, flags in named.items()
    ]
    return " ".join([message, *words])


def read_options(given: dict[str, Any], config_file: str | None = None) -> dict[str, Any]:
    """Options given and, below them, those of a YAML file; values are not converted yet.

    Raises:
        InputError: the file cannot be read, is no mapping, or is of a newer version.
    """
    if not config_file:
        return dict(given)
    place = f"--config {config_file}"
    values = {key.replace("-", "_"): value for key, value in read_mapping(Path(config_file), place).items()}
    if (version := values.pop(FORMAT_KEY, FORMAT)) != FORMAT:
        remedy = "update secateur" if isinstance(version, int) and version > FORMAT else "give that, or leave it out"
        raise InputError(f"{place}: {FORMAT_KEY} is {shown(version)}, this version knows {FORMAT}: {remedy}.")
    return values | given


def known_options(cls: type) -> dict[str, Any]:
    """Option name -> dataclass field."""
    return {f.name: f for f in fields(cls)}


def steps_of(value: float | int, total_steps: int) -> int:
    """Whole steps from a fraction of the run (float) or from steps (int)."""
    return round(value * total_steps) if isinstance(value, float) else value


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


def _type_fault(value: Any, hint: Any) -> str:
    wanted, words = _type_name(hint), value if isinstance(value, str) else ""
    if wanted.startswith("text") and not isinstance(value, str | list | tuple | None):
        wanted += ", in quotes"  # YAML reads 5 and 2024-01-01 as what they look like
    elif "a number" in wanted and re.fullmatch(r"[\d.]+ ?%|\d+,\d+", words):
        wanted += ", such as 0.2"
    return f"{'has no value' if value is None else f'is {shown(value)}'}: expected {wanted}"


def _type_name(hint: Any) -> str:
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    if get_origin(hint) is tuple:
        return "text or a list of texts"
    kinds = [kind for kind in (get_args(hint) or (hint,)) if kind is not type(None)]
    return " or ".join(names[kind] for kind in kinds)


@dataclass(frozen=True, kw_only=True)
class Options:
    """A group of options: what one part of a run takes. Configs are made of groups, and checked by all of them."""

    given: ClassVar[frozenset[str]] = frozenset()
    """Of a config that `build` made: the options that were given, by flag or YAML, whatever their value."""

    def __init_subclass__(cls) -> None:
        """Tell what words each option may be, to who says them in Python."""
        for name, made in vars(cls).items():
            if isinstance(made, Field):
                CHOICES.setdefault(name, set()).update(made.metadata["choices"])

    def faults(self) -> list[str]:
        """All faults that can be known from the options alone."""
        return []


@dataclass(frozen=True, kw_only=True)
class Seeded(Options):
    """What draws at random."""

    seed: int = option("fixes data order, LoRA initialisation and dropout", 0, group="training")


def part_of(cls: type[C], config: Any) -> C:
    """The group of options `cls` out of a config that has them all."""
    return cls(**{name: getattr(config, name) for name in known_options(cls)})


def with_given(options: D, given: dict[str, Any], kind: type[D]) -> D:
    """Options with some of them replaced, for callers that name them in Python.

    Args:
        kind: the class whose options they are; `options` may have more.
    Raises:
        InputError: an option that there is not, a value of another type or out of range; all faults in one message.
    """
    if not isinstance(options, kind):
        raise InputError(
            f"options is a {type(options).__name__}: give a {kind.__name__}, or each by its name, such as sparsity=0.5."
        )
    known, hints = known_options(kind), get_type_hints(kind)
    all_faults(unknown_options(given, known))
    values, faults = {}, []
    for name in known:
        value = given.get(name, getattr(options, name))
        try:
            values[name] = _of_python(value, hints[name])
        except (ValueError, TypeError, RuntimeError, OverflowError):  # numpy's and torch's of arrays, too
            faults.append(f"{flag(name)} is {shown(value)}: expected {_type_name(hints[name])}.")
    all_faults(faults)
    changed = replace(options, **values)
    all_faults([*choice_faults(changed), *kind.faults(changed)])
    return changed


def _of_python(value: Any, hint: Any) -> Any:
    """`value` as the annotated type; ValueError when it is not one. Numbers of numpy and torch are numbers, too."""
    kinds = get_args(hint) or (hint,)
    if value is None or isinstance(value, str):
        if (str if value is not None else type(None)) in kinds:
            return value
        raise ValueError
    if bool in kinds:
        if value in (True, False):
            return bool(value)
        raise ValueError
    if isinstance(value, bool) or str in kinds:
        raise ValueError
    whole = int in kinds and float(value) == int(value) and not (float in kinds and _has_point(value))
    number = int(value) if whole else float(value)
    if (float not in kinds and not whole) or number - number != 0:
        raise ValueError
    return number


def _has_point(value: Any) -> bool:
    """Whether a number is a fraction by its type: `prune_end=1.0` is the whole run and `prune_end=1` its first step."""
    return not hasattr(value, "__index__") or "float" in str(getattr(value, "dtype", ""))


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
