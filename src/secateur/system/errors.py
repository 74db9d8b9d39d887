"""Errors a user can meet. Each names the value received and the remedy, and carries an exit code."""


class SecateurError(Exception):
    """Base of all errors that secateur raises on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class InputError(SecateurError):
    """Bad input: an option, a path, a file's contents, an unsupported model (exit code 2)."""

    exit_code = 2


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
)
"""What the libraries that write say of a full disk (torch's writer says only that it failed)."""


def disk_is_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is that a disk, a quota or a file's limit was reached."""
    while error is not None:
        if any(words in str(error).lower() for words in FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
"""What torch's allocators say where they have no error class of their own for it."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error is that memory ran out; other failures of a computation are RuntimeErrors too."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in NO_MEMORY)


class LostProcessError(SecateurError):
    """Another process of the run ended or hangs."""


class InterruptedRun(SecateurError):
    """A signal stopped the run after a step that is saved (exit code 128 + the signal's number)."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def all_faults(faults: list[str]) -> None:
    """Raise one `InputError` that lists every fault, or return when there is none."""
    if len(faults) == 1:
        raise InputError(faults[0])
    if faults:
        raise InputError("\n  - ".join([f"{len(faults)} faults in the options:", *faults]))
