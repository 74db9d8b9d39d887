"""A written checkpoint is done only when a fresh process, without secateur, computes the same logits from it."""

import json
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..models.memory import WRITE_LATER
from ..system.errors import NO_MEMORY, OutOfMemoryError, VerificationError
from ..system.output import scratch
from ..system.progress import phase
from .child import CHILD

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}
"""Largest |Δlogit| over the largest |logit|. Same weights, precision, machine and threads: 0 in every run. Allowed
are a few roundings (4 ulps of the largest logit in bfloat16 and float16) of a matmul whose tensors lie elsewhere in
memory. Weights are compared to the bit: what logits are left to show is a wrong config or modelling file."""

GREEDY_TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 6e-2, torch.float16: 6e-3}
"""How far below the best logit without the cache a token may lie that was chosen with it, over the largest |logit|.
With the cache the matmuls have other shapes, so ties and near ties may fall the other way (SmolLM2-135M in bfloat16:
4e-3); reading a wrong cache entry moves logits by their own size."""


@dataclass(frozen=True)
class Check:
    """One checkpoint to read back, and what it must compute."""

    folder: Path
    ids: Tensor
    """(1, tokens)"""
    logits: Tensor
    """(1, tokens, vocabulary), of the model in memory"""
    parameters: int
    remote_code: bool = False
    device: str = "cpu"
    checksum: int | None = None
    """`weights_checksum` of the model in memory; None: compare logits only."""
    merged_here: bool = True
    """False: `logits` are those of the model before LoRA was merged, which rounding moves further."""
    tokenizer: dict[str, Any] | None = None
    """`WrittenTokenizer.to_dict`: what the tokenizer beside it must make of some texts."""
    most_kl: float | None = None
    """Mean KL divergence (nats) allowed from `logits`, in place of a largest difference: of a quantised base's."""


@dataclass(frozen=True)
class Verified:
    """What the fresh process found."""

    class_name: str
    difference: float
    """Largest |Δlogit|."""
    greedy_gap: float
    """How far below the best logit (without cache) any token lies that was generated greedily with the cache."""


def weights_checksum(model: nn.Module) -> int:
    """CRC-32 of the names and bytes of all parameters, as the fresh process computes it. Sees a single wrong entry,
    which in bfloat16 no logit tolerance can."""
    checksum = 0
    for name, weight in model.named_parameters():
        checksum ^= tensor_checksum(name, weight)
    return checksum


def tensor_checksum(name: str, tensor: Tensor) -> int:
    """One parameter's part of `weights_checksum`; parts are combined by exclusive or, in any order."""
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return zlib.crc32(data.data, zlib.crc32(name.encode()))


def verify(checks: list[Check]) -> list[Verified]:
    """Read checkpoints back in one fresh process and compare.

    Raises:
        VerificationError: names the folder and what differs.
    """
    found = _run_child(checks)
    verified = []
    for check, result in zip(checks, found, strict=True):
        tolerance = (TOLERANCE if check.merged_here else GREEDY_TOLERANCE)[check.logits.dtype] * result["scale"]
        greedy_tolerance = GREEDY_TOLERANCE[check.logits.dtype] * result["scale"]
        faults = []
        if result["tokenizer"]:
            faults.append(result["tokenizer"])
        if result["missing"]:
            faults.append(f"weights are missing: {', '.join(result['missing'][:3])}")
        if check.most_kl is not None:
            if not result["kl"] <= check.most_kl:
                faults.append(f"it predicts {result['kl']:.3g} nats off what was trained (allowed: {check.most_kl:g})")
        elif not result["difference"] <= tolerance:
            faults.append(f"logits differ by {result['difference']:.3g} (allowed: {tolerance:.3g})")
        if check.checksum not in (None, result["checksum"]):
            faults.append("weights are not those in memory (CRC-32 differs)")
        if not result["greedy_gap"] <= greedy_tolerance:
            faults.append(
                f"greedy generation with the cache is {result['greedy_gap']:.3g} off the one without "
                f"(allowed: {greedy_tolerance:.3g})"
            )
        if result["parameters"] != check.parameters:
            faults.append(f"{result['parameters']:,} parameters instead of {check.parameters:,}")
        if faults:
            raise VerificationError(f"{check.folder}: read back in a fresh process, {'; '.join(faults)}.")
        verified.append(Verified(result["class"], result["difference"], result["greedy_gap"]))
    return verified


