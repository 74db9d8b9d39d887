"""Peak memory of cost.py's cases, each in a process of its own.

On a CPU every tensor has pages of its own (`MALLOC_MMAP_THRESHOLD_`), so the resident peak is what tensors hold,
without the C library's heap; on a GPU it is the device's own count.

    python benchmarks/cost/cost_memory.py shrinking '{"shape": "tiny", ...}'    # what cost.py starts for each case
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from cost_cases import WHOLE_RUNS, Setup, Stepper, make_stepper

from secateur.models.memory import peak_bytes, reset_peak

STEPS = 10
"""Of a whole run to 50 %: the sizes that it goes through are those of a longer one."""


def memory_row(setup: Setup, case: str) -> dict[str, Any]:
    """What `own_peaks` of a fresh process says."""
    command = [sys.executable, "-W", "ignore", __file__, case, json.dumps(vars(setup))]
    apart = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    done = subprocess.run(command, capture_output=True, text=True, env=apart)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1][:200]}
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def own_peaks(setup: Setup, case: str) -> dict[str, int]:
    """Most bytes over what the process had: of two steps of a case, or of a whole run to 50 % and of its cuts."""
    before = start_peak()
    if case not in WHOLE_RUNS:
        stepper = make_stepper(setup, case)
        for _ in range(2):
            stepper.turn(case)
        return {"peak_bytes": peak() - before, "weight_bytes": stepper.weight_bytes}
    stepper = make_stepper(setup, "lora", steps=STEPS, shrink=case == "shrinking")
    weights = stepper.weight_bytes
    start_peak()
    steps: list[int] = []
    cuts: list[int] = []
    stepper.around_pruner_step = lambda: each_apart(stepper, steps, cuts, before)
    for _ in range(STEPS):
        stepper.step()
    steps.append(peak() - before)
    return {
        "peak_bytes": max(*steps, *cuts), "weight_bytes": weights,
        "peak_of_steps_bytes": max(steps), "peak_of_cuts_bytes": max(cuts),
    }  # fmt: skip


@contextmanager
def each_apart(stepper: Stepper, steps: list[int], cuts: list[int], before: int) -> Iterator[None]:
    """Around `pruner.step`: the peak until now is a training step's, the next one a cut's where there was one."""
    assert stepper.pruner is not None
    done = len(stepper.pruner.cuts)
    steps.append(peak() - before)
    start_peak()
    yield
    if len(stepper.pruner.cuts) > done:
        cuts.append(peak() - before)
    start_peak()


def start_peak() -> int:
    """A new peak; -> bytes in use now."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    return reset_peak()


def peak() -> int:
    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else peak_bytes()


if __name__ == "__main__":
    print(json.dumps(own_peaks(Setup(**json.loads(sys.argv[2])), sys.argv[1])))
