"""What a step with everything on costs over plain LoRA, and a cut that refits in sequence over a step.

    SECATEUR_DATA=/path/to/data python benchmarks/cost/bounds.py --json docs/results/bounds.json \
        --with compensate=sequential allocation=global train_also=norms,gains,biases

SmolLM2-135M-Instruct on C4, the options of the recipe `best` and those given. Whole runs take turns in one process, a
run of plain LoRA and one that prunes; their steps' seconds are those of metrics.jsonl, which has a cut in its step. The
first steps of a run warm up and are left out. A ratio is that of the medians over all turns, beside the range that the
turns' own ratios have. Bounds: 1.15 for a step, 5 steps for a cut (a search, once a run, is in the first cut's figure
alone). Turns are added to those that the file has.
"""

import argparse
import json
import os
import statistics
import tempfile
from io import StringIO
from pathlib import Path
from typing import Any

from secateur.config.options import build
from secateur.config.prune import PruneConfig
from secateur.models.devices import compute_dtype
from secateur.runs.baseline import train_dense
from secateur.runs.prune import fine_tune_and_prune
from secateur.system.progress import Progress
from secateur.system.records import environment, write_json
from secateur.training.finetune import load_base
from secateur.training.prepare import prepare

WARM_UP = 2
PLAIN, EVERYTHING = "plain LoRA", "everything"
BEST: dict[str, Any] = {"criterion": "gate", "across_layers": "raw", "floor": 0.3, "lr": 2e-3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--with", nargs="*", default=["compensate=sequential", "allocation=global"], dest="more")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="of a run; its cuts come in the last two")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=256)
    given = parser.parse_args()
    more: dict[str, Any] = dict(option.split("=", 1) for option in given.more)
    setup = f"{given.batch} x {given.seq_len} tokens, {' '.join(given.more)}"
    record = json.loads(given.json.read_text()) if given.json.is_file() else {}
    rows = record.setdefault(setup, {"turns": []})
    for _ in range(given.turns):
        rows["turns"].append({name: run(name, more, given) for name in (PLAIN, EVERYTHING)})
        rows |= summary(rows["turns"])
        write_json(given.json, record | {"environment": environment()})
        print({name: value for name, value in rows.items() if name != "turns"}, flush=True)


def run(name: str, more: dict[str, Any], given: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of a run's steps without a cut, and of those with one."""
    first = given.steps - 2
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "model": "smollm2-135m-instruct", "data": (f"{os.environ['SECATEUR_DATA']}/c4_calib.jsonl",),
            "output": f"{folder}/out", "sparsity": 0.5, "steps": given.steps, "batch_size": given.batch,
            "seq_len": given.seq_len, "prune_start": first, "prune_end": given.steps, "frequency": 1,
        }  # fmt: skip
        job = prepare(build(PruneConfig, options | (BEST | more if name == EVERYTHING else {"lr": BEST["lr"]})))
        dtype, progress = compute_dtype("auto"), Progress(given.steps, stream=StringIO())
        if name == PLAIN:
            train_dense(job, dtype, progress)
        else:
            fine_tune_and_prune(load_base(job, dtype), job, dtype, progress)[1].close()
        lines = [json.loads(line) for line in (job.work / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = {line["step"]: line["seconds"] for line in lines}
    cuts = [step for step in seconds if step > first] if name == EVERYTHING else []
    steps = [step for step in seconds if step > WARM_UP and step not in cuts]
    return {"steps": [seconds[step] for step in steps], "cuts": [seconds[step] for step in cuts]}


def summary(turns: list[dict[str, dict[str, list[float]]]]) -> dict[str, Any]:
    """The two ratios that are bounded, of all turns and the range of each turn's own."""

    def ratios(some: list[dict[str, dict[str, list[float]]]]) -> tuple[float, float]:
        plain, own, cuts = (
            statistics.median(second for turn in some for second in turn[name][kind])
            for name, kind in ((PLAIN, "steps"), (EVERYTHING, "steps"), (EVERYTHING, "cuts"))
        )
        return own / plain, (cuts - own) / own

    step, cut = ratios(turns)
    each = [ratios([turn]) for turn in turns]
    return {
        "step_over_plain": step,
        "step_range": [min(pair[0] for pair in each), max(pair[0] for pair in each)],
        "cut_in_steps": cut,
        "cut_range": [min(pair[1] for pair in each), max(pair[1] for pair in each)],
    }


if __name__ == "__main__":
    main()
