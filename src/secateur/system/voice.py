"""Whom a message speaks to: options are flags to who runs a command, and arguments to who calls from Python.

Messages are written for the command line (`--sparsity 0.9 is not reachable`). What Python calls is marked with
`speaks_python`, which says the same of an error as `sparsity=0.9 is not reachable`, unless a command is running.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from .errors import SecateurError

CHOICES: dict[str, set[str]] = {}
"""Option -> the words that it may be, as the options' classes tell when they are made."""

_flags: ContextVar[bool] = ContextVar("flags", default=False)
_options: ContextVar[bool] = ContextVar("options", default=False)

PHRASES = {
    "or pass --family": "or give family",
    "pass --family with one": "give family one",
    "pass another --family": "give another family",
}
"""What is said otherwise in Python, where a name alone would not do."""
OF_CLASSES = {
    "leave --targets out": 'give target_modules="all-linear" to LoraConfig',
    "leave it out of --targets": "leave it out of target_modules",
    "leave it out with --targets": "leave it out of target_modules",
    "(--init-rank)": "(r of its LoraConfig)",
    "compute in float32 (--dtype float32)": "compute in float32",
    "compute in --dtype float32": "compute in float32",
}
"""The same where LoRA and the precision are the caller's: of `Pruner` and its like, but not of `secateur.prune`."""
NAMES = {"targets": "target_modules", "lr": "the learning rate", "steps": "total_steps", "init_rank": "r"}
"""Option -> what such a class calls it, where that is not the option's name."""
SWITCHES = {"overwrite", "trust_remote_code", "gradient_checkpointing", "resume"}
OPEN = {"family", "criterion", "model", "adapter", "load_in", "data"}
"""Options whose values are anybody's words."""
NO_VALUES = {"out", "with", "to", "or", "and", "is", "in", "without", "which", "if", "names", "as", "at", "for", "the"}
FLAG = re.compile(
    r"(?<!export )(?<![\w-])--(?P<flag>[a-z][a-z0-9]*(?:-[a-z0-9]+)*)"
    r"(?: (?P<value>-?[\w./~+-]*[\w/~]|'[^']*')(?P<more>(?:(?:,| or) [a-z_0-9+-]+)*))?"
)
COMMAND = re.compile(r"(secateur [a-z]+(?: --[a-z-]+(?: [^\s`,;:()-][^\s`,;:()]*)?)+)")
"""A command to run, which is the same for all."""


@contextmanager
def flags_spoken() -> Iterator[None]:
    """A command runs: errors name its flags."""
    token = _flags.set(True)
    try:
        yield
    finally:
        _flags.reset(token)


@contextmanager
def speaks_python(*, options: bool = False) -> Iterator[None]:
    """Around what Python calls, or as its decorator: errors name arguments, unless a command is running.

    Args:
        options: the arguments are a command's options, by their names.
    """
    token = _options.set(options or _options.get())
    try:
        yield
    except SecateurError as error:
        if not _flags.get() and error.args:
            error.args = (in_python(str(error.args[0])), *error.args[1:])
        raise
    finally:
        _options.reset(token)


def in_python(message: str) -> str:
    """A message that names flags, with the arguments that they are in Python."""
    for phrase, words in (PHRASES if _options.get() else PHRASES | OF_CLASSES).items():
        message = message.replace(phrase, words)
    parts = COMMAND.split(message)
    return "".join(part if number % 2 else FLAG.sub(_argument, part) for number, part in enumerate(parts))


def _argument(found: re.Match[str]) -> str:
    name, value, more = found["flag"].replace("-", "_"), found["value"], found["more"] or ""
    rest = f" {value}{more}" if value else ""
    if name.startswith("no_"):
        return f"{name.removeprefix('no_')}=False{rest}"
    if name in SWITCHES:
        return f"{name}=True{rest}"
    shown = name if _options.get() else NAMES.get(name, name)
    if not value:
        return shown
    if re.fullmatch(r"-?\d[\d.e+-]*", value):
        return f"{shown}={value}{more}"
    words = CHOICES.get(name, set())
    if value in words or (name in OPEN and value not in NO_VALUES):
        also = re.sub(r"[a-z_0-9+-]+$|(?<= )[a-z_0-9+-]+(?=,)", lambda word: _quoted(word[0], words), more)
        return f"{shown}={_quoted(value)}{also}"
    return f"{shown}{rest}"


def _quoted(value: str, words: set[str] | None = None) -> str:
    return f'"{value}"' if words is None or value in words else value
