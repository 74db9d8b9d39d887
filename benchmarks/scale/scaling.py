"""What `secateur plan` says of models of 65B to 405B parameters on devices of 80 GB, from their shapes alone.

    python benchmarks/scale/scaling.py docs/results/scaling.json

Each row is one command, which the record keeps. Speeds are given, not measured: 312 TFLOP/s (an A100's data sheet,
dense bfloat16), and 50 GB/s between devices (a port of 400 Gbit/s; within a machine NVLink has several times as much).
"""

import argparse
import json
import tempfile
from pathlib import Path

from transformers import LlamaConfig

from secateur.cli import main as secateur

SHAPES = {
    "65B": dict(hidden_size=8192, intermediate_size=22016, num_hidden_layers=80, num_attention_heads=64,
                num_key_value_heads=64, vocab_size=32000, max_position_embeddings=2048),
    "70B": dict(hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
                num_key_value_heads=8, vocab_size=128256, max_position_embeddings=8192),
    "405B": dict(hidden_size=16384, intermediate_size=53248, num_hidden_layers=126, num_attention_heads=128,
                 num_key_value_heads=8, vocab_size=128256, max_position_embeddings=8192),
}  # fmt: skip
"""LLaMA-65B, Llama-3-70B, Llama-3.1-405B."""
ROWS = [("65B", 8), ("70B", 8), ("405B", 8), ("405B", 16)]
OPTIONS = (
    "--sparsity 0.5 --rank 8 --batch-size 1 --seq-len 2048 --gradient-checkpointing --dtype bfloat16 --steps 1000 "
    "--device-memory 80GB --device-tflops 312 --link-bandwidth 50GB"
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    output = parser.parse_args().output
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, devices in ROWS:
            model, record = Path(folder) / name, Path(folder) / "plan.json"
            LlamaConfig(dtype="bfloat16", **SHAPES[name]).save_pretrained(model)
            options = f"{OPTIONS} --devices {devices}"
            code = secateur(["plan", "--model", str(model), *options.split(), "--json", str(record)])
            assert code == 0, code
            plan = json.loads(record.read_text())
            command = f"secateur plan --model {name} {options}"
            kept = ("before", "after", "sparsity", "memory", "devices", "time")
            rows.append({"command": command, "shape": SHAPES[name], **{key: plan[key] for key in kept}})
    output.write_text(json.dumps(rows, indent=1) + "\n")
    print("| model | devices | replicated | sharded: weights + gathered + rest = total | fits in 80 GB | "
          "sent, a step | computing + traffic, a step | 1,000 steps |")  # fmt: skip
    print("|---|---:|---:|---|---|---:|---:|---:|")
    for (name, count), row in zip(ROWS, rows, strict=True):
        devices, sharded = row["devices"], row["devices"]["sharded"]
        rest = sharded["total"] - sharded["weights"] - sharded["gathered"]
        sent = sum(devices["sent_bytes_per_step"]["sharded"].values())
        computing, both = row["time"]["seconds"]["first_step"], devices["seconds"]["sharded"]
        gigabytes = " + ".join(f"{part / 1e9:.1f}" for part in (sharded["weights"], sharded["gathered"], rest))
        print(f"| {name} | {count} | {devices['replicated']['total'] / 1e9:.0f} GB | "
              f"{gigabytes} = {sharded['total'] / 1e9:.1f} GB | {'yes' if sharded['fits'] else 'no'} | "
              f"{sent / 1e9:.0f} GB | {computing:.1f} + {both['first_step'] - computing:.1f} s | "
              f"{both['run'] / 3600:.1f} h |")  # fmt: skip


if __name__ == "__main__":
    main()
