"""Run Python that a language model wrote: in a process of its own, with limits, cut off where the platform can.

This keeps accidents away (endless loops, full memory, files overwritten), which is what sampled solutions do. It is
no prison for code that was written to break out: run that in a virtual machine.
"""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec

from ..system.errors import InputError

# Runs in the child before the code does: new namespaces, in them all files read-only, then no right to undo it.
_CHILD = """
import contextlib, ctypes, io, json, os, resource, sys
task = json.loads(sys.stdin.read())
verdict = os.dup(1)
def isolate():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x10000000 | 0x40000000 | 0x20000):  # user, network, mounts
        return False
    read_only = (ctypes.c_uint64 * 4)(1)
    libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None)  # our mounts are nobody else's
    failed = libc.syscall(442, -100, b"/", 0x8000, read_only, 32)  # mount_setattr, recursive
    no_rights = (ctypes.c_uint32 * 6)()
    return not libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), no_rights) and not failed
try:
    isolated = isolate()
except (OSError, AttributeError):
    isolated = False
os.write(verdict, b"isolated\\n" if isolated else b"open\\n")
for limit, most in ((resource.RLIMIT_AS, task["bytes"]), (resource.RLIMIT_CPU, task["seconds"] + 1),
                    (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NPROC, 0)):
    resource.setrlimit(limit, (most, most))
reason = ""
try:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        exec(compile(task["code"], "<solution>", "exec"), {"__name__": "solution"})
except BaseException as error:
    reason = type(error).__name__[:100]
os.write(verdict, (task["token"] + reason + "\\n").encode())
os._exit(0)
"""
LONGEST_VERDICT = 4096
"""Bytes read of what the process says; more is no verdict."""


@dataclass(frozen=True)
class Outcome:
    """What became of a program."""

    passed: bool
    """It ran to its end without an exception."""
    reason: str
    """Empty, the exception's type, `timed out`, or `stopped` where it ended its process."""
    isolated: bool
    """Whether this platform let us take the network and the right to write away (Linux with user namespaces)."""


def run_untrusted(code: str, *, seconds: int = 5, memory_bytes: int = 1 << 30) -> Outcome:
    """Run a program with the standard library alone, no environment, no input, and nowhere to write.

    Args:
        code: Python source; it passes if it ends without an exception, also without SystemExit.
        seconds: of the clock; of the processor one more.
        memory_bytes: of address space.

    It may start no further process or thread; the system lets only the superuser do so all the same.

    Raises:
        InputError: a platform without limits (Python's module `resource`).
    """
    if find_spec("resource") is None:
        raise InputError("this platform has no limits to run a model's code under (Python's module `resource`).")
    token = secrets.token_hex(16)  # so that ending the process early cannot look like a success
    task = {"code": code, "token": token, "seconds": seconds, "bytes": memory_bytes}
    with tempfile.TemporaryDirectory(prefix="secateur-sandbox-") as folder:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        with child.stdin as given, child.stdout as answer:
            with contextlib.suppress(BrokenPipeError):  # it has ended already
                given.write(json.dumps(task).encode())
                given.flush()
            with contextlib.suppress(BrokenPipeError):
                given.close()
            timed_out = _outlasts(child, seconds)
            _kill_group(child.pid)  # with what it may have started
            child.wait()
            # Not to the pipe's end: a process that got away may hold it open, and write for ever.
            os.set_blocking(answer.fileno(), False)
            said = ""
            with contextlib.suppress(BlockingIOError):
                said = os.read(answer.fileno(), LONGEST_VERDICT).decode("ascii", "replace")
    if timed_out:
        return Outcome(False, "timed out", said.startswith("isolated"))
    first, _, rest = said.partition("\n")
    answered = rest.startswith(token) and rest.endswith("\n")
    reason = rest[len(token) :].strip() if answered else "stopped"
    return Outcome(answered and not reason, reason, first == "isolated")


def _outlasts(child: subprocess.Popen[bytes], seconds: int) -> bool:
    try:
        child.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
