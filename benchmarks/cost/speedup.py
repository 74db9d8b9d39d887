"""A target in time: asked, predicted and measured speed-up; and quality beside the parameter target, equally fast.

    SECATEUR_DATA=/path/to/data python benchmarks/cost/speedup.py --json docs/results/speedup.json
    SECATEUR_DATA=/path/to/data python benchmarks/cost/speedup.py --json docs/results/speedup.json --quality

SmolLM2-135M-Instruct. The first part prunes without training (`gate`, one cut on 4,096 tokens of c4_calib), once for
each target, allocation and run, and times dense and pruned in turns at the end; each run measures its own cost table
unless `--keep-table`. A minute or two a run on one core, the most of it the table.

The second part trains (`--steps`, 8 x 256 tokens of c4_calib) to `--speedup`, with three seeds, and beside each a run
to the number of parameters that is as fast by the same table, at widths as they come. Perplexity is of the first
102,400 tokens of c4_eval in segments of 1,024. A run whose record is in the file is not run again; `--cells` picks
some.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from secateur.config.options import build
from secateur.config.prune import PruneConfig
from secateur.models.loading import load_config
from secateur.models.source import resolve_model
from secateur.plan.speed import shapes_left
from secateur.pruning.budget import Budget
from secateur.runs.prune import prune
from secateur.speed import Costs
from secateur.system.progress import Progress
from secateur.system.records import environment, markdown_table, write_json
from secateur.training.prepare import plan_budget, prepare

MODEL = "smollm2-135m-instruct"
ASKED = {
    "1.3x prefill": ("1.3x", "prefill:1x512"),
    "1.5x prefill": ("1.5x", "prefill:1x512"),
    "2x prefill": ("2x", "prefill:1x512"),
    "1.3x decode": ("1.3x", "decode:1x512+128"),
}
RUNS = 3
ALLOCATIONS = ("uniform", "global")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--quality", action="store_true", help="the second part")
    parser.add_argument("--cells", nargs="*", help="parts of the names of the runs to make; default: all")
    parser.add_argument("--keep-table", action="store_true", help="one cost table for all runs")
    parser.add_argument("--speedup", default="1.5x")
    parser.add_argument("--steps", type=int, default=150)
    given = parser.parse_args()
    record = json.loads(given.json.read_text()) if given.json.is_file() else {"runs": {}, "quality": {}}
    part = record["quality" if given.quality else "runs"]
    names = (
        quality_cells()
        if given.quality
        else [f"{a}, {b}, {n}" for a in ASKED for b in ALLOCATIONS for n in range(RUNS)]
    )
    for name in names:
        if name in part or (given.cells and not any(cell in name for cell in given.cells)):
            continue
        part[name] = quality(name, part, given) if given.quality else asked(name, given)
        write_json(given.json, record | {"environment": environment()})
        print(name, part[name], flush=True)
    print(quality_table(part) if given.quality else table(part))


def run(options: dict[str, Any]) -> dict[str, Any]:
    """A whole run of `prune`; what result.json holds."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(os.environ["SECATEUR_DATA"])
        every = {
            "model": MODEL,
            "data": (str(data / "c4_calib.jsonl"),),
            "output": f"{folder}/out",
            "criterion": "gate",
        }
        config = build(PruneConfig, every | options)
        job = prepare(config)
        return prune(job, Progress(job.total_steps))


