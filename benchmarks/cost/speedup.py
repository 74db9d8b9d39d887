"""A target in time: asked, predicted and measured speed-up; and quality beside the parameter target, equally fast.

    python benchmarks/cost/speedup.py --json docs/results/speedup.json
    SECATEUR_DATA=/path/to/data python benchmarks/cost/speedup.py --json docs/results/speedup.json --quality

SmolLM2-135M-Instruct. The first part trains nothing, as speed does not depend on what the weights are. Each run
measures a cost table anew, makes the budget of each target by it, cuts the real model to it (by magnitude,
`uniform` and `global`), and times the dense model and all cut ones in turns. Three runs each of prefill and decoding;
about two minutes of one core a run. With one thread (OMP_NUM_THREADS=1) other programs do not count.

The second part trains (`--steps`, 8 x 256 tokens of c4_calib) to `--speedup`, with three seeds, and beside each a run
to the number of parameters that is as fast by the same table, at widths as they come. Perplexity is of the first
102,400 tokens of c4_eval in segments of 1,024. A run whose record is in the file is not run again; `--cells` picks
some.
"""

import argparse
import copy
import json
import os
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from secateur.architecture.discovery import find_units
from secateur.architecture.families import FAMILIES
from secateur.architecture.layout import LayerShape
from secateur.architecture.stock import accepts
from secateur.architecture.units import Units, weight_of
from secateur.config.options import build
from secateur.config.prune import PruneConfig
from secateur.config.sizes import parse_speed_at, parse_speedup
from secateur.models.benchmark import forward_flops
from secateur.models.loading import load_config
from secateur.models.source import resolve_model
from secateur.models.surgery import shrink_
from secateur.plan.speed import shapes_left
from secateur.pruning.allocation import make_budget
from secateur.pruning.budget import Budget, BudgetGoal
from secateur.runs.prune import prune
from secateur.speed import Costs
from secateur.speed.find import measured_table
from secateur.speed.stack import Subject
from secateur.speed.timing import latency_at
from secateur.system.progress import Progress
from secateur.system.records import environment, markdown_table, write_json
from secateur.training.prepare import plan_budget, prepare

MODEL = "smollm2-135m-instruct"
ASKED = {"prefill:1x512": ("1.3x", "1.5x", "2x"), "decode:1x512+128": ("1.3x",)}
RUNS = 3
TURNS = {"prefill": 7, "decode": 3}
ALLOCATIONS = ("uniform", "global")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--quality", action="store_true", help="the second part")
    parser.add_argument("--cells", nargs="*", help="parts of the names of the runs to make; default: all")
    parser.add_argument("--speedup", default="1.5x")
    parser.add_argument("--steps", type=int, default=150)
    given = parser.parse_args()
    record = json.loads(given.json.read_text()) if given.json.is_file() else {"runs": {}, "quality": {}}
    part = record["quality" if given.quality else "runs"]
    names = quality_cells() if given.quality else [f"{at}, run {n}" for n in range(RUNS) for at in ASKED]
    for name in names:
        if name in part or (given.cells and not any(cell in name for cell in given.cells)):
            continue
        part[name] = quality(name, part, given) if given.quality else asked(name)
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


def asked(name: str) -> dict[str, Any]:
    """A run of the first part: of each target what was predicted and measured."""
    at, started = parse_speed_at(name.split(", ")[0]), time.process_time()
    source, family = resolve_model(MODEL), FAMILIES["llama"]
    config, dtype = load_config(source), torch.bfloat16
    table = measured_table(Subject(config, family, torch.device("cpu"), dtype, dtype), at)
    table_seconds = time.process_time() - started
    dense = LlamaForCausalLM.from_pretrained(source.path, dtype=dtype).eval()
    models: dict[str, Any] = {"dense": dense}
    found: dict[str, Any] = {}
    for speedup, allocation in product(ASKED[name.split(", ")[0]], ALLOCATIONS):
        model, key = copy.deepcopy(dense), f"{speedup}, {allocation}"
        units = find_units(model, family)
        costs = Costs(table, at, units)
        share = costs.dense_ms * (1 - 1 / parse_speedup(speedup, "--target-speedup")) / costs.all_of(units)
        goal = BudgetGoal(sparsity=share, allocation=allocation)
        budget = make_budget(units, goal, partial(accepts, config, family), costs)
        keep = budget.select(magnitudes(model, units), {p.name: torch.ones(p.size).bool() for p in units.pools}, 1.0)
        shapes = units.shapes_after(keep)
        shrink_(model, units, keep)
        models[key] = model
        found[key] = {
            "asked": parse_speedup(speedup, "--target-speedup"),
            "predicted": costs.dense_ms / costs.ms(shapes),
            "sparsity": units.removed_params(keep) / units.prunable_params,
            "flop_speedup": flops(dense, units.shapes) / flops(model, shapes),
            "shapes": [list(shape.key()) for shape in (shapes[:1] if allocation == "uniform" else shapes)],
        }
    latency = latency_at(models, at[0], repeats=TURNS[at[0].kind], dtype=dtype)
    for key, each in found.items():
        each["measured"] = latency["dense"].median_ms / latency[key].median_ms
    return {
        "targets": found,
        "ms": {key: [each.median_ms, each.spread_ms] for key, each in latency.items()},
        "dense_ms_by_table": costs.dense_ms,
        "width_step": table.width_step,
        "processor_seconds": {"table": table_seconds, "all": time.process_time() - started},
        "threads": torch.get_num_threads(),
        "table": table.record(),
    }


def magnitudes(model: Any, units: Units) -> dict[str, torch.Tensor]:
    """Pool name -> sum of the squares of each unit's weights."""
    found: dict[str, torch.Tensor] = {}
    for pool in units.pools:
        total = torch.zeros(pool.size)
        for member in pool.members:
            squares = weight_of(model.get_submodule(member.linear)).detach().float().square().sum(1 - member.dim)
            total += squares[member.index].sum(1)
        found[pool.name] = total
    return found


def flops(model: Any, shapes: Sequence[LayerShape]) -> int:
    return forward_flops(model, 512, attention_width=[shape.attention_width for shape in shapes])


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
    """A row for each target and allocation: what the runs predicted and measured, and the farthest off."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, run in part.items():
        for key, found in run["targets"].items():
            rows.setdefault(f"{name.split(':')[0]}, {key}", []).append(found)
    lines = []
    for name, found in rows.items():
        off = [each["measured"] / each["asked"] - 1 for each in found]
        lines.append(
            (name, *(" ".join(f"{each[key]:.3f}" for each in found) for key in ("predicted", "measured")),
             f"{max(off, key=abs):+.1%}", f"{found[0]['flop_speedup']:.3f}",
             " ".join(f"{each['sparsity']:.1%}" for each in found))
        )  # fmt: skip
    return markdown_table(lines, ("asked", "predicted", "measured", "farthest off", "by FLOPs", "parameters gone"))


def quality_table(part: dict[str, Any]) -> str:
    rows = [
        (name, f"{found['measured']:.3f}", f"{found['sparsity']:.1%}", f"{found['perplexity']:.3f}")
        for name, found in part.items()
    ]
    return markdown_table(rows, ("run", "measured speed-up", "gone", "C4"))


if __name__ == "__main__":
    main()
