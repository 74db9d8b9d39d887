"""Kill every command at every stage, run it again, and compare every record of its result; then one long run.

    python benchmarks/reliability/reliability.py runs/reliability      # or: make reliability

A tiny Llama on text of its own, float32, dropout 0.2, a checkpoint every 2 steps, a number of steps that ends within an
epoch. Each way of running is killed (SIGKILL) at random moments and, by replacing functions in the child process only,
inside each stage: loading, scoring, a cut, a checkpoint, its manifest, rotation, the last step, the export, its check,
its records, before and after the result gets its name, while its page is drawn. The same command (with `--resume` for
`prune` and `adapt`) must then end with the files of a run that was never killed: all of them, but for `TIMES` and
paths. The processes are forks of one that has made its imports. `quickstart` runs on the tiny model.

Then 2,000 steps in one process: memory and file handles must be flat after the first 200. About 6 minutes on one core;
prints the tables of docs/results/reliability.md.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from secateur.system.records import markdown_table

STEPS, SAVE_STEPS = 24, 2
SCORED = 4
"""Steps of the one-shot schedule that score and do not train."""
WORDS = "the quick brown fox jumps over the lazy dog while seven wizards box and quarrel about nothing at all. "
COPIES = 12
"""Of the words in the text: 38 blocks, so 19 steps are an epoch and 24 are none."""
TRAINING = [
    "--batch-size", "2", "--accumulation", "2", "--seq-len", "32", "--frequency", "3", "--dropout", "0.2", "--dtype",
    "float32", "--lr", "5e-3", "--steps", str(STEPS), "--save-steps", str(SAVE_STEPS), "--eval-tokens", "256",
]  # fmt: skip
PRUNE = ["prune", "--sparsity", "0.4", *TRAINING]
ADAPT = ["adapt", "--init-rank", "12", "--rank", "4", *TRAINING]
WAYS: dict[str, list[str]] = {
    "prune": [*PRUNE, "--lr-decay", "after-cuts"],
    "prune, cosine": [*PRUNE, "--lr-decay", "cosine"],
    "prune, masking": [*PRUNE, "--no-shrink"],
    "prune, compensated": [*PRUNE, "--criterion", "obs", "--compensate", "lstsq"],
    "prune, one-shot": [*PRUNE, "--schedule", "one-shot", "--prune-start", str(SCORED), "--prune-end", str(SCORED)],
    "prune, two processes": [*PRUNE, "--lr-decay", "cosine"],
    "adapt": [*ADAPT, "--allocation", "global", "--recovery", "newton+compensate"],
    "adapt, merged": [*ADAPT, "--merge"],
    "compare": ["compare", "--criterion", "magnitude,gate", "--sparsity", "0.4", "--baselines", "dense", *TRAINING],
    "quickstart": ["quickstart", "--steps", "12"],
    "export": ["export", "--format", "padded"],
    "eval": ["eval", "--seq-len", "32"],
}
AGAIN = {"prune": "--resume", "adapt": "--resume", "compare": None, "quickstart": None}
"""What the second command has besides; the others replace what may be there."""
KILLED = {
    "while the model loads": [
        ("secateur.runs.prune", "load_base", 1), ("secateur.runs.adapt", "load_base", 1),
        ("secateur.comparison.cell", "load_base", 1), ("secateur.checkpoint.convert", "_read_state", 1),
        ("secateur.evaluation.assess", "load_model", 1),
    ],
    "while a batch is scored": [("secateur.training.one_shot", "causal_lm_loss", 3)],
    "during a cut": [
        ("secateur.models.surgery.slicing", "_slice_linear_", 10), ("secateur.ranks.pruner", "slice_components_", 9),
    ],
    "between a cut and the next save": [("secateur.pruning.cut.Cut", "between", 2)],
    "while a checkpoint is written": [("torch", "save", 8)],
    "before a checkpoint's manifest": [("secateur.training.saving", "seal", 5)],
    "during rotation": [("secateur.training.checkpoints.shutil", "rmtree", 3)],
    "while a line of the record is written": [("secateur.system.records.MetricsLog", "append", 9)],
    "in the last step": [("secateur.training.saving.SavingCallback", "on_step_end", STEPS)],
    "before the last checkpoint's manifest": [("secateur.training.saving", "seal", STEPS // SAVE_STEPS)],
    "during the export": [("secateur.checkpoint.export", "save_model", 1), ("secateur.checkpoint.adapter", "_card", 1)],
    "while the result is checked": [
        ("secateur.checkpoint.export", "verify", 1), ("secateur.checkpoint.adapter", "_read_back", 1),
    ],
    "while its records are written": [
        ("secateur.runs.outcome", "keep_run", 1), ("secateur.runs.adapt", "keep_run", 1),
    ],
    "before the result is renamed": [("secateur.system.output", "lands", 1)],
    "just after the result is renamed": [("pathlib.Path", "rename", 1)],
    "while its page is drawn": [("secateur.report.page", "write_whole", 1)],
    "while a cell is measured": [("secateur.comparison.cell", "perplexity", 2)],
    "before a cell's record": [("secateur.comparison.cell", "_keep_metrics", 2)],
    "after a cell's record": [("secateur.comparison.command", "tidy", 3)],
    "while the table is written": [("secateur.comparison.command", "write_comparison", 2)],
    "while it answers": [("secateur.runs.quickstart", "generate_text", 2)],
    "while it measures": [("secateur.evaluation.assess", "segment_nlls", 1)],
    "before its record is in place": [("secateur.system.records.os", "replace", 1)],
}  # fmt: skip
"""Where -> modules or classes, functions, and which call of them is killed before it has done its work."""
CTRL_C = "Ctrl-C in the last step"
MOMENT = "a random moment"
LAST = [
    "in the last step", "before the last checkpoint's manifest", "while the result is checked",
    "just after the result is renamed", CTRL_C, "while the result is checked, twice",
]  # fmt: skip
TRAINED = [
    "while the model loads", "during a cut", "while a checkpoint is written", "before a checkpoint's manifest",
    "during rotation", "while a line of the record is written", "during the export", "while its records are written",
    "before the result is renamed", "while its page is drawn", MOMENT, MOMENT, *LAST,
]  # fmt: skip
PLAN: dict[str, list[str]] = {
    "prune": ["between a cut and the next save", *TRAINED],
    "prune, cosine": [MOMENT, MOMENT, *LAST],
    "prune, masking": ["between a cut and the next save", "before a checkpoint's manifest", MOMENT, *LAST],
    "prune, compensated": ["during a cut", "while a checkpoint is written", "during the export", MOMENT, *LAST],
    "prune, one-shot": ["while a batch is scored", "before a checkpoint's manifest", MOMENT, *LAST[1:]],
    "prune, two processes": ["before a checkpoint's manifest", "during a cut", "while the result is checked"],
    "adapt": TRAINED,
    "adapt, merged": ["during the export", *LAST],
    "compare": [
        "while the model loads", "during a cut", "while a checkpoint is written", "before a checkpoint's manifest",
        "in the last step", "while a cell is measured", "before a cell's record", "after a cell's record",
        "while the table is written", MOMENT, MOMENT,
    ],
    "quickstart": [
        "while the model loads", "during a cut", "during the export", "while the result is checked",
        "just after the result is renamed", "while its page is drawn", "while it answers", MOMENT,
    ],
    "export": [
        "while the model loads", "during the export", "while the result is checked", "before the result is renamed",
        "just after the result is renamed",
    ],
    "eval": ["while the model loads", "while it measures", "before its record is in place", MOMENT],
}  # fmt: skip
TIMES = frozenset({
    "seconds", "tokens_per_s", "train_seconds", "total_seconds", "step_seconds", "speed", "resume", "overwrite",
})  # fmt: skip
"""What differs between two runs of one command, by its name in their records."""
CLOCKED = rb" ms \||faster|slower"
"""The lines of a model card that are measured by the clock."""
DRAWN = ("report.html", "comparison.svg", "comparison.png", "comparison.md", "comparison.csv")
"""Pages, plots and tables, which are made of the records and have times in them: they must be there."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(WAYS), default=list(WAYS), help="these ways, and no long run")
    parser.add_argument("--child", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.folder = given.folder.resolve()
    if given.child is not None:
        child(given.folder, given.child[0], float(given.child[1]), given.child[2:])
        return
    started = time.monotonic()
    inputs(given.folder)
    draw, rows = random.Random(0), []
    for way in given.only:
        whole, seconds = run_whole(given.folder, way)
        for point in PLAN[way]:
            found = attacked(given.folder, way, point, len(rows), whole, draw.random() * seconds)
            rows.append((str(len(rows) + 1), way, point, *found))
            print(rows[-1], file=sys.stderr, flush=True)
    print(markdown_table(rows, ("", "run", "killed", "went on from", "records"), left=5))
    flat = True
    if given.only == list(WAYS):
        memory, flat = long_run(given.folder)
        print("\n" + markdown_table(memory, ("steps", "resident memory (MB)", "file handles")))
    print(f"\n{(time.monotonic() - started) / 60:.1f} minutes")
    if any(row[-1] != "equal" for row in rows):
        sys.exit("a run that was killed ended with other records")
    if not flat:
        sys.exit("the long run's memory or file handles grow")


def long_run(folder: Path) -> tuple[list[tuple[str, str, str]], bool]:
    """2,000 steps watched from outside; rows of (step, memory, handles), and whether both are flat after step 200."""
    import psutil

    output = folder / f"long-{os.getpid()}"
    arguments = command(folder, "prune", output)
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
    """The tiny model and text, and a layered checkpoint to export."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    from tiny import save_tiny

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save_tiny(folder / "model", layers=3)
    (folder / "text.txt").write_text(WORDS * COPIES, encoding="utf-8")
    (folder / "other.txt").write_text(WORDS[::-1] * COPIES, encoding="utf-8")
    layered = [*command(folder, "prune", folder / "layered"), "--allocation", "global", "--save-steps", "0"]
    done = launched(folder, "", 0.0, layered)
    assert done.returncode == 0, done.stderr


def command(folder: Path, way: str, output: Path) -> list[str]:
    kind = way.partition(",")[0]
    text, model = str(folder / "text.txt"), str(folder / ("layered" if kind == "export" else "model"))
    given = [*WAYS[way], "--output", str(output)]
    given += ["--model", model] if kind != "quickstart" else []
    given += ["--data", text] if kind not in ("quickstart", "export") else []
    return given + (["--evaluate-on", str(folder / "other.txt")] if kind == "compare" else [])


def launched(folder: Path, point: str, moment: float, arguments: list[str], processes: int = 1) -> Any:
    """`secateur ARGUMENTS` in a fork, or in several, attacked at a point; '' for none."""
    from zygote import launch, run

    this = [__file__, str(folder), "--child", point, str(moment), *arguments]
    return run(*this) if processes == 1 else launch(processes, *this)


def processes_of(way: str) -> int:
    return 2 if "two processes" in way else 1


def output_of(place: Path, way: str) -> Path:
    """Under the same name everywhere, as records and pages name it."""
    return place / ("out.json" if way == "eval" else "out")


def run_whole(folder: Path, way: str) -> tuple[dict[str, Any], float]:
    """The records of a run that nobody kills, and its seconds."""
    place = folder / f"whole, {way}"
    place.mkdir()
    output, started = output_of(place, way), time.monotonic()
    done = launched(folder, "", 0.0, command(folder, way, output), processes_of(way))
    assert done.returncode == 0, done.stderr
    return records(output), time.monotonic() - started


def attacked(folder: Path, way: str, point: str, number: int, whole: dict[str, Any], moment: float) -> tuple[str, str]:
    """What the second command went on from, and whether it ended with the records of the run that nobody killed."""
    place = folder / f"killed-{number}"
    place.mkdir()
    output, kind = output_of(place, way), way.partition(",")[0]
    again = AGAIN.get(kind, "--overwrite")
    arguments, more = command(folder, way, output), [again] if again else []
    expected = 128 + signal.SIGINT if point == CTRL_C else -signal.SIGKILL
    name = point.removesuffix(", twice")
    for attempt in range(2 if point.endswith("twice") else 1):
        given = [*arguments, *more] if attempt else arguments
        done = launched(folder, name, moment, given, processes_of(way))
        if done.returncode != expected and not (point == MOMENT and done.returncode == 0):
            return "-", f"was not killed (exit code {done.returncode}): {done.stderr.strip()[-200:]}"
    resumed = launched(folder, "", 0.0, [*arguments, *more], processes_of(way))
    said = resumed.stdout + resumed.stderr
    if resumed.returncode == 2 and kind == "quickstart" and "is not empty" in said:  # its result is complete
        resumed = launched(folder, "", 0.0, [*arguments, "--overwrite"])
    if resumed.returncode:
        return "-", f"the second command failed: {said.strip().splitlines()[-1][:200]}"
    left = [path.name for path in place.iterdir() if path.name.startswith(".") or path.name == "failure.json"]
    if left:
        return "-", f"left {', '.join(sorted(left))} behind"
    steps = re.findall(r"resuming from (checkpoint-\d+)", said)
    origin = steps[0] if steps else "the result" if "the result is complete" in said else "the start"
    found = records(output)
    differing = sorted(name for name in whole.keys() | found.keys() if whole.get(name) != found.get(name))
    return origin, f"DIFFERENT: {', '.join(differing)}" if differing else "equal"


def records(output: Path) -> dict[str, Any]:
    """File -> what it says, without `TIMES` and paths; of weights their SHA-256."""
    found: dict[str, Any] = {}
    for path in sorted(output.rglob("*")) if output.is_dir() else [output]:
        if not path.is_file():
            continue
        name = str(path.relative_to(output.parent))
        text = path.read_bytes().replace(str(output.parent).encode(), b"PLACE")
        if path.name in DRAWN:
            found[name] = "there"
        elif path.suffix == ".json":
            found[name] = _timeless(json.loads(text))
        elif path.suffix == ".md":
            found[name] = [line for line in text.splitlines() if not re.search(CLOCKED, line)]
        elif path.suffix == ".jsonl":
            found[name] = [_timeless(json.loads(line)) for line in text.splitlines()]
        else:
            found[name] = sha256(text).hexdigest()
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in TIMES}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def child(folder: Path, point: str, moment: float, arguments: list[str]) -> None:
    """`secateur` with functions replaced by ones that kill the process at a given call."""
    from secateur.cli import main as secateur

    if arguments[0] == "quickstart":
        on_a_tiny_model(folder)
    if point == MOMENT:
        threading.Timer(moment, os.kill, (os.getpid(), signal.SIGKILL)).start()
    for where, name, call in KILLED.get("in the last step" if point == CTRL_C else point, ()):
        killing(resolve(where), name, call - early(point) * ("one-shot" in arguments), point)
    sys.stdout.flush()
    code = secateur(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a timer may still run


def early(point: str) -> int:
    """How many calls fewer a point of the last step comes after where the first steps only score."""
    return {"before the last checkpoint's manifest": SCORED // SAVE_STEPS}.get(point, SCORED if "last" in point else 0)


def killing(owner: Any, name: str, call: int, point: str) -> None:
    real: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def replaced(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        if name == "rename" and ".secateur-" not in args[0].name:
            return real(*args, **kwargs)
        calls += 1
        if calls == call:
            if point == CTRL_C:
                os.kill(os.getpid(), signal.SIGINT)
                return real(*args, **kwargs)
            half_done(point, real, args)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(owner, name, replaced)


def half_done(point: str, real: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Leave what a kill in the middle of the operation, or just after it, would leave."""
    if point == "while a checkpoint is written":
        Path(args[1]).write_bytes(b"half a file")
    elif point == "during the export" and len(args) > 1:
        (args[1] / "model.safetensors").write_bytes(b"half a file")
    elif point == "during rotation":
        next(path for path in Path(args[0]).iterdir() if path.is_file()).unlink()
    elif point == "while a line of the record is written":
        args[0]._file.write('{"step": 9, "lo')
        args[0].close()
    elif point == "just after the result is renamed":
        real(*args)


def on_a_tiny_model(folder: Path) -> None:
    """What quickstart takes from the cache and its fixed options, on the tiny model and text."""
    from secateur.runs import quickstart

    real = quickstart.quickstart_options

    def options(config: Any) -> Any:
        text = str(folder / "text.txt")
        small = {"model": str(folder / "model"), "data": (text,), "eval_data": text, "eval_seq_len": 32, "seq_len": 32}
        return replace(real(config), **small, eval_tokens=256, batch_size=2, dtype="float32")

    quickstart.quickstart_options = options
    quickstart.embedded_model_dir = lambda progress: folder / "model"


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


if __name__ == "__main__":
    main()