def asked(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """A run of the first part: speed-ups and what is gone."""
    target, allocation, _ = name.split(", ")
    speedup, at = ASKED[target]
    options = {
        "target_speedup": speedup, "speed_at": at, "allocation": allocation, "steps": 0, "calibration_tokens": 4096,
        "batch_size": 4, "seq_len": 256,
    }  # fmt: skip
    before = os.environ.get("SECATEUR_CACHE")
    with tempfile.TemporaryDirectory() as cache:
        if not given.keep_table:  # the embedded model is found by its folder, wherever the cache is
            from secateur.data.embedded import embedded_model_dir

            options["model"] = str(embedded_model_dir())
            os.environ["SECATEUR_CACHE"] = cache
        try:
            result = run(options)
        finally:
            os.environ.pop("SECATEUR_CACHE", None)
            os.environ.update({"SECATEUR_CACHE": before} if before else {})
    return summary(result)


def summary(result: dict[str, Any]) -> dict[str, Any]:
    found = result.get("time", {})
    return {
        "asked": found.get("asked", {}).get("speedup"),
        "predicted": found.get("predicted", {}).get("speedup"),
        "measured": found.get("measured", {}).get("speedup", result["speed"].get("speedup")),
        "measured_ms": {key: value for key, value in found.get("measured", {}).items() if key.endswith("_ms")},
        "dense_ms_by_table": found.get("predicted", {}).get("dense_ms"),
        "sparsity": result["sparsity"]["reached"],
        "of_model": result["sparsity"]["model"],
        "parameters": result["pruned"]["parameters"],
        "flop_speedup": result["speed"]["flop_speedup"],
        "shapes": result["shapes"][:: max(1, len(result["shapes"]) - 1)],
        "perplexity": (result["pruned"]["perplexity"] or {}).get("perplexity"),
        "width_step": found.get("cost_table", {}).get("width_step"),
    }


def quality_cells() -> list[str]:
    return [
        f"{how}, {allocation}, seed {seed}"
        for seed in range(3)
        for allocation in ALLOCATIONS
        for how in ("time", "parameters")
    ]


def quality(name: str, part: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """A run of the second part; that of the parameters follows the one of the time, which says how many."""
    how, allocation, seed = name.split(", ")
    options: dict[str, Any] = {
        "allocation": allocation, "steps": given.steps, "seed": int(seed.split()[1]), "batch_size": 8, "seq_len": 256,
        "eval_data": str(Path(os.environ["SECATEUR_DATA"]) / "c4_eval.jsonl"), "eval_seq_len": 1024,
        "eval_tokens": 102400, "lr": 2e-3, "across_layers": "raw" if allocation == "global" else None,
    }  # fmt: skip
    if how == "time":
        return summary(run(options | {"target_speedup": given.speedup}))
    return summary(run(options | {"sparsity": as_fast(part[f"time, {allocation}, {seed}"], given.speedup)}))


def as_fast(other: dict[str, Any], speedup: str) -> float:
    """The share of the parameters at which layers that all lose alike are as fast, by the table that was kept."""
    every = {"model": MODEL, "data": ("none",), "output": "none"}

    def budget(**options: Any) -> Budget:
        config = build(PruneConfig, every | options)
        return plan_budget(config, load_config(resolve_model(MODEL))).budget

    costs = budget(target_speedup=speedup).account
    assert isinstance(costs, Costs)
    low, high = 0.01, 0.9
    for _ in range(12):
        middle = (low + high) / 2
        faster = costs.dense_ms / costs.ms(shapes_left(budget(sparsity=middle))) > other["predicted"]
        low, high = (low, middle) if faster else (middle, high)
    return round((low + high) / 2, 4)


def table(part: dict[str, Any]) -> str:
    rows = [
        (name, *(f"{found[key]:.3f}" for key in ("asked", "predicted", "measured")),
         f"{found['measured'] / found['asked'] - 1:+.1%}", f"{found['flop_speedup']:.3f}", f"{found['sparsity']:.1%}")
        for name, found in part.items()
    ]  # fmt: skip
    return markdown_table(rows, ("run", "asked", "predicted", "measured", "off", "by FLOPs", "gone"))


def quality_table(part: dict[str, Any]) -> str:
    rows = [
        (name, f"{found['measured']:.3f}", f"{found['sparsity']:.1%}", f"{found['perplexity']:.3f}")
        for name, found in part.items()
    ]
    return markdown_table(rows, ("run", "measured speed-up", "gone", "C4"))


if __name__ == "__main__":
    main()
