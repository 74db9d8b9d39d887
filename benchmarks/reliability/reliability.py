"""Kill a run with SIGKILL at 25 points, resume it, and compare the final weights bit for bit; then one long run.

    python benchmarks/reliability/reliability.py runs/reliability      # or: make reliability

A tiny Llama on text of its own, float32, dropout 0.2, checkpoints every 2 steps. Each way of running (shrinking,
masking, compensated, adapt) is killed at random moments and, by replacing functions in the child process only, inside
the dangerous ones: during a cut, between a cut and the next save, while a checkpoint is written, before its manifest,
during rotation, during the export. Then 2,000 steps in one process: memory and file handles must be flat
after the first 200. About 10 minutes on 2 cores; prints the tables of docs/results/reliability.md.
"""

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from secateur.system.records import markdown_table

STEPS = 40
WORDS = "the quick brown fox jumps over the lazy dog while seven wizards box and quarrel about nothing at all. "
WAYS: dict[str, list[str]] = {
    "shrinking": [],
    "masking": ["--no-shrink"],
    "compensated": ["--criterion", "obs", "--compensate", "lstsq"],
    "adapt": ["--allocation", "global", "--recovery", "newton+compensate"],
}
POINTS = {
    "during a cut": ("secateur.models.surgery", "_slice_linear_", 40),
    "during a cut of ranks": ("secateur.ranks.pruner", "slice_components_", 30),
    "between a cut and the next save": ("secateur.pruning.cut.Cut", "between", 4),
    "while a checkpoint is written": ("torch", "save", 8),
    "before a checkpoint's manifest": ("secateur.training.saving", "seal", 5),
    "during rotation": ("secateur.training.checkpoints.shutil", "rmtree", 3),
    "during the export": ("secateur.checkpoint.export", "save_model", 1),
    "while the export is checked": ("secateur.checkpoint.export", "verify", 1),
}
"""Where -> module or class, function, and which call of it is killed just before it returns its work."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time, each on one thread")
    parser.add_argument("--child", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        child(given.child[0], given.child[1:])
        return
    inputs(given.folder)
    plan = [("shrinking", point) for point in POINTS if "ranks" not in point]
    plan += [("masking", point) for point in ("between a cut and the next save", "before a checkpoint's manifest")]
    plan += [("compensated", point) for point in ("during a cut", "while a checkpoint is written", "during the export")]
    plan += [(way, "a random moment") for way in ("shrinking", "shrinking", "shrinking", "masking", "masking")]
    plan += [("compensated", "a random moment")] * 3
    for point in ("during a cut of ranks", "while a checkpoint is written", "during rotation"):
        plan.append(("adapt", point))
    plan += [("adapt", "a random moment")] * 2
    draw = random.Random(0)
    moments = [draw.random() * 1.5 for _ in plan]  # training takes about that long
    with ThreadPoolExecutor(given.jobs) as pool:
        whole = pool.map(lambda way: weights(run_whole(given.folder, way)), WAYS)
        reference = dict(zip(WAYS, whole, strict=True))

        def attacked(number: int) -> tuple[str, ...]:
            way, point = plan[number - 1]
            found = killed_and_resumed(given.folder, way, point, number, reference, moments[number - 1])
            print(row := (str(number), way, point, *found), file=sys.stderr, flush=True)
            return row

        rows = list(pool.map(attacked, range(1, len(plan) + 1)))
    print(markdown_table(rows, ("", "run", "killed", "resumed after step", "final weights")))
    print()
    memory, flat = long_run(given.folder)
    print(markdown_table(memory, ("steps", "resident memory (MB)", "file handles")))
    if any(row[-1] != "equal" for row in rows):
        sys.exit("a resumed run differs")
    if not flat:
        sys.exit("the long run's memory or file handles grow")


def long_run(folder: Path) -> tuple[list[tuple[str, str, str]], bool]:
    """2,000 steps watched from outside; rows of (step, memory, handles), and whether both are flat after step 200."""
    import psutil

    output = folder / f"long-{os.getpid()}"
    arguments = command(folder, "shrinking", output)
    for option, value in {"--steps": "2000", "--save-steps": "100", "--dropout": "0"}.items():
        arguments[arguments.index(option) + 1] = value
    metrics = output.with_name(output.name + ".run") / "metrics.jsonl"
    process = psutil.Popen(
        [sys.executable, "-m", "secateur", *arguments],
        env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    seen: dict[int, tuple[float, int]] = {}
    while process.poll() is None:
        step = len(metrics.read_bytes().splitlines()) if metrics.exists() else 0
        if step and step // 200 not in seen:
            seen[step // 200] = (process.memory_info().rss / 1e6, process.num_fds())
        time.sleep(0.02)
    if process.returncode or len(seen) < 10:
        return [("2000", f"failed (exit code {process.returncode})", "-")], False
    rows = [(f"{200 * part:,}", f"{memory:.0f}", str(handles)) for part, (memory, handles) in sorted(seen.items())]
    settled = [value for part, value in sorted(seen.items()) if part >= 1]
    flat = max(memory for memory, _ in settled) <= 1.02 * settled[0][0]
    return rows, flat and settled[-1][1] <= settled[0][1]  # a file being written is open for a moment


def inputs(folder: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    from tiny import save_tiny

    if not (folder / "model").exists():
        save_tiny(folder / "model", layers=3)
    (folder / "text.txt").write_text(WORDS * 60, encoding="utf-8")


def command(folder: Path, way: str, output: Path) -> list[str]:
    kind = ["adapt", "--init-rank", "12", "--rank", "4"] if way == "adapt" else ["prune", "--sparsity", "0.4"]
    return [
        *kind, "--model", str(folder / "model"), "--data", str(folder / "text.txt"), "--output", str(output),
        "--steps", str(STEPS), "--batch-size", "2", "--accumulation", "2", "--seq-len", "32",
        "--frequency", "3", "--dropout", "0.2", "--dtype", "float32", "--save-steps", "2", "--lr", "5e-3", *WAYS[way],
    ]  # fmt: skip


def run_whole(folder: Path, way: str) -> Path:
    output = folder / f"whole-{way}"
    if not (output / "result.json").exists():
        subprocess.run([sys.executable, "-m", "secateur", *command(folder, way, output)], check=True, env=environment())
    return output


def killed_and_resumed(
    folder: Path, way: str, point: str, number: int, reference: dict[str, str], moment: float
) -> tuple[str, str]:
    """The step that the resumed run went on from, and whether it ended with the uninterrupted run's weights."""
    output = folder / f"killed-{number}"
    arguments = command(folder, way, output)
    this = [sys.executable, __file__, str(folder), "--child", point, *arguments]
    process = subprocess.Popen(this, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if point == "a random moment":
        while process.poll() is None and not any(
            output.with_name(output.name + ".run").glob("checkpoint-*/*manifest*")
        ):
            time.sleep(0.01)
        time.sleep(moment)
        process.kill()
    process.wait()
    if process.returncode != -signal.SIGKILL:
        return "-", f"was not killed (exit code {process.returncode})"
    resumed = subprocess.run(
        [sys.executable, "-m", "secateur", *arguments, "--resume"], env=environment(), capture_output=True, text=True
    )
    if resumed.returncode:
        return "-", f"resume failed: {resumed.stderr.strip().splitlines()[-1][:200]}"
    words = [line for line in resumed.stderr.splitlines() if "resuming from checkpoint-" in line]
    if not words:
        return "0", "resumed from nothing"
    if left := sorted(path.name for path in output.parent.glob(f".{output.name}.*")):
        return "-", f"left {', '.join(left)} behind"
    return words[0].rpartition("-")[2].strip(), "equal" if weights(output) == reference[way] else "DIFFERENT"


def child(point: str, arguments: list[str]) -> None:
    """`secateur` with one function replaced by one that kills the process at a given call."""
    from secateur.cli import main as secateur

    if point in POINTS:
        where, name, call = POINTS[point]
        owner = resolve(where)
        real: Callable[..., Any] = getattr(owner, name)
        calls = 0

        def killing(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                if point in ("while a checkpoint is written", "during rotation", "during the export"):
                    half_done(name, args)
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        setattr(owner, name, killing)
    sys.exit(secateur(arguments))


def half_done(name: str, args: tuple[Any, ...]) -> None:
    """Leave what a kill in the middle of the operation would leave."""
    if name == "save":
        Path(args[1]).write_bytes(b"half a file")
    elif name == "save_model":
        (args[1] / "model.safetensors").write_bytes(b"half a file")
    else:
        next(path for path in Path(args[0]).iterdir() if path.is_file()).unlink()


def resolve(where: str) -> Any:
    import importlib

    parts = where.split(".")
    for split in range(len(parts), 0, -1):
        try:
            owner: Any = importlib.import_module(".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        for part in parts[split:]:
            owner = getattr(owner, part)
        return owner
    raise LookupError(where)


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def weights(output: Path) -> str:
    (file,) = output.glob("*model.safetensors")
    return hashlib.sha256(file.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
