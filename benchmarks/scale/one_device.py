"""FSDP2 on one device: a base that is sharded over a single process trains and is cut like one that is whole.

    python benchmarks/scale/one_device.py --json build/one_device.json    # NCCL on a GPU, Gloo on the CPU

A random Llama in float32. Both runs see the same tokens: the same units must go, and losses agree to round-off.
"""

import argparse
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from secateur import Pruner
from secateur.models.devices import default_device
from secateur.parallel.sharding import shard_base
from secateur.training.loss import causal_lm_loss

STEPS, BATCH, CUTS = 8, 2, 2
CLOSE = 1e-3
"""Of a loss, relative: a GPU's products in float32 may take other orders."""


def trained(sharded: bool, layers: int, hidden: int, length: int) -> dict[str, Any]:
    """Losses, what was cut, seconds of each step and the most bytes on a GPU."""
    device = default_device()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 32, num_key_value_heads=hidden // 64, max_position_embeddings=length,
    )  # fmt: skip
    model = get_peft_model(LlamaForCausalLM(config).to(device), LoraConfig(r=8, target_modules="all-linear"))
    if sharded:
        shard_base(model)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    options: dict[str, Any] = {"total_steps": STEPS, "prune_start": 3, "prune_end": 7, "frequency": 2}
    pruner = Pruner(model, sparsity=0.3, **options)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses, seconds = [], []
    for step in range(STEPS):
        ids = torch.randint(1024, (BATCH, length), generator=torch.Generator().manual_seed(step)).to(device)
        started = time.perf_counter()
        loss = causal_lm_loss(model(input_ids=ids), ids)
        loss.backward()
        pruner.observe()
        optimizer.step()
        pruner.step(optimizer)
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - started)
    gone = [{name: sorted(map(int, units)) for name, units in cut.removed.items()} for cut in pruner.cuts]
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    return {"losses": losses, "steps_s": seconds, "cuts": [cut.step for cut in pruner.cuts], "gone": gone, "peak": peak}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    device = default_device()
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend)
    try:
        whole, sharded = (trained(way, given.layers, given.hidden, given.length) for way in (False, True))
    finally:
        dist.destroy_process_group()
    assert len(whole["cuts"]) == CUTS, whole["cuts"]
    assert whole["cuts"] == sharded["cuts"], (whole["cuts"], sharded["cuts"])
    assert whole["gone"] == sharded["gone"], "other units went"
    off = max(abs(a / b - 1) for a, b in zip(sharded["losses"], whole["losses"], strict=True))
    assert off <= CLOSE, f"losses differ by {off:.2g}"
    found = {"backend": backend, "losses_off": off, "whole": whole, "sharded": sharded}
    times = {name: sorted(found[name]["steps_s"])[STEPS // 2] * 1000 for name in ("whole", "sharded")}
    print(
        f"FSDP2 over one process ({backend}): the same {CUTS} cuts as of a whole base, losses within {off:.1e}; "
        f"a step takes {times['sharded']:.1f} ms, whole {times['whole']:.1f} ms."
    )
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
