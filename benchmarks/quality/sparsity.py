"""Heads and channels removed beside zeros by a pattern, half of the layers' weights gone in each.

    SECATEUR_DATA=/path/to/data python benchmarks/quality/sparsity.py
    python benchmarks/quality/sparsity.py --table

SmolLM2-135M-Instruct. What trains does so for 150 steps of 512 tokens of c4_calib, seed 1, at each of the cell's rates;
of these the one with the lowest perplexity on held-out C4 is in the table. What looks at text without training sees
32,768 tokens of c4_calib in sequences of 1,024. Perplexity on the first 102,400 tokens of c4_eval, of WikiText-2 raw
test and of PTB test, in segments of 1,024, as in training_free.py. The forward pass is timed on 1 x 1,024 tokens, in
turn with the dense model. Each cell is a process of its own, whose peak of resident memory is noted.

A run whose record is there is not run again, so a stopped one goes on; `--cells` picks some. The first rate of every
cell comes before the second of any, so a stopped one has a whole table. Some 6 minutes a run that trains on one core
with AMX, 2 for one that does not. What a step takes of memory is in cost.py's memory part, where PST is a case, too.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from training_free import EVALUATION, MODEL, SEQ_LEN, TEXTS, data, measured, slug
from transformers import AutoModelForCausalLM, PreTrainedModel

from secateur.config.formats import FORMATS
from secateur.models.benchmark import forward_latency, parameter_count
from secateur.models.devices import compute_dtype, widened
from secateur.models.loading import load_model
from secateur.models.source import resolve_model
from secateur.system.records import environment, markdown_table, write_json

TRAIN = "--steps 150 --batch-size 2 --seq-len 256 --seed 1"
LOOK = "--seq-len 1024 --batch-size 2 --calibration-tokens 32768 --seed 1"
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
    parser.add_argument("--eval-tokens", type=int, default=EVALUATION)
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    for name, rate in () if given.table else in_order(given.cells):
        command, rates = CELLS[name]
        place = given.output / f"{slug(name)}{f'-lr{rate}' if rate else ''}.json"
        if not place.exists():
            print(f"== {name} {rate}", flush=True)
            write_json(place, run(name, f"{command} {rates[rate]}".split(), given.eval_tokens), result=True)
    print(table([json.loads(path.read_text("utf-8")) for path in sorted(given.output.glob("*.json"))]))


def in_order(names: list[str]) -> list[tuple[str, str]]:
    """Cells and rates: every cell at its first rate, then at its second."""
    runs = [(number, name, rate) for name in names for number, rate in enumerate(CELLS[name][1])]
    return [(name, rate) for _, name, rate in sorted(runs, key=lambda run: run[0])]


def run(name: str, words: list[str], eval_tokens: int) -> dict[str, Any]:
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
            "perplexity": {text: measured(model, file, eval_tokens) for text, file in TEXTS.items()},
        }  # fmt: skip


def speedup(dense: PreTrainedModel, model: PreTrainedModel) -> float:
    dtype = compute_dtype("auto")
    found = forward_latency({"dense": dense, "other": model}, batch=1, seq_len=SEQ_LEN, repeats=7, dtype=dtype)
    return found["dense"].median_ms / found["other"].median_ms


def table(found: list[dict[str, Any]]) -> str:
    """A row for each cell, at the best of its rates on held-out C4."""
    best: dict[str, dict[str, Any]] = {}
    for record in found:
        level = record["perplexity"]["C4"]["perplexity"]
        if record["cell"] not in best or level < best[record["cell"]]["perplexity"]["C4"]["perplexity"]:
            best[record["cell"]] = record
    rows = []
    for name in sorted(best, key=list(CELLS).index):
        record = best[name]
        rate = next((b for a, b in zip(record["command"], record["command"][1:], strict=False) if a == "--lr"), "")
        cells = [f"{record['perplexity'][text]['perplexity']:.1f}" for text in TEXTS]
        peak = f"{record['peak_bytes'] / 2**30:.2f}" if record["peak_bytes"] else ""
        rows.append(
            (name, rate, *cells, f"{record['bytes'] / 1e6:.0f}", f"{record['speedup']:.2f}", peak,
             f"{record['train_seconds'] or 0:.0f}")
        )  # fmt: skip
    header = ("", "rate", *TEXTS, "MB that a stock reader needs", "times as fast", "peak GiB", "training s")
    return markdown_table(rows, header)


if __name__ == "__main__":
    main()