def _run_child(checks: list[Check]) -> list[dict]:
    with scratch() as folder:
        jobs = []
        for number, check in enumerate(checks):
            probe = folder / f"probe-{number}.safetensors"
            save_file({"ids": check.ids.cpu().contiguous(), "logits": check.logits.contiguous()}, probe)
            jobs.append(
                {
                    "folder": str(check.folder.absolute()),
                    "probe": str(probe),
                    "remote_code": check.remote_code,
                    "device": check.device,
                    "tokenizer": check.tokenizer,
                }
            )
        found: list[dict] = fresh_process(CHILD, {"threads": torch.get_num_threads(), "jobs": jobs}, checks[0].folder)
    return found


@phase("reading the result back in a fresh process")
def fresh_process(source: str, task: dict[str, Any], folder: Path) -> Any:
    """Run Python `source` in a process that cannot import secateur from here; what it prints after `RESULT`.

    Args:
        task: given as JSON, in the file that `sys.argv[1]` names.
        folder: what is read back, for the message.
    Raises:
        VerificationError: the process failed; says how it ended.
    """
    with scratch() as work:
        file = work / "task.json"
        file.write_text(json.dumps(task), encoding="utf-8")
        # transformers copies a modelling file into this cache under the folder's (temporary) name: not the user's.
        done = run_python(source, file, {**os.environ, "HF_MODULES_CACHE": str(work / "modules")})
    lines = [line for line in done.stdout.split("\n") if line.startswith("RESULT")]
    if done.returncode or not lines:
        last = done.stderr.strip().split("\n")[-1] or f"no message, exit code {done.returncode}"
        if done.returncode == -9:
            last = "it was killed, probably for lack of memory"
        if "MemoryError" in last or any(words in last.lower() for words in NO_MEMORY):
            raise OutOfMemoryError(f"out of memory while a fresh process read the result back ({last}). {WRITE_LATER}")
        raise VerificationError(f"{folder}: a fresh process could not load what was written: {last}")
    return json.loads(lines[-1].removeprefix("RESULT"))


IMPORTS = "import torch, transformers\nfrom transformers import AutoModelForCausalLM\n"
"""What whoever reads a checkpoint imports; seconds of it."""
WAITS = """
import json, sys
asked = sys.stdin.readline()
if not asked:
    sys.exit()
asked = json.loads(asked)
sys.argv[1:] = [asked["argument"]]
exec(compile(asked["source"], "<string>", "exec"), {"__name__": "__main__"})
"""
_waiting: list[subprocess.Popen[str]] = []


@contextmanager
def reader_waits() -> Iterator[None]:
    """Inside, a fresh process makes its imports while the checkpoint is made that it will read: `run_python` asks it.

    It is asked once. Where nobody asks, it ends with the block; it also ends with this process, whatever ends that.
    """
    with scratch() as work:
        process = start_reader({**os.environ, "HF_MODULES_CACHE": str(work / "modules")})
        if process is None:
            yield
            return
        _waiting.append(process)
        try:
            yield
        finally:
            if process in _waiting:
                _waiting.remove(process)
            process.kill()
            process.communicate()


def start_reader(environment: dict[str, str]) -> subprocess.Popen[str] | None:
    """A process that has made its imports, or is about to, and waits to be told what to run."""
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(_isolated(IMPORTS + WAITS), encoding="utf-8", errors="replace", env=environment, **pipes)


def run_python(source: str, argument: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Python `source` in a process of its own, isolated from this one's folder and Python's variables."""
    if _waiting:
        process = _waiting.pop()
        told = json.dumps({"source": source, "argument": str(argument)})
        out, err = process.communicate(told + "\n")
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)
    command = [*_isolated(source), str(argument)]
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", check=False, env=environment
    )


def _isolated(source: str) -> list[str]:
    """The command that runs it.

    What this process has of PYTHONPATH or of the user's packages comes last there: the libraries may lie in them.
    """
    beyond = [path for path in map(os.path.abspath, filter(None, sys.path)) if path != os.getcwd()]
    start = f"import atexit, gc, sys; sys.path += [path for path in {beyond!r} if path not in sys.path]\n"
    start += "atexit.register(gc.freeze)\n"  # as the program: it ends seconds of processor time sooner
    return [sys.executable, "-I", "-X", "utf8", "-W", "ignore", "-c", start + source]
