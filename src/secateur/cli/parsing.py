"""Flags, YAML and recipes to a command and its config. Flags are generated from the commands' config dataclasses."""

import argparse
import os
import re
from collections.abc import Callable, Container, Iterable
from dataclasses import MISSING, fields
from itertools import pairwise
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

import argcomplete

from ..config.compare import CompareConfig
from ..config.files.recipes import CLASSES, RecipesConfig, build_values, read_with_recipe, recipes
from ..config.options import flag, known_options
from ..system.errors import InputError, all_faults, faults_of
from ..system.places import check_options_kept
from ..system.progress import STARTING, phase
from ..system.registry import did_you_mean, option_meant
from ..system.version import VERSION
from .commands import COMMANDS, Command
from .shown import place_of, shown

SHELLS = ("bash", "zsh", "fish")
OF_NONE = ("version", "verbose", "print_completion", "debug", "help")
"""Options that stand without a command."""
WITH_COMMAS = ("units",)
"""Options whose one value is a list."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are ours; its subparsers are of the same class."""

    def error(self, message: str) -> NoReturn:
        if given := re.fullmatch(r"argument (--[\w-]+)/--no-[\w-]+: ignored explicit argument (.*)", message):
            raise InputError(f"{_switch_fault(given[1], given[2])} See {self.prog} --help.")
        raise InputError(f"{message.removeprefix('argument ')}. See {self.prog} --help.")


def parse(arguments: list[str]) -> tuple[Callable[[Any], int], Any]:
    """What to run, and its config.

    Raises:
        InputError: every fault that the options have, in one message.
    """
    everything, completing = "--help-all" in arguments, "_ARGCOMPLETE" in os.environ
    # Options of the commands that are named alone; a shell that asks for completions names them elsewhere.
    parser = make_parser(everything or completing, COMMANDS if completing else arguments)
    argcomplete.autocomplete(parser)  # ends here where a shell asks for completions
    if set(arguments) == {"--version", "--verbose"}:
        return _print_versions, None
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        known = ", ".join(COMMANDS)
        meant = did_you_mean(arguments[0], COMMANDS)
        raise InputError(f"unknown command {arguments[0]!r}. {meant}Known: {known}. See secateur --help.")
    if everything:
        arguments = ["--help" if argument == "--help-all" else argument for argument in arguments]
    parsed, unknown = parser.parse_known_args(arguments or ["--help"])
    given = vars(parsed)
    if shell := given.pop("print_completion", None):
        return _print_completion, shell
    name = given.pop("command", None)
    if name is None:
        wrong = [f"unknown option {each}. {_meant(each, OF_NONE)}" for each in unknown if each.startswith("-")]
        raise InputError(f"{''.join(wrong)}give a command: {', '.join(COMMANDS)}. See secateur --help.")
    if given.pop("verbose", False):
        raise InputError("--verbose goes with --version: leave it out.")
    given.pop("debug", None)
    command = COMMANDS[name]
    faults = _unknown_faults(unknown, arguments, command, name)
    if not command.options:
        all_faults(faults)
        return command.run, None
    try:
        config = _config_of(command, name, given)
    except InputError as error:
        all_faults(faults_of(error) + faults if faults else [])
        raise
    all_faults(faults)
    return command.run, config


def _config_of(command: Command, name: str, given: dict[str, Any]) -> Any:
    if (file := given.pop("config", None)) == "":
        raise InputError("--config is empty: give the YAML file's name, or leave it out.")
    if command.options[0] is CompareConfig:
        with phase(STARTING):
            from ..comparison.grid import build_comparison

            return build_comparison(given, file)
    config: Any = build_values(command.options[0], read_with_recipe(given, file, name), name)
    if file:
        check_options_kept(file, config)
    return config


def _unknown_faults(unknown: list[str], arguments: list[str], command: Command, name: str) -> list[str]:
    """What a command does not know: a flag with what was meant, values by themselves."""
    hints = {option: hint for cls in command.options for option, hint in get_type_hints(cls).items()}
    options = [option for cls in command.options for option in known_options(cls)]
    switches = [option for option in options if hints[option] is bool]
    known = [*options, *(f"no_{option}" for option in switches), "config", "debug", "help", "help-all"]
    faults: list[str] = []
    lost: list[str] = []
    for each in unknown:
        if each.startswith("-") and len(each) > 1:
            faults.append(f"unknown option {each.partition('=')[0]}. {_meant(each, known)}{_see(each, name)}")
        elif not faults:
            lost.append(each)
    if faults or not lost:
        return faults
    before = [word for word, value in pairwise(arguments) if value == lost[0]]
    if given := [word for word in before if word.removeprefix("--").removeprefix("no-").replace("-", "_") in switches]:
        return [f"{_switch_fault(given[0], repr(lost[0]))} See secateur {name} --help."]
    return [f"unexpected {' '.join(lost)!r}. See secateur {name} --help."]


def _meant(word: str, known: Iterable[str]) -> str:
    """`Did you mean '--x'? ` for a flag, or nothing."""
    meant = option_meant(word.partition("=")[0].lstrip("-"), known)
    return re.sub("'(.*)'", lambda found: repr(flag(found[1])), meant)


