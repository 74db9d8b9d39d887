"""Forward latency of pruned checkpoints against the dense model, all in one run, taking turns.

    python benchmarks/cost/latency.py runs/quality/lora-0.2-uniform runs/quality/lora-0.5-uniform

Prints a Markdown table: medians, quartile spread, speed-up, FLOP speed-up (linear layers) and their ratio.
"""

import argparse
from pathlib import Path

import torch

from secateur.models.benchmark import forward_flops, forward_latency
from secateur.models.devices import compute_dtype, widened
from secateur.models.loading import load_model
from secateur.models.source import resolve_model
from secateur.system.records import environment, markdown_table

DENSE = "smollm2-135m-instruct"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--seq-lens", nargs="+", type=int, default=[256, 1024])
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args()
    dtype = compute_dtype("auto")
    models = {DENSE: load_model(resolve_model(DENSE))}
    models |= {f.name: load_model(resolve_model(str(f)), trust_remote_code=True) for f in given.folders}
    for model in models.values():
        widened(model, dtype)
    machine = environment()
    print(
        f"{machine['cpu']}, {machine['logical_cores']} cores, torch {machine['versions']['torch']}, "
        f"{torch.get_num_threads()} threads, {dtype}, batch 1, medians of {given.repeats}\n"
    )
    rows = []
    for seq_len in given.seq_lens:
        found = forward_latency(models, batch=1, seq_len=seq_len, repeats=given.repeats, dtype=dtype)
        base_ms, base_flops = found[DENSE].median_ms, forward_flops(models[DENSE], seq_len)
        for name, latency in found.items():
            speedup, flops = base_ms / latency.median_ms, base_flops / forward_flops(models[name], seq_len)
            figures = (latency.median_ms, latency.spread_ms, speedup, flops, speedup / flops)
            rows.append((f"{name}, {seq_len} tokens", *(f"{figure:.2f}" for figure in figures)))
    print(markdown_table(rows, ("model", "ms", "spread ms", "speed-up", "by FLOPs", "ratio")))


if __name__ == "__main__":
    main()
