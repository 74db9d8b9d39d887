"""`secateur --version --verbose`: versions and hardware in one paste, without importing any of what it names."""

import os
import platform
import runpy
import subprocess
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from .progress import human_bytes
from .records import PACKAGES, commit, cpu_name, version_of
from .version import VERSION

OPTIONAL = ("bitsandbytes", "lm-eval", "trl")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm", "sve")
"""What of a processor decides how fast it multiplies; bfloat16 by avx512_bf16, amx_bf16 or bf16 (ARM)."""
SECONDS = 5
"""How long a driver's tool may take to answer."""
CPUINFO = Path("/proc/cpuinfo")


def versions_text() -> str:
    """A line for each thing that a report of a fault should name."""
    found = {name: version_of(name) for name in (*PACKAGES, *OPTIONAL)}
    missing = [name for name, version in found.items() if version is None]
    lines = [f"secateur {VERSION} (commit {commit() or 'unknown: not run from a checkout'})"]
    lines += [f"python {platform.python_version()}", f"platform {platform.platform()}"]
    lines += [f"{name} {version}" for name, version in found.items() if version is not None]
    lines += [f"not installed: {', '.join(missing)}"] if missing else []
    lines += [f"torch was built for: {_built_for()}", f"cpu: {cpu_name()}, {_cores()}"]
    lines += [f"cpu flags: {' '.join(cpu_flags()) or 'none of ' + ' '.join(FLAGS)}", f"memory: {_memory()}"]
    return "\n".join([*lines, *_gpus()])


def cpu_flags() -> list[str]:
    """The flags of the first processor that matter for matrix products."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    named = (line.partition(":")[2].split() for line in lines if line.lower().startswith(("flags", "features")))
    there = set(next(named, []))
    return [flag for flag in FLAGS if flag in there]


def _cores() -> str:
    cores = os.cpu_count()
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    return f"{cores} logical cores" + (f", {mine} for this process" if mine != cores else "")


def _memory() -> str:
    import psutil

    memory = psutil.virtual_memory()
    return f"{human_bytes(memory.total)}, {human_bytes(memory.available)} free"


def _built_for() -> str:
    """CUDA, ROCm or processors alone, from the file in which torch says it: importing torch takes seconds."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return "torch is not there"
    try:
        said = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    except OSError:
        return "unknown"
    names = {"cuda": "CUDA", "hip": "ROCm", "xpu": "XPU"}
    return ", ".join(f"{words} {said[name]}" for name, words in names.items() if said.get(name)) or "processors alone"


def _gpus() -> list[str]:
    """GPUs with memory and driver, as the drivers' own tools say."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    found = [f"gpu: {line}" for line in _said(query)]
    if driver := _read(Path("/sys/module/amdgpu/version")):
        found.append(f"gpu: AMD, driver amdgpu {driver}")
    return found or ["gpu: none found"]


def _said(command: list[str]) -> Iterable[str]:
    """The lines that a tool prints; none where it is missing, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
