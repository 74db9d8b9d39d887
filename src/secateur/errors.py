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
