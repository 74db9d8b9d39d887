"""Seconds of a step against the model's size and the sequence's length, and whether FLOPs and bytes explain them.

    python benchmarks/cost/scaling.py --json build/scaling.json            # six shapes, five lengths: minutes on a CPU
    python benchmarks/cost/scaling.py --rounds 1 --shapes 2 --lengths 64   # whether it runs

A step of LoRA alone and one with its score take turns on each model, so each pair saw the same machine. The line is
seconds = FLOPs / speed + bytes / bandwidth + a constant, fitted by least squares of the relative error without negative
terms. Bytes are those of a step's peak (`secateur plan`). A step that takes far more than the line says has a term that
neither explains: its row shows by how much.
"""

import argparse
import itertools
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cost_cases import LINEARS, Setup, make_stepper
from cost_models import SHAPES, meta_model

from secateur.architecture.discovery import find_units
from secateur.architecture.families import FAMILIES
from secateur.models.devices import compute_dtype, default_device
from secateur.plan.footprint import training_footprint
from secateur.system.machine.heap import freed_pages_kept
from secateur.system.records import environment, markdown_table, write_json
from secateur.training.flops import Workload, model_sizes, step_flops

HIDDEN_LAYERS = ((128, 2), (192, 4), (256, 6), (384, 8), (512, 10), (640, 12))
LENGTHS = (64, 128, 256, 512, 1024)
TOKENS = 1024
"""Of a step, whatever the length; the sizes are run at 256."""
CASES = ("plain LoRA", "lora")


@dataclass(frozen=True)
class Cell:
    """A shape and a length."""

    hidden: int
    layers: int
    length: int

    @property
    def name(self) -> str:
        return f"{self.layers} x {self.hidden}, {self.length} tokens"

    @property
    def shape(self) -> dict[str, Any]:
        return {"vocab_size": 4096, "hidden_size": self.hidden, "intermediate_size": 8 * self.hidden // 3 // 32 * 32,
                "num_hidden_layers": self.layers, "num_attention_heads": self.hidden // 32,
                "num_key_value_heads": self.hidden // 64, "max_position_embeddings": 2048}  # fmt: skip


def cells(shapes: int, lengths: list[int]) -> list[Cell]:
    """Every shape at 256 tokens, and the third of them at every length."""
    sizes = [Cell(hidden, layers, 256) for hidden, layers in HIDDEN_LAYERS[:shapes]]
    middle = HIDDEN_LAYERS[min(2, shapes - 1)]
    return list(dict.fromkeys([*sizes, *(Cell(*middle, length) for length in lengths)]))


def measured(cell: Cell, rounds: int) -> dict[str, Any]:
    """Median seconds of each case, the FLOPs and bytes of a step."""
    SHAPES[cell.name] = cell.shape
    setup = Setup(cell.name, TOKENS // cell.length, cell.length, 1, "none", False)
    stepper = make_stepper(setup, "plain LoRA")
    seconds: dict[str, list[float]] = {case: [] for case in CASES}
    for turn, case in itertools.product(range(rounds + 1), CASES):
        taken, _ = stepper.turn(case)
        if turn:  # the first warms up
            seconds[case].append(taken)
    empty = meta_model(cell.shape)
    units = find_units(empty, FAMILIES["llama"])
    work = Workload(setup.batch, setup.seq_len, LINEARS)
    dtype, device = compute_dtype("auto"), default_device()
    memory = training_footprint(
        stepper.base.config, linears=list(LINEARS), rank=setup.rank, micro_batch=setup.batch, seq_len=setup.seq_len,
        dtype=dtype, device_type=device.type,
    )  # fmt: skip
    pairs = zip(seconds["lora"], seconds["plain LoRA"], strict=True)
    return {
        "flops": step_flops(model_sizes(empty, units), units, {}, setup.rank, work).total,
        "bytes": memory.total - memory.allocator,
        "seconds": {case: statistics.median(taken) for case, taken in seconds.items()},
        "lora_over_plain": statistics.median(a / b for a, b in pairs),
        "turns": rounds,
    }


def line(rows: dict[str, dict[str, Any]], case: str) -> dict[str, float]:
    """What a FLOP, a byte and a step by itself take: non-negative, the least squares of the relative errors."""
    taken = np.array([row["seconds"][case] for row in rows.values()])
    terms = np.array([[row["flops"], row["bytes"], 1.0] for row in rows.values()])
    best: tuple[float, Any] = (float("inf"), None)
    for size in (1, 2, 3):
        for chosen in itertools.combinations(range(3), size):
            weighed = terms[:, list(chosen)] / taken[:, None]
            found, *_ = np.linalg.lstsq(weighed, np.ones(len(taken)), rcond=None)
            error = float(np.square(weighed @ found - 1).sum())
            if (found >= 0).all() and error < best[0] - 1e-12:
                values = np.zeros(3)
                values[list(chosen)] = found
                best = (error, values)
    return dict(zip(("seconds_per_flop", "seconds_per_byte", "seconds"), map(float, best[1]), strict=True))


def said(fit: dict[str, float], row: dict[str, Any]) -> float:
    """Seconds that the line gives a row."""
    return fit["seconds_per_flop"] * row["flops"] + fit["seconds_per_byte"] * row["bytes"] + fit["seconds"]


def table(rows: dict[str, dict[str, Any]], fits: dict[str, dict[str, float]]) -> str:
    lines = [
        (name, f"{row['flops'] / 1e9:.1f}", f"{row['bytes'] / 1e6:.0f}",
         *(f"{row['seconds'][case] * 1000:.1f} ({row['seconds'][case] / said(fits[case], row):.2f})" for case in CASES),
         f"{row['lora_over_plain']:.3f}")
        for name, row in rows.items()
    ]  # fmt: skip
    head = (
        "layers x width, length",
        "GFLOP",
        "MB",
        *(f"{case}, ms (over the line)" for case in CASES),
        "lora over plain",
    )
    words = [
        f"{case}: {1e-9 / fit['seconds_per_flop'] if fit['seconds_per_flop'] else float('inf'):.1f} GFLOP/s, "
        f"{1e-9 / fit['seconds_per_byte'] if fit['seconds_per_byte'] else float('inf'):.1f} GB/s, and "
        f"{fit['seconds'] * 1000:.1f} ms a step"
        for case, fit in fits.items()
    ]
    return markdown_table(lines, head) + "\n\n" + "\n".join(words)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--shapes", type=int, default=len(HIDDEN_LAYERS), help="so many, the smallest first")
    parser.add_argument("--lengths", type=int, nargs="*", default=list(LENGTHS))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    rows = {}
    with freed_pages_kept():
        for cell in cells(given.shapes, given.lengths):
            rows[cell.name] = measured(cell, given.rounds)
            print(cell.name, rows[cell.name]["seconds"], flush=True)
    fits = {case: line(rows, case) for case in CASES}
    print(table(rows, fits))
    if given.json:
        write_json(given.json, {"rows": rows, "lines": fits, "threads": torch.get_num_threads(),
                                "environment": environment()})  # fmt: skip


if __name__ == "__main__":
    main()
