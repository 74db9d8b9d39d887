"""The command line: flags to configs, errors to exit codes. No logic of its own.

Flags are generated from the commands' config dataclasses; torch is imported only when a command runs.
"""

import argparse
import errno
import pickle
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import MISSING, fields
from types import MappingProxyType
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from ..config.compare import CompareConfig
from ..config.options import with_origin
from ..config.recipes import CLASSES, FromRecipe, build_values, read_with_recipe
from ..system.errors import InputError, OutOfMemoryError, SecateurError, disk_is_full, out_of_memory
from ..system.finished import forget, results
from ..system.places import check_options_kept
from ..system.progress import Escaping, safe
from ..system.registry import did_you_mean
from ..system.signals import exit_code_of, terminated_tidily
from ..system.version import VERSION
from ..system.voice import flags_spoken
from .commands import COMMANDS

FILE_SYSTEM = (
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.EROFS,
    errno.ELOOP,
    errno.ENOTDIR,
    errno.EISDIR,
)
"""Refusals that name a place which the user chose."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code (0 done, 2 bad input, 3 memory, 4 verification, 5 numbers)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # PEFT and transformers tell each other about their deprecations; there is nothing a user could do.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
    debug = "--debug" in arguments
    config: Any = None
    forget()
    try:
        # What commands print has names and texts in it that come from models and data.
        with terminated_tidily(), flags_spoken(), redirect_stdout(Escaping(sys.stdout)):
            command, config = _parse(arguments)
            return command(config)
    except SecateurError as error:
        return _fail(error, debug=debug, origins=config.origins if isinstance(config, FromRecipe) else {})
    except KeyboardInterrupt as error:
        print(f"secateur: interrupted; {_what_stands()}", file=sys.stderr)
        return exit_code_of(error)
    except BrokenPipeError:
        return 1
    except Exception as error:
        if ours := _as_ours(error, arguments):
            return _fail(ours, debug=debug)
        raise


def _what_stands() -> str:
    """What an interrupted command leaves."""
    if not (places := results()):
        return "nothing was written to the output folder."
    place = places[0]  # what comes later goes with it
    words = f"the result is complete in {safe(str(place))}."
    if (place / "result.json").is_file() and not (place / "report.html").is_file():
        words += f" Its page is missing: secateur report {safe(str(place))} draws it."
    return words


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are ours; its subparsers are of the same class."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}. See {self.prog} --help.")


def _parse(arguments: list[str]) -> tuple[Callable[[Any], int], Any]:
    parser = _Parser(
        prog="secateur",
        description="Prune a large language model while LoRA fine-tunes it; get an ordinary, smaller checkpoint.",
        epilog="secateur COMMAND --help lists a command's options. Start with: secateur quickstart",
    )
    parser.add_argument("--version", action="version", version=f"secateur {VERSION}")
    parser.add_argument("--verbose", action="store_true", help="with --version: also packages, hardware and drivers")
    if set(arguments) == {"--version", "--verbose"}:
        return _print_versions, None
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=command.summary,
            description=command.summary,
            epilog=f"example: {command.example}" if command.example else None,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
        )
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        _add_options(sub, command.options)
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise InputError(f"unknown command {arguments[0]!r}. {did_you_mean(arguments[0], COMMANDS)}Known: {known}.")
    given = vars(parser.parse_args(arguments or ["--help"]))
    name = given.pop("command")
    if given.pop("verbose", False):
        raise InputError("--verbose goes with --version: leave it out.")
    given.pop("debug", None)
    command = COMMANDS[name]
    if not command.options:
        return command.run, None
    file = given.pop("config", None)
    if command.options[0] is CompareConfig:
        from ..compare.grid import build_comparison

        return command.run, build_comparison(given, file)
    config: Any = build_values(command.options[0], read_with_recipe(given, file, name))
    if file:
        check_options_kept(file, config)
    return command.run, config


def _print_versions(_: None) -> int:
    from ..system.versions import versions_text

    print(versions_text())
    return 0


def _add_options(parser: argparse.ArgumentParser, classes: tuple[type, ...]) -> None:
    """One flag per field; values stay text, so that YAML and the command line are converted in one place."""
    if not classes:
        return
    hints = {name: hint for cls in reversed(classes) for name, hint in get_type_hints(cls).items()}
    known = {f.name: f for cls in reversed(classes) for f in fields(cls)}
    groups: dict[str, Any] = {}
    for f in known.values():
        group = groups.setdefault(f.metadata["group"], parser.add_argument_group(f.metadata["group"]))
        flag = "--" + f.name.replace("_", "-")
        text = f.metadata["help"].replace("%", "%%")
        if f.metadata["positional"]:
            group.add_argument(f.name, help=text, metavar=f.metadata["metavar"], nargs="*")
            continue
        if hints[f.name] is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
            continue
        if f.default is MISSING:
            text += " (required)"
        elif f.default not in (None, ()):
            text += f" (default: {f.default})"
        metavar = "{" + ",".join(f.metadata["choices"]) + "}" if f.metadata["choices"] else _metavar(hints[f.name])
        group.add_argument(flag, help=text, metavar=metavar, nargs="+" if get_origin(hints[f.name]) is tuple else None)
    if any(cls in CLASSES for cls in classes):
        parser.add_argument("--recipe", metavar="NAME", help="start from a recipe's options (secateur recipes)")
    parser.add_argument("--config", metavar="YAML", help="read options from a file; flags win over it")


def _metavar(hint: Any) -> str:
    kinds = get_args(hint) or (hint,)
    if int in kinds and str in kinds:
        return "SIZE"
    if int in kinds and float in kinds:
        return "STEPS|FRACTION"
    return "N" if int in kinds else "X" if float in kinds else "TEXT"


def _fail(error: SecateurError, *, debug: bool, origins: Mapping[str, str] = MappingProxyType({})) -> int:
    if debug:
        import traceback

        print(safe("".join(traceback.format_exception(error))), file=sys.stderr, end="")
    print(f"secateur: error: {safe(with_origin(str(error), origins))}", file=sys.stderr)
    return error.exit_code


def _as_ours(error: Exception, arguments: list[str]) -> SecateurError | None:
    """What a user can mend but no command has put into words: memory, and a file system's refusals."""
    if isinstance(error, OSError) and (error.errno in FILE_SYSTEM or disk_is_full(error)):
        reason = error.strerror or str(error)
        place = str(error.filename or "")
        place = f"{place[:200]} ... ({len(place):,} characters)" if len(place) > 200 else place
        return InputError(
            f"{place + ': ' if place else ''}{reason}: check the path, its permissions and the room on its disk."
        )
    if isinstance(error, pickle.UnpicklingError):
        return InputError(
            "an adapter's or model's file is a pickle, which can run code when it is opened: refused. Where you trust "
            "it, convert it once with save_pretrained, which writes safetensors, and give that."
        )
    if out_of_memory(error):
        command = COMMANDS.get(arguments[0] if arguments else "")
        part, remedy = (command.memory if command else None) or ("running", "Choose a smaller model.")
        return OutOfMemoryError(f"out of memory while {part}. {remedy}")
    return None
