"""What a fine-tuning step costs with each criterion, and what pruning while training saves.

    python benchmarks/cost/cost.py --parts steps memory --json docs/results/cost.json    # CPU, SmolLM2's shape
    python benchmarks/cost/cost.py --parts memory --load-in 8bit 4bit --checkpointing off --json docs/results/cost.json
    python benchmarks/cost/cost.py --parts schedule ranks profile --json docs/results/cost.json
    python benchmarks/cost/cost.py --parts inference --batch 1 --seq-len 1024 --json docs/results/cost.json
    python benchmarks/cost/cost.py --shape 7b --batch 1 --seq-len 512 --load-in none 8bit 4bit \
        --json docs/results/cost.json
    python benchmarks/cost/cost.py --table docs/results/cost.json

Random weights of real shapes, made on the device: nothing is downloaded, and times and bytes do not depend on values.
Cases take turns, step by step; figures are medians with the range of the middle half. Peak memory is measured as
cost_memory.py says. Rows are added to those that the file has, after each combination of base and checkpointing.
"""

import argparse
import gc
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from cost_cases import (
    CASES,
    WHOLE_RUNS,
    Setup,
    Stepper,
    inference_models,
    make_stepper,
)
from cost_memory import memory_row
from cost_models import SHAPES, meta_model
from cost_profile import profile_step
from cost_tables import tables

from secateur.config.schedule import ScheduleOptions
from secateur.models.benchmark import forward_flops, forward_latency
from secateur.models.devices import compute_dtype, default_device
from secateur.pruning.schedule import make_schedule
from secateur.system.errors import InputError
from secateur.system.machine.heap import freed_pages_kept
from secateur.system.records import environment, write_json
from secateur.training.flops import Workload, model_sizes, run_flops, step_flops

PARTS = ("steps", "memory", "schedule", "ranks", "inference", "profile")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches of --batch sequences each")
    parser.add_argument("--load-in", nargs="+", choices=("none", "8bit", "4bit"), default=["none"])
    parser.add_argument("--checkpointing", nargs="+", choices=("off", "on"), default=["off", "on"])
    cases = (*CASES, *WHOLE_RUNS)
    parser.add_argument("--cases", nargs="+", choices=cases, default=list(cases), help="of the steps and memory parts")
    parser.add_argument(
        "--rounds", type=int, default=15, help="of the steps part (default: 15); a third of them where layers are "
        "checkpointed, and in the ranks part"
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=20, help="of the schedule part")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["steps", "memory"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path, help="run nothing: print the tables of this file")
    given = parser.parse_args(arguments)
    if given.table:
        print(tables(json.loads(given.table.read_text())))
        return
    setup = Setup(given.shape, given.batch, given.seq_len, given.accumulation, given.load_in[0], False)
    key = f"{given.shape} on {device_name()}, {given.accumulation} x {given.batch} x {given.seq_len} tokens"
    known = json.loads(given.json.read_text()) if given.json and given.json.exists() else {}
    for part in given.parts:
        for rows in run_part(part, given, setup):
            add_rows(known, key, part, rows)
            if given.json:
                write_json(given.json, known)
    print(tables({key: known[key]}))


def add_rows(known: dict[str, Any], key: str, part: str, rows: dict[str, Any]) -> None:
    """Rows of a part beside those that it has; the environment is the last ones'."""
    own = environment()
    kept = ("commit", "versions", "python", "cpu", "platform")
    record = known.setdefault(key, {}).setdefault(part, {})
    record["environment"] = {name: own[name] for name in kept if name in own}
    record["rows"] = record.get("rows", {}) | rows


