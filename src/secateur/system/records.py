"""What a run leaves behind: result.json, metrics.jsonl, and tables in Markdown."""

import glob
import json
import math
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from .errors import InputError
from .finished import lands
from .locks import held

if TYPE_CHECKING:
    import torch

FORMAT = 1
"""Version of the records' layout; a reader refuses a newer one."""
PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors")


def environment(device: "torch.device | None" = None) -> dict[str, Any]:
    """Versions, hardware and the source's commit, so that a figure can be placed.

    Args:
        device: what computed it.
    """
    import psutil
    import torch

    from .machine.devices import accelerator_names, name_of_device

    cpu, on = cpu_name(), {}
    if device is not None:
        on = {"device": cpu if device.type == "cpu" else f"{device} ({name_of_device(device)})"}
    return {
        "record_format": FORMAT,
        "secateur": version_of("secateur"),
        "commit": commit(),
        "python": platform.python_version(),
        "versions": {name: version_of(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpu": cpu,
        "logical_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": accelerator_names(),
        **on,
    }


def check_layout(record: Any, place: object, remedy: str = "upgrade secateur to read it.") -> None:
    """Refuse a record (or what one of its parts says of its surroundings) of a newer layout.

    Raises:
        InputError: names `place`.
    """
    around = record.get("environment") if isinstance(record, dict) else None
    layout = around.get("record_format") if isinstance(around, dict) else None
    if isinstance(layout, int | float) and layout > FORMAT:
        raise InputError(
            f"{place} was written by a newer secateur (record format {layout:g}; this one reads up to {FORMAT}): "
            f"{remedy}"
        )


def write_json(path: Path, value: Any, *, result: bool = False) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of one.

    Args:
        result: it is what the command was asked for.
    """
    text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(path, text.encode("utf-8"), result=result)


def write_whole(path: Path, content: bytes, *, result: bool = False) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of one.

    Args:
        result: it is what the command was asked for; what a writer of it that was killed left beside it goes.
    """
    if not result:
        _write_whole(path, content)
        return
    with ExitStack() as stack:
        with suppress(InputError):  # another process writes it too: whose is the later stays
            stack.enter_context(held(path.with_name(f".{path.name}.lock"), str(path)))
            for left in path.parent.glob(f".{glob.escape(path.name)}.{'[a-z0-9_]' * 8}"):
                left.unlink()
        _write_whole(path, content, lands)


def _write_whole(path: Path, content: bytes, landing: Callable[[Path, Path], None] | None = None) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with suppress(OSError):  # a file system without modes
            os.chmod(temporary, 0o644)
        if landing is not None:
            landing(Path(temporary), path)
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a write that fails does not know it
        raise


def plain(value: Any) -> Any:
    """Dataclasses, tuples and paths as JSON knows them; numbers that are not finite as null."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def write_told(path: Path, value: Any, words: str) -> None:
    """`write_json` of what a command was asked for; where that fails, its words are printed all the same."""
    try:
        write_json(path, value, result=True)
    except OSError:
        print(words)
        raise


class MetricsLog:
    """One JSON object a line, on disk as soon as it is appended; closes itself as a context manager."""

    def __init__(self, path: Path, last_step: int | None = None) -> None:
        """Append to `path`; lines after `last_step`, from a run that is repeated from there, go."""
        if last_step is not None and path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]
            path.write_text("".join(line for line in whole if json.loads(line)["step"] <= last_step), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def append(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(plain(line), allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()


def counted(number: int, what: str) -> str:
    """(4, "cut") -> `4 cuts`, (1, "cut") -> `1 cut`, (2, "batch") -> `2 batches`."""
    return f"{number:,} {what}" + ("" if number == 1 else "es" if what.endswith("ch") else "s")


def markdown_table(rows: Sequence[tuple[str, ...]], header: tuple[str, ...], left: int = 1) -> str:
    """Rows under a header as a Markdown table, whose first `left` columns are words."""
    rule = "|---" * left + "|---:" * (len(header) - left) + "|"
    # A bar or a line break in a cell would start a new cell or row.
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in (header, *rows)]
    head, *body = ["| " + " | ".join(line) + " |" for line in cells]
    return "\n".join([head, rule, *body])


def version_of(package: str) -> str | None:
    """The installed version of a package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of secateur's own checkout (`+` when the tree differs from it); None when installed without one.

    Installed into a virtual environment inside someone's project, it lies in a checkout that is not its own:
    only the place in it tells.
    """
    prefix, _, head = _git("rev-parse", "--show-prefix", "HEAD").partition("\n")
    if prefix != "src/secateur/system/":
        return None
    return head.strip() + ("+" if _git("status", "--porcelain", "--", "..") else "")


def _git(*arguments: str) -> str:
    """What git prints in our source folder; nothing where it fails or is missing."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def cpu_name() -> str:
    """The processor's model."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n")
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
