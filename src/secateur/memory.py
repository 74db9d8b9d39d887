"""The process's memory and its peak, as the operating system counts it."""

import resource
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak() -> int:
    """Start a new peak; -> bytes resident now. Where the system cannot (not Linux), the old peak stays."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return peak_bytes()
    return _status("VmRSS") or peak_bytes()


def peak_bytes() -> int:
    """The most bytes that were resident since the last reset."""
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status(key: str) -> int | None:
    try:
        lines = STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(key + ":")]
    return int(found[0]) * 1024 if found else None