def run_part(part: str, given: argparse.Namespace, setup: Setup) -> Iterator[dict[str, Any]]:
    """Rows of a part, each time as many as are ready together."""
    fewer = max(1, given.rounds // 3)
    if part == "profile":
        yield from profile_rows(setup)
    elif part in ("steps", "memory"):
        for load_in in given.load_in:
            for checkpointing in given.checkpointing:
                own = setup.with_(load_in=load_in, checkpointing=checkpointing == "on")
                rounds = fewer if own.checkpointing else given.rounds
                measured = steps_rows(own, given.cases, rounds) if part == "steps" else memory_rows(own, given.cases)
                yield {f"{name}{own.label}": row for name, row in measured.items()}
    else:
        with freed_pages_kept():
            if part == "schedule":
                yield schedule_rows(setup, given.steps)
            elif part == "ranks":
                yield ranks_rows(setup, fewer)
            else:
                yield inference_rows(setup, given.rounds)


def profile_rows(setup: Setup) -> Iterator[dict[str, Any]]:
    """A step without and with scores; and as it was before the C library kept freed pages."""
    yield {"lora, freed pages handed back": profile_step(make_stepper(setup, "lora"), "lora")}
    with freed_pages_kept():
        yield {name: profile_step(make_stepper(setup, name), name) for name in ("plain LoRA", "lora")}


def steps_rows(setup: Setup, cases: list[str], rounds: int) -> dict[str, Any]:
    """Seconds per step, the cases taking turns on one model; a GPU's peak memory beside them."""
    cases = [name for name in cases if name not in WHOLE_RUNS]
    try:
        shared = make_stepper(setup, "plain LoRA")
    except (ImportError, torch.OutOfMemoryError) as error:
        return {name: {"failed": " ".join(str(error).split())[:200]} for name in cases}
    with freed_pages_kept():
        return turns(shared, cases, rounds)


def turns(shared: Stepper, cases: list[str], rounds: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, int] = {}
    failed: dict[str, str] = {}
    for turn in range(rounds + 1):
        for name in cases:
            if name in failed:
                continue
            try:
                taken, peak = shared.turn(name)
            except torch.OutOfMemoryError:
                failed[name] = "out of memory"
                shared.forget()
                continue
            except InputError as error:  # a case that a quantised base cannot have
                failed[name] = str(error)[:200]
                continue
            if turn:  # the first warms up
                seconds.setdefault(name, []).append(taken)
                peaks[name] = max(peaks.get(name, 0), peak)
    weights = shared.weight_bytes
    tokens = shared.setup.tokens
    del shared
    release()
    rows: dict[str, Any] = {name: {"failed": reason} for name, reason in failed.items()}
    for name, taken_s in seconds.items():
        rows[name] = timed(taken_s) | {"tokens_per_s": tokens / statistics.median(taken_s), "weight_bytes": weights}
        if default_device().type == "cuda":
            rows[name]["peak_bytes"] = peaks[name]
        if "plain LoRA" in seconds:
            pairs = zip(taken_s, seconds["plain LoRA"], strict=True)
            rows[name]["over_plain"] = statistics.median(own / plain for own, plain in pairs)
    return rows


def memory_rows(setup: Setup, cases: list[str]) -> dict[str, Any]:
    """Peak memory of each case in a process of its own; on a GPU `steps` has all but whole runs."""
    if default_device().type == "cuda":
        cases = [name for name in cases if name in WHOLE_RUNS]
    if setup.load_in == "4bit":
        cases = [name for name in cases if name != "shrinking"]  # it can only be masked
    return {name: memory_row(setup, name) for name in cases}


def schedule_rows(setup: Setup, steps: int) -> dict[str, Any]:
    """A whole run to 50 %, masked and shrinking, step by step in turn; with the FLOPs of both."""
    ways = {
        name: make_stepper(setup, "lora", sparsity=0.5, steps=steps, shrink=name == "shrinking")
        for name in ("masked", "shrinking")
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for stepper in ways.values():
        stepper.warm_up()
    for _ in range(steps):
        for name, stepper in ways.items():
            seconds[name].append(stepper.step())
    pruner = ways["shrinking"].pruner
    assert pruner is not None
    sizes = model_sizes(meta_model(SHAPES[setup.shape]), pruner.units)
    gone = {name: int((~keep).sum()) for name, keep in pruner.keep.items()}
    targets = sorted({path.rsplit(".", 1)[-1] for path in pruner.units.linears})
    work = Workload(setup.batch * setup.accumulation, setup.seq_len, targets)
    first, last = (step_flops(sizes, pruner.units, which, setup.rank, work) for which in ({}, gone))
    schedule = make_schedule(ScheduleOptions(frequency=2), steps)
    flops = {name: run_flops(first, last, schedule, steps, shrink=name == "shrinking") for name in ways}
    totals = {name: sum(taken) for name, taken in seconds.items()}
    saved = {"time": 1 - totals["shrinking"] / totals["masked"], "flops": 1 - flops["shrinking"] / flops["masked"]}
    return {
        "steps": steps,
        "sparsity": pruner.sparsity,
        "cuts": [cut.step for cut in pruner.cuts],
        "seconds": {name: [round(value, 4) for value in taken] for name, taken in seconds.items()},
        "total_seconds": totals,
        "flops": flops,
        "saved": saved | {"ratio": saved["time"] / saved["flops"]},
    }


def ranks_rows(setup: Setup, rounds: int) -> dict[str, Any]:
    """Adapters of a high and a low rank in turn, without and with the scores that prune the rank."""
    high, low = (256, 64) if setup.shape != "tiny" else (64, 16)
    setup = setup.of_ranks(high)
    steppers: dict[str, Stepper] = {}
    for rank in (high, low):
        steppers[f"plain LoRA, rank {rank}"] = make_stepper(setup.with_(rank=rank), "plain LoRA")
        steppers[f"gradient, rank {rank}"] = make_stepper(setup.with_(rank=rank), "rank gradient")
    seconds: dict[str, list[float]] = {name: [] for name in steppers}
    for turn in range(rounds + 1):
        for name, stepper in steppers.items():
            taken = stepper.step()
            if turn:
                seconds[name].append(taken)
    rows = {name: timed(taken) | {"state_bytes": steppers[name].state_bytes} for name, taken in seconds.items()}
    pairs = {
        f"rank {low} over rank {high}": (f"plain LoRA, rank {low}", f"plain LoRA, rank {high}"),
        f"scoring at rank {high}": (f"gradient, rank {high}", f"plain LoRA, rank {high}"),
        f"scoring at rank {low}": (f"gradient, rank {low}", f"plain LoRA, rank {low}"),
    }
    rows["ratios"] = {
        words: statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))
        for words, (one, other) in pairs.items()
    }
    return rows


def inference_rows(setup: Setup, rounds: int) -> dict[str, Any]:
    """Prefill of the dense shape, of half of it, and of half with LoRA beside its linears."""
    dtype = compute_dtype("auto")
    models = inference_models(setup)
    taken = forward_latency(models, batch=1, seq_len=setup.seq_len, repeats=4 * rounds, dtype=dtype)
    flops = {name: forward_flops(model, setup.seq_len) for name, model in models.items()}
    dense = taken["dense"].median_ms
    return {
        name: own.to_dict()
        | {
            "flops": flops[name],
            "time_over_dense": own.median_ms / dense,
            "flops_over_dense": flops[name] / flops["dense"],
        }
        for name, own in taken.items()
    }


def timed(seconds: list[float]) -> dict[str, Any]:
    quartiles = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    return {"seconds": statistics.median(seconds), "spread": quartiles[2] - quartiles[0], "turns": len(seconds)}


def release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return f"{torch.get_num_threads()} CPU cores"


if __name__ == "__main__":
    main()
