"""One run at a time in a folder, one writer at a time of an output."""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from filelock import lock_descriptor

from .errors import InputError

LOCK = "lock"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""Of a file system that has no locks (Lustre without `flock`, NFS without its daemon): nobody can hold one there."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process, creating it; the operating system lets go of it when the process ends.

    Raises:
        InputError: another run holds it; names its process.
    """
    with held(folder / LOCK, str(folder)):
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)
            with suppress(OSError):  # a run that ended before its first step leaves nothing behind
                folder.rmdir()


@contextmanager
def held(path: Path, what: str) -> Iterator[bool]:
    """Hold the lock file `path`, creating it and the folder it is in; it goes with the holder.

    Yields whether that keeps others out: some file systems have no locks.

    Args:
        what: what the lock stands for, in the message.
    Raises:
        InputError: another process holds it.
    """
    file, alone = _taken(path, what)
    try:
        with file:
            file.seek(0)
            file.truncate()
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            try:
                yield alone
            finally:
                with suppress(PermissionError):  # Windows: not while it is open
                    path.unlink(missing_ok=True)
    finally:
        if os.name == "nt":
            with suppress(PermissionError):  # another process has opened it by now
                path.unlink(missing_ok=True)


def _taken(path: Path, what: str) -> tuple[TextIO, bool]:
    """The open lock file that is at `path` now, and whether it is locked, which some file systems know nothing of.

    Its holder unlinks it before it lets go, so what was opened a moment before may be nobody's file any more, and
    another process may hold its successor: only the file that still has the name counts.
    """
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:  # also where the folder goes just while `mkdir` looks what is in its place
            if _is_no_folder(path.parent):
                raise
            continue
        try:
            file = path.open("a+", encoding="utf-8")
        except FileNotFoundError:  # the folder went together with its lock
            continue
        try:
            ours = lock_descriptor(file.fileno(), blocking=False)
        except OSError as error:
            if error.errno in NO_LOCKS:
                return file, False
            file.close()
            raise
        if not ours:
            owner = _owner(file)
            file.close()
            raise InputError(f"{what} is in use by {owner}: wait for it, or choose another --output.")
        if _is_at(file, path):
            return file, True
        file.close()


def _owner(file: TextIO) -> str:
    try:
        file.seek(0)
        return file.read().strip() or "another process"
    except OSError:  # Windows: what is locked cannot be read
        return "another process"


def _is_no_folder(path: Path) -> bool:
    try:
        return not stat.S_ISDIR(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _is_at(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
