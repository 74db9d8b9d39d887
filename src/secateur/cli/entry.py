"""The command line: flags to configs, errors to exit codes. No logic of its own.

torch is imported only when a command runs.
"""

import atexit
import errno
import gc
import os
import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from types import MappingProxyType
from typing import Any

from ..config.files.recipes import FromRecipe
from ..config.options import with_origin
from ..system.errors import InputError, OutOfMemoryError, SecateurError, disk_is_full, out_of_memory
from ..system.finished import forget, results
from ..system.quiet import deprecations_unheard
from ..system.terminal.screen import Above, columns_of, is_terminal
from ..system.terminal.signals import exit_code_of, terminated_tidily
from ..system.terminal.streams import Escaping, safe
from ..system.terminal.tables import console_of, prose
from ..system.voice import flags_spoken
from .commands import COMMANDS
from .parsing import parse

ERROR = "secateur: error:"
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
    if arguments is None:  # the program: at its end Python need not search what torch has made for what it can free
        atexit.register(gc.freeze)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # What Apple's GPUs cannot compute yet, PyTorch then computes on the CPU; it reads this when it is imported.
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    debug = "--debug" in arguments
    config: Any = None
    forget()
    try:
        # What commands print has names and texts in it that come from models and data.
        with terminated_tidily(), flags_spoken(), deprecations_unheard(), said() as out, redirect_stdout(out):
            command, config = parse(arguments)
            _check_here()
            return command(config)
    except SecateurError as error:
        return _fail(error, debug=debug, origins=config.origins if isinstance(config, FromRecipe) else {})
    except KeyboardInterrupt as error:
        _complain(f"secateur: interrupted; {_what_stands()}")
        return exit_code_of(error)
    except Exception as error:
        if ours := _as_ours(error, arguments):
            return _fail(ours, debug=debug)
        raise


def _check_here() -> None:
    """The current folder is still there: MKL ends the process where it is not, and relative paths mean nothing."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise InputError("the current folder is not there any more: change to one that is.") from None


def _what_stands() -> str:
    """What an interrupted command leaves."""
    if not (places := results()):
        return "nothing was written to the output folder."
    place = places[0]  # what comes later goes with it
    words = f"the result is complete in {safe(str(place))}."
    if (place / "result.json").is_file() and not (place / "report.html").is_file():
        words += f" Its page is missing: secateur report {safe(str(place))} draws it."
    return words


def _fail(error: SecateurError, *, debug: bool, origins: Mapping[str, str] = MappingProxyType({})) -> int:
    if debug:
        import traceback

        _complain("".join(traceback.format_exception(error)).rstrip("\n"))
    first, *more = with_origin(str(error), origins).split("\n")
    # What a name brings along does not look like a line of ours.
    _complain("\n".join([f"{ERROR} {first}", *(line if line.startswith("  ") else f"  {line}" for line in more)]))
    return error.exit_code


@contextmanager
def said() -> Iterator[Any]:
    """What commands print to: names and texts of models and data are in it, and its reader may have read enough.

    A command goes on when it has: what it was asked for is more than what it says. A disk that is full is told here,
    where there is still a message, and not when Python ends.
    """
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        out = Above(sys.stdout or nowhere)
        try:
            yield out
        finally:
            with suppress(OSError):
                out.flush()
            error = sys.exception()
            if (lost := out.lost) is not None and (error is lost or isinstance(error, SystemExit | None)):
                raise InputError(
                    f"standard output: {lost.strerror or lost}: what was to be printed is lost. Check what it is sent "
                    "to."
                ) from None


def _complain(words: str) -> None:
    """A message to the standard error stream, if that takes any; the exit code is the same where it does not."""
    if sys.stderr is not None:
        with suppress(OSError):  # its disk may be full
            _say(words, Escaping(sys.stderr))


def _say(words: str, err: Escaping) -> None:
    """A message, whose first words stand out in a terminal."""
    if is_terminal(sys.stderr) and words.startswith(ERROR):
        lines = list(prose(words))
        lines[0].stylize("bold red", 0, len(ERROR))
        console = console_of(sys.stderr, columns_of(sys.stderr))
        for line in lines:
            console.print(line)
    else:
        print(words, file=err)
    err.flush()


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