def _see(word: str, name: str) -> str:
    alone = word.lstrip("-").partition("=")[0].replace("-", "_") in OF_NONE
    return f"It goes without a command: secateur {word}." if alone else f"See secateur {name} --help-all."


def _switch_fault(given: str, value: str) -> str:
    name = given.removeprefix("--no-").removeprefix("--")
    return f"{given} takes no value, and is given {value}: --{name} is yes and --no-{name} is no."


def _print_versions(_: None) -> int:
    from ..system.versions import versions_text

    print(versions_text())
    return 0


def _print_completion(shell: str) -> int:
    if shell not in SHELLS:
        raise InputError(f"--print-completion {shell}: {did_you_mean(shell, SHELLS)}choose from {', '.join(SHELLS)}.")
    print(argcomplete.shellcode(["secateur"], shell=shell))
    return 0


def make_parser(everything: bool = True, named: Container[str] = COMMANDS) -> argparse.ArgumentParser:
    """The parser of all commands.

    Args:
        everything: help lists every option, not those alone that most runs need.
        named: the commands that get their options.
    """
    parser = _Parser(
        prog="secateur",
        description="Prune a large language model while LoRA fine-tunes it; get an ordinary, smaller checkpoint.",
        epilog="secateur COMMAND --help lists a command's options. Start with: secateur quickstart",
    )
    parser.add_argument("--version", action="version", version=f"secateur {VERSION}")
    parser.add_argument("--verbose", action="store_true", help="with --version: also packages, hardware and drivers")
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    script = parser.add_argument(
        "--print-completion",
        metavar="{" + ",".join(SHELLS) + "}",
        help='a script that completes commands, options and their values: eval "$(secateur --print-completion bash)"',
    )
    script.completer = _shells  # type: ignore[attr-defined]
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        options = {f.name for cls in command.options for f in fields(cls)}
        listed = options if everything else shown(name, options)
        rest = len(options - listed)
        more = f"{rest} more options: secateur {name} --help-all. " if rest else ""
        sub = commands.add_parser(
            name,
            help=command.summary,
            description=command.summary,
            epilog=more + (f"example: {command.example}" if command.example else ""),
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
        )
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if rest:
            sub.add_argument("--help-all", action="store_true", help="show every option and exit")
        if name in named:
            _add_options(sub, command.options, listed)
    return parser


def _add_options(parser: argparse.ArgumentParser, classes: tuple[type, ...], listed: Container[str]) -> None:
    """One flag per field, of which help shows those `listed`.

    Values stay text, so that YAML and the command line are converted in one place.
    """
    if not classes:
        return
    hints = {name: hint for cls in reversed(classes) for name, hint in get_type_hints(cls).items()}
    known = {f.name: f for cls in reversed(classes) for f in fields(cls)}
    groups: dict[str, Any] = {}
    for f in sorted(known.values(), key=lambda f: place_of(f.metadata["group"])):
        group = groups.setdefault(f.metadata["group"], parser.add_argument_group(f.metadata["group"]))
        if f.metadata["positional"]:
            text = f.metadata["help"].replace("%", "%%")
            count = "*" if get_origin(hints[f.name]) is tuple else "?"
            positional = group.add_argument(f.name, help=text, metavar=f.metadata["metavar"], nargs=count)
            if RecipesConfig in classes:
                positional.completer = _recipe_names
            continue
        text = _help_of(f) if f.name in listed or f.default is MISSING else argparse.SUPPRESS
        if hints[f.name] is bool:
            group.add_argument(flag(f.name), action=argparse.BooleanOptionalAction, help=text)
            continue
        choices = f.metadata["choices"]
        metavar = "{" + ",".join(choices) + "}" if choices else f.metadata["metavar"] or _metavar(hints[f.name])
        several = "+" if get_origin(hints[f.name]) is tuple else None
        action = group.add_argument(flag(f.name), help=text, metavar=metavar, nargs=several)
        if f.name.endswith("s") and (several or f.name in WITH_COMMAS):  # --prompt, --task
            group.add_argument(flag(f.name[:-1]), dest=f.name, help=argparse.SUPPRESS, nargs=several)
        if words := choices or f.metadata["known"]:
            action.completer = argcomplete.ChoicesCompleter(words)
    if any(cls in CLASSES for cls in classes):
        named = parser.add_argument("--recipe", metavar="NAME", help="start from a recipe's options (secateur recipes)")
        named.completer = _recipe_names  # type: ignore[attr-defined]
    parser.add_argument("--config", metavar="YAML", help="read options from a file; flags win over it")


def _recipe_names(**_: Any) -> list[str]:
    """For a shell to complete."""
    return list(recipes())


def _shells(**_: Any) -> tuple[str, ...]:
    """The same."""
    return SHELLS


def _help_of(option: Any) -> str:
    text: str = option.metadata["help"].replace("%", "%%")
    if option.default is MISSING:
        return text + " (required)"
    if option.default in (None, (), "") or isinstance(option.default, bool):
        return text
    default = " ".join(option.default) if isinstance(option.default, tuple) else option.default
    return f"{text} (default: {default})"


def _metavar(hint: Any) -> str:
    kinds = get_args(hint) or (hint,)
    if int in kinds and str in kinds:
        return "SIZE"
    if int in kinds and float in kinds:
        return "STEPS|FRACTION"
    return "N" if int in kinds else "X" if float in kinds else "TEXT"
