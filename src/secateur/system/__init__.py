"""What every package may use and that knows nothing of models: errors, names, files, folders, the terminal.

Public are the errors: each has an exit code, and says which value was received and what to do.
"""

from .errors import (
    InputError,
    InterruptedRun,
    LostProcessError,
    NumericsError,
    OutOfMemoryError,
    SecateurError,
    VerificationError,
)

__all__ = [
    "InputError",
    "InterruptedRun",
    "LostProcessError",
    "NumericsError",
    "OutOfMemoryError",
    "SecateurError",
    "VerificationError",
]
