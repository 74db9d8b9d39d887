"""The command line: flags and exit codes, no logic. Imports torch only when a command runs."""

from .entry import main

__all__ = ["main"]
