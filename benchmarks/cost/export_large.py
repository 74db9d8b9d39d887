"""Host memory of an export that is made from the original checkpoint's files, at LLaMA-7B's shape.

    python benchmarks/cost/export_large.py /path/with/25GB --shape 7b --json docs/results/export-7b.json

Writes a checkpoint of random bfloat16 weights (13.5 GB) in files of 2 GB, loads it in 8 bits, puts LoRA (r = 8, B not
zero) on all seven linears, marks half of the heads and of the FFN channels, and exports what stays as `prune --load-in
8bit --stream-export` does: read, merged, sliced and written tensor by tensor, then read back in a fresh process. The
peak is what the export adds to the process; pages of the files that it reads count. Both folders are deleted after it.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import torch
from cost_cases import SHAPES
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from secateur import Pruner
from secateur.architecture.quantised import loading_options, settle_
from secateur.checkpoint import streaming
from secateur.checkpoint.verify import verify
from secateur.models.files import INDEX
from secateur.models.loading import load_model
from secateur.models.memory import peak_bytes, reset_peak
from secateur.models.source import ModelSource
from secateur.system.records import environment, write_json

FILE_BYTES = 2 * 10**9
DRAWN = 2**26 - 1
"""Random numbers that are drawn; billions would take a CPU minutes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    source, output = given.folder / "random", given.folder / "pruned"
    try:
        written = write_random(source, SHAPES[given.shape])
        record = {"shape": given.shape, "source_bytes": written, **export(source, output)}
    finally:
        shutil.rmtree(source, ignore_errors=True)
        shutil.rmtree(output, ignore_errors=True)
    record["environment"] = {name: environment()[name] for name in ("commit", "versions", "python", "cpu")}
    print(json.dumps(record, indent=2))
    if given.json:
        write_json(given.json, record)


def write_random(folder: Path, shape: dict) -> int:
    """A checkpoint of random weights, one file at a time; -> its bytes."""
    folder.mkdir(parents=True)
    config = LlamaConfig(**shape, dtype="bfloat16", architectures=["LlamaForCausalLM"])
    config.save_pretrained(folder)
    with torch.device("meta"):
        skeleton = LlamaForCausalLM(config)
    tied = set(skeleton.all_tied_weights_keys)
    waiting: dict[str, torch.Tensor] = {}
    places: dict[str, str] = {}
    held = total = 0
    torch.manual_seed(0)
    drawn = torch.empty(DRAWN, dtype=torch.bfloat16).normal_(std=0.02)

    def write() -> None:
        name = f"model-{len(set(places.values())) + 1:05d}.safetensors"
        save_file(waiting, folder / name, metadata={"format": "pt"})
        places.update(dict.fromkeys(waiting, name))
        waiting.clear()

    for name, parameter in skeleton.named_parameters():
        if name in tied:
            continue
        if "norm" in name:
            value = torch.ones(parameter.shape, dtype=torch.bfloat16)
        else:  # each tensor from a place of its own, again and again where it is longer
            begin, count = int(torch.randint(DRAWN, ())), parameter.numel()
            value = drawn.roll(-begin).repeat(-(-count // DRAWN))[:count].reshape(parameter.shape).clone()
        if held + value.nbytes > FILE_BYTES:
            write()
            held = 0
        waiting[name], held, total = value, held + value.nbytes, total + value.nbytes
    write()
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}))
    return total


def export(source: Path, output: Path) -> dict:
    """Load in 8 bits, mark half, export; -> figures."""
    options = loading_options("8bit", torch.bfloat16, torch.device("cpu"))
    base = load_model(ModelSource("random", str(source)), dtype="bfloat16", quantising=options)
    settle_(base)
    linears = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(base, LoraConfig(r=8, target_modules=linears, task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    pruner = Pruner(model, sparsity=0.5, total_steps=10, shrink=False, criterion="magnitude")
    for pool in pruner.units.pools:
        pruner.keep[pool.name][pool.size // 2 :] = False
    pruner.masks.update(pruner.keep)
    ids = torch.arange(32)[None]
    streaming.logits_of(model, ids)  # what a first forward pass takes once
    seconds = {}

    def timed_verify(checks):
        seconds["peak"] = peak_bytes() - before
        seconds["writing"] = time.perf_counter() - began
        return verify(checks)

    streaming.verify = timed_verify
    before, began = reset_peak(), time.perf_counter()
    report = streaming.export_streamed(
        model, pruner.live, pruner.live_keep, output, probe_ids=ids, dtype=torch.bfloat16,
        source=ModelSource("random", str(source)),
    )  # fmt: skip
    return {
        "held_before_bytes": before,
        "peak_over_that_bytes": max(seconds["peak"], peak_bytes() - before),
        "seconds_to_write": seconds["writing"],
        "seconds": time.perf_counter() - began,
        "largest_source_file_bytes": max(file.stat().st_size for file in source.glob("*.safetensors")),
        "largest_written_file_bytes": max(file.stat().st_size for file in output.glob("*.safetensors")),
        "parameters": report.parameters,
        "result_bytes": report.bytes,
    }


if __name__ == "__main__":
    main()
