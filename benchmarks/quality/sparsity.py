"""Heads and channels removed beside zeros by a pattern, half of the layers' weights gone in each.

    SECATEUR_DATA=/path/to/data python benchmarks/quality/sparsity.py --seeds 1 2 3
    python benchmarks/quality/sparsity.py --table

SmolLM2-135M-Instruct. What trains does so for 150 steps of 512 tokens of c4_calib, at each of the cell's rates (or at
`--rates`) with each seed; the rate with the lowest perplexity on held-out C4 over its seeds is in the table. What looks
at text without training sees 32,768 tokens of c4_calib in sequences of 1,024. Perplexity is on the first 102,400 tokens
of c4_eval and, in as many or as `--other-tokens` says, of WikiText-2 raw test and of PTB test, in segments of 1,024, as
in training_free.py. The forward pass is timed on 1 x 1,024 tokens, in turn with the dense model. Each cell is a process
of its own, whose peak of resident memory is noted.

A run whose record is there is not run again, so a stopped one goes on; `--cells` picks some. Every cell comes at its
first rate before any at its second, and with the first seed before the next, so a stopped one has a whole table. Some 6
minutes a run that trains on one core with AMX, 2 for one that does not. What a step takes of memory is in cost.py's
memory part, where PST is a case, too.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

from training_free import DECIDES, EVALUATION, MODEL, SEQ_LEN, TEXTS, data, measured, slug
from transformers import AutoModelForCausalLM, PreTrainedModel

from secateur.config.formats import FORMATS
from secateur.models.benchmark import forward_latency, parameter_count
from secateur.models.devices import compute_dtype, widened
from secateur.models.loading import load_model
from secateur.models.source import resolve_model
from secateur.system.records import environment, markdown_table, write_json

TRAIN = "--steps 150 --batch-size 2 --seq-len 256"
LOOK = "--seq-len 1024 --batch-size 2 --calibration-tokens 32768"
BOTH = f"{TRAIN} --calibration-tokens 32768"
UNITS = f"prune --sparsity 0.5 --frequency 5 {TRAIN}"
RATES = {"1e-3": "--lr 1e-3", "2e-3": "--lr 2e-3"}
HIGH = {"2e-3": "--lr 2e-3", "4e-3": "--lr 4e-3"}
ONE = {"": ""}
CELLS: dict[str, tuple[str, dict[str, str]]] = {
    # name: the command without model, data and output, and its rates
    "dense": ("", ONE),
    "dense + LoRA": (f"adapt --init-rank 8 --rank 8 --alpha 16 --merge {TRAIN}", RATES),
    "LoRAPrune": (f"{UNITS} --criterion lora --allocation protected", HIGH),
    "LLM-Pruner": (f"{UNITS} --recipe llm-pruner", HIGH),
    "Compresso": (
        f"prune --sparsity 0.5 {TRAIN} --criterion compresso --allocation global --targets q_proj v_proj --alpha 8 "
        "--prune-start 0 --prune-end 0.7 --frequency 100000", HIGH,
    ),
    "Compresso, LoRA on all": (
        f"prune --sparsity 0.5 {TRAIN} --criterion compresso --allocation global --prune-start 0 --prune-end 0.7 "
        "--frequency 100000", HIGH,
    ),
    "best": (f"prune --sparsity 0.5 --recipe best {TRAIN}", HIGH),
    "training-free": (f"prune --steps 0 --sparsity 0.5 {LOOK}", ONE),
    "magnitude 2:4": (f"sparsify --method magnitude --pattern 2:4 {LOOK}", ONE),
    "Wanda 2:4": (f"sparsify --method wanda --pattern 2:4 {LOOK}", ONE),
    "Wanda 4:8": (f"sparsify --method wanda --pattern 4:8 {LOOK}", ONE),
    "Wanda 50 %": (f"sparsify --method wanda --pattern 0.5 {LOOK}", ONE),
    "SparseGPT 2:4": (f"sparsify --method sparsegpt --pattern 2:4 {LOOK}", ONE),
    "SparseGPT 4:8": (f"sparsify --method sparsegpt --pattern 4:8 {LOOK}", ONE),
    "SparseGPT 50 %": (f"sparsify --method sparsegpt --pattern 0.5 {LOOK}", ONE),
    "Wanda 2:4 + LoRA, pattern kept": (f"sparsify --method wanda --pattern 2:4 {BOTH}", RATES),
    "SparseGPT 2:4 + LoRA, pattern kept": (f"sparsify --method sparsegpt --pattern 2:4 {BOTH}", RATES),
    "SparseGPT 2:4 + LoRA, pattern lost": (
        f"sparsify --method sparsegpt --pattern 2:4 --no-keep-pattern {BOTH}", RATES,
    ),
    "SparseGPT 50 % + LoRA, pattern kept": (f"sparsify --method sparsegpt --pattern 0.5 {BOTH}", RATES),
    "Wanda 2:4 + LoRA, masked": (f"sparsify --method wanda --pattern 2:4 --mask-lora {BOTH}", RATES),
    "SparseGPT 2:4 + LoRA, masked": (f"sparsify --method sparsegpt --pattern 2:4 --mask-lora {BOTH}", RATES),
    "PST 50 %": (f"sparsify --method pst --pattern 0.5 {TRAIN}", RATES),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/results/sparsity"))
    parser.add_argument("--cells", nargs="*", default=list(CELLS), metavar="NAME")
    parser.add_argument("--seeds", nargs="*", type=int, default=[1])
    parser.add_argument("--rates", nargs="*", help="only runs at these; default: all of a cell")
    parser.add_argument("--eval-tokens", type=int, default=EVALUATION, help="of held-out C4")
    parser.add_argument("--other-tokens", type=int, help="of the other texts; default: as many")
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    tokens = dict.fromkeys(TEXTS, given.other_tokens or given.eval_tokens) | {DECIDES: given.eval_tokens}
    for rate, seed, name in () if given.table else in_order(given.cells, given.seeds):
        command, rates = CELLS[name]
        place = given.output / f"{slug(name)}{f'-lr{rate}' if rate else ''}-seed{seed}.json"
        if not place.exists() and rate in (given.rates or rates):
            print(f"== {name} {rate} seed {seed}", flush=True)
            seeded = f"--seed {seed}" if command else ""
            write_json(place, run(name, f"{command} {rates[rate]} {seeded}".split(), tokens), result=True)
    print(table([json.loads(path.read_text("utf-8")) for path in sorted(given.output.glob("*.json"))]))


def in_order(names: list[str], seeds: list[int]) -> list[tuple[str, int, str]]:
    """Rate, seed and cell of each run: every cell at its first rate, then at its second; seed by seed."""
    runs = [(n, s, name, rate) for name in names for n, rate in enumerate(CELLS[name][1]) for s in seeds]
    return [(rate, seed, name) for _, seed, name, rate in sorted(runs, key=lambda run: run[:2])]


def run(name: str, words: list[str], tokens: Mapping[str, int]) -> dict[str, Any]:
    """Run a command, measure what it wrote; what the record of a run holds."""
    started, peak, result = time.perf_counter(), None, dict[str, Any]()
    with tempfile.TemporaryDirectory() as folder:
        dense = widened(load_model(resolve_model(MODEL)), compute_dtype("auto"))
        model, size = dense, 2 * parameter_count(dense)
        if words:
            out = Path(folder) / "out"
            command = [sys.executable, "-m", "secateur", *words, "--model", MODEL]
            child = subprocess.Popen([*command, "--data", str(data("c4_calib.jsonl")), "--output", str(out)])
            _, status, usage = os.wait4(child.pid, 0)
            if status:
                raise SystemExit(f"{name}: it failed ({os.waitstatus_to_exitcode(status)})")
            peak = usage.ru_maxrss * 1024
            result = json.loads((out / "result.json").read_text("utf-8"))
            size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
            trust = FORMATS[result["export"]["format"]].trust if result["export"]["format"] in FORMATS else False
            loaded = AutoModelForCausalLM.from_pretrained(out, dtype="auto", trust_remote_code=trust)
            model = widened(loaded, compute_dtype("auto"))
        seconds = time.perf_counter() - started
        return {
            "cell": name, "command": words, "parameters": parameter_count(model), "bytes": size,
            "zeros": result.get("zeros"), "merge_kl": result.get("export", {}).get("merge_kl"),
            "train_seconds": result.get("train_seconds"), "seconds": seconds, "peak_bytes": peak,
            "speedup": speedup(dense, model), "environment": environment(),
            "perplexity": {text: measured(model, file, tokens[text]) for text, file in TEXTS.items()},
        }  # fmt: skip


def speedup(dense: PreTrainedModel, model: PreTrainedModel) -> float:
    dtype = compute_dtype("auto")
    found = forward_latency({"dense": dense, "other": model}, batch=1, seq_len=SEQ_LEN, repeats=7, dtype=dtype)
    return found["dense"].median_ms / found["other"].median_ms


def table(found: list[dict[str, Any]]) -> str:
    """A row for each cell, at the best of its rates on held-out C4: geometric means over the seeds."""
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for record in found:
        runs.setdefault(record["cell"], {}).setdefault(rate_of(record["command"]), []).append(record)
    rows = []
    for name in sorted(runs, key=list(CELLS).index):
        rate, best = min(runs[name].items(), key=lambda each: geometric_mean(levels(each[1], DECIDES)))
        peaks = [record["peak_bytes"] for record in best if record["peak_bytes"]]
        rows.append(
            (name, rate, str(len(best)), *(f"{geometric_mean(levels(best, text)):.1f}" for text in TEXTS),
             " ".join(f"{level:.1f}" for level in levels(best, DECIDES)), f"{best[0]['bytes'] / 1e6:.0f}",
             f"{median(record['speedup'] for record in best):.2f}", f"{max(peaks) / 2**30:.2f}" if peaks else "",
             f"{median(record['train_seconds'] or 0 for record in best):.0f}")
        )  # fmt: skip
    timed = "times as fast", "peak GiB", "training s"
    header = ("", "rate", "runs", *TEXTS, f"{DECIDES}, each", "MB that a stock reader needs", *timed)
    return markdown_table(rows, header)


def levels(found: list[dict[str, Any]], text: str) -> list[float]:
    return [record["perplexity"][text]["perplexity"] for record in found]


def rate_of(words: list[str]) -> str:
    return words[words.index("--lr") + 1] if "--lr" in words else ""


if __name__ == "__main__":
    main()
