"""Errors a user can meet. Each names the value received and the remedy, and carries an exit code."""

import errno
from collections.abc import Iterator


class SecateurError(Exception):
    """Base of all errors that secateur raises on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class InputError(SecateurError):
    """Bad input: an option, a path, a file's contents, an unsupported model (exit code 2)."""

    exit_code = 2
    faults: tuple[str, ...] = ()
    """Where there are several in one message, each by itself."""


class OutOfMemoryError(SecateurError):
    """The machine or device ran out of memory (exit code 3)."""

    exit_code = 3


class VerificationError(SecateurError):
    """A written result did not reproduce the in-memory model (exit code 4)."""

    exit_code = 4


class NumericsError(SecateurError):
    """A loss, gradient or score was NaN or infinite (exit code 5)."""

    exit_code = 5


FULL = (
    "no space left",
    "os error 28",
    "file too large",
    "os error 27",
    "quota exceeded",
    "streamwriter failed writing",
    "inline_container.cc:",
    "basic_ios::clear",
)
"""What the libraries that write say of a full disk (torch's writer says only that it failed, or lost its place)."""
NOT_FULL = ("streamreader", "open file failed")
"""What torch says in the same words of other failures."""
FULL_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNWRITABLE = {errno.EROFS: "read-only file system", errno.EIO: "input/output error", errno.EACCES: "permission denied"}
"""Why a place that could be written to at first may not be any more."""


def disk_is_full(error: BaseException) -> bool:
    """Whether an error, or what caused it, is that a disk, a quota or a file's limit was reached."""
    for each in _causes(error):
        words = str(each).lower()
        if isinstance(each, OSError) and each.errno in FULL_NUMBERS:
            return True
        if any(part in words for part in FULL) and not any(part in words for part in NOT_FULL):
            return True
    return False


def unwritable(error: BaseException) -> str | None:
    """Why a place cannot be written to any more, though its disk is not full; None where an error does not say so."""
    for each in _causes(error):
        if isinstance(each, OSError) and each.errno in UNWRITABLE:
            return UNWRITABLE[each.errno]
        for words in UNWRITABLE.values():
            if words in str(each).lower():
                return words
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory", "os error 12")
"""What torch's allocators, and those who map a file of weights, say where they have no error class of their own."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error is that memory ran out; other failures of a computation are RuntimeErrors too."""
    import torch
    from safetensors import SafetensorError

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    kinds = RuntimeError | OSError | SafetensorError
    return isinstance(error, kinds) and any(words in str(error).lower() for words in NO_MEMORY)


class LostProcessError(SecateurError):
    """Another process of the run ended or hangs."""


class InterruptedRun(SecateurError):
    """A signal stopped the run after a step that is saved (exit code 128 + the signal's number)."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def all_faults(faults: list[str]) -> None:
    """Raise one `InputError` that lists every fault, or return when there is none."""
    if faults:
        error = InputError(faults[0] if len(faults) == 1 else _listed(faults))
        error.faults = tuple(faults)
        raise error


def faults_of(error: InputError) -> list[str]:
    """The faults that `all_faults` has put into one message, or the message."""
    return list(error.faults) or [str(error)]


def _listed(faults: list[str]) -> str:
    return "\n  - ".join([f"{len(faults)} faults in the options:", *faults])
