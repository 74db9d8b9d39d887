"""Memory of each process and bytes sent in a step, with the frozen base whole or sharded by FSDP2.

    torchrun --nproc-per-node 2 benchmarks/scale/processes.py
    torchrun --nproc-per-node 2 benchmarks/scale/processes.py --time docs/results/processes.json

A random Llama (float32, gloo on CPUs): sizes and traffic do not depend on the weights' values. With `--time`, instead:
seconds of steps and cuts, and bytes, when gradients are averaged by `average_gradients_` or by DistributedDataParallel,
which has to be made anew at every cut, as it does not follow a parameter that is replaced.
"""

import argparse
import json
import os
import platform
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from secateur import Pruner
from secateur.models.devices import default_device
from secateur.parallel.distributed import average_gradients_, barrier, join, leave, processes
from secateur.parallel.sharding import shard_base
from secateur.system.launcher import rank

STEPS, BATCH, LENGTH = 6, 2, 64


class Traffic(TorchDispatchMode):
    """Bytes of the largest tensor of each collective, by the operation's name."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("c10d", "_c10d_functional") and "wait" not in func.name():
            tensors = [t for t in torch.utils._pytree.tree_leaves(args) if isinstance(t, torch.Tensor)]
            name = func.name().split("::")[1].split(".")[0].strip("_")
            self.bytes[name] = self.bytes.get(name, 0) + max((t.numel() * t.element_size() for t in tensors), default=0)
        return func(*args, **(kwargs or {}))


def make(layers: int, hidden: int) -> torch.nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 128, head_dim=64,
    )  # fmt: skip
    return get_peft_model(LlamaForCausalLM(config), LoraConfig(r=8, target_modules="all-linear"))


def measure(model: torch.nn.Module, criterion: str | None) -> dict[str, object]:
    """Bytes of base weights held, and sent: per step that does not cut, and by a cut."""
    frozen = [p for p in model.parameters() if not p.requires_grad]
    held = sum(p.to_local().nbytes if hasattr(p, "to_local") else p.nbytes for p in frozen)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    pruner = None
    if criterion is not None:
        pruner = Pruner(
            model, sparsity=0.3, total_steps=STEPS, prune_start=2, prune_end=5, frequency=3, criterion=criterion
        )
    lora = sum(p.nbytes for p in trained)
    steps = []
    for step in range(STEPS):
        ids = torch.randint(0, 8192, (BATCH, LENGTH), generator=torch.Generator().manual_seed(step * 7 + rank()))
        with Traffic() as training:
            model(input_ids=ids, labels=ids).loss.backward()
            average_gradients_(p for p in model.parameters() if p.requires_grad)
        with Traffic() as pruning:
            if pruner is not None:
                pruner.observe()
            optimizer.step()
            cut = pruner.step(optimizer) if pruner is not None else None
        optimizer.zero_grad()
        steps.append({"training": training.bytes, "pruning": pruning.bytes, "cut": cut is not None})
    units = sum(pool.size for pool in pruner.units.pools) if pruner is not None else 0
    return {"held_bytes": held, "lora_gradient_bytes": lora, "units": units, "steps": steps}


WAYS = ("averaged", "ddp", "ddp-no-sync")
"""By ourselves; DistributedDataParallel as it comes, which sends all weights when it is made; and told not to."""
ROUNDS, TIMED_STEPS, TIMED_CUTS = 3, 10, (5, 7, 9)


class Counted:
    """Bytes of the buckets that DistributedDataParallel sends."""

    def __init__(self) -> None:
        self.bytes = 0


def count(counted: Counted, bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """What DistributedDataParallel does without a hook, and counts."""
    counted.bytes += bucket.buffer().nbytes
    work = torch.distributed.all_reduce(bucket.buffer().div_(processes()), async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


def wrapped(model: torch.nn.Module, way: str, counted: Counted | None) -> torch.nn.Module:
    if way == "averaged":
        return model
    ddp = DistributedDataParallel(model, init_sync=way == "ddp")
    if counted is not None:
        ddp.register_comm_hook(counted, count)
    return ddp


def timed(way: str, layers: int, hidden: int, counted: Counted | None = None) -> dict[str, object]:
    """One run: seconds of each step (all of it but the cut) and of each cut, with what it takes to train on."""
    model = make(layers, hidden)
    pruner = Pruner(model, sparsity=0.3, total_steps=TIMED_STEPS, prune_start=3, prune_end=9, frequency=2)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    trained = wrapped(model, way, counted)
    steps, cuts, sent = [], [], []
    for step in range(1, TIMED_STEPS + 1):
        ids = torch.randint(0, 8192, (BATCH, LENGTH), generator=torch.Generator().manual_seed(step * 7 + rank()))
        before = counted.bytes if counted is not None else 0
        barrier()
        started = time.perf_counter()
        with Traffic() if counted is not None else nullcontext() as traffic:
            trained(input_ids=ids, labels=ids).loss.backward()
            if way == "averaged":
                average_gradients_(p for p in model.parameters() if p.requires_grad)
        pruner.observe()
        optimizer.step()
        steps.append(time.perf_counter() - started)
        if counted is not None:
            sent.append(counted.bytes - before + traffic.bytes.get("allreduce", 0) * (way == "averaged"))
        barrier()
        started = time.perf_counter()
        if pruner.step(optimizer) is not None:
            del trained
            trained = wrapped(model, way, counted)
            barrier()
            cuts.append(time.perf_counter() - started)
        optimizer.zero_grad()
    assert tuple(cut.step for cut in pruner.cuts) == TIMED_CUTS, [cut.step for cut in pruner.cuts]
    synced = sum(t.nbytes for t in [*model.parameters(), *model.buffers()]) if way == "ddp" else 0
    return {"steps_s": steps, "cuts_s": cuts, "sent_bytes": sent, "sent_by_wrapping_bytes": synced}


def compare_ways(output: Path, layers: int, hidden: int) -> None:
    """The ways in turns, so that other work on the machine meets all of them alike."""
    counts = {way: timed(way, layers, hidden, Counted()) for way in WAYS}
    runs: dict[str, list[dict[str, object]]] = {way: [] for way in WAYS}
    for number in range(ROUNDS):
        for way in WAYS[number % len(WAYS) :] + WAYS[: number % len(WAYS)]:
            runs[way].append(timed(way, layers, hidden))
            if rank() == 0:
                print(number, way, runs[way][-1], flush=True)
    if rank() > 0:
        return
    record: dict[str, object] = {
        "layers": layers, "hidden": hidden, "processes": processes(), "backend": "gloo", "torch": torch.__version__,
        "python": platform.python_version(), "cpus": os.cpu_count(), "load_average": os.getloadavg(),
        "batch": BATCH, "tokens": LENGTH, "rounds": ROUNDS, "ways": {},
    }  # fmt: skip
    for way in WAYS:
        before = [run["steps_s"][1 : TIMED_CUTS[0]] for run in runs[way]]
        found = {
            "step_s": [median(times) for times in before], "cut_s": [median(run["cuts_s"]) for run in runs[way]],
            "sent_bytes_before_cuts": counts[way]["sent_bytes"][0], "sent_bytes_after": counts[way]["sent_bytes"][-1],
            "sent_by_wrapping_bytes": counts[way]["sent_by_wrapping_bytes"],
        }  # fmt: skip
        record["ways"][way] = found | {"runs": runs[way]}
        words = " ".join(f"{key} {median(found[key]):.4f} ({min(found[key]):.4f}-{max(found[key]):.4f})" for key in
                         ("step_s", "cut_s"))  # fmt: skip
        print(way, words, {key: value for key, value in found.items() if "bytes" in key})
    output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--time", type=Path, help="compare two ways of averaging gradients, and write this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    join(default_device())
    if options.time:
        compare_ways(options.time, options.layers, options.hidden)
        leave()
        return
    for sharded in (False, True):
        for criterion in (None, "lora", "gate", "wanda"):
            model = make(options.layers, options.hidden)
            if sharded:
                shard_base(model)
            found = measure(model, criterion)
            barrier()
            if rank() == 0:
                print(json.dumps({"processes": processes(), "sharded": sharded, "criterion": criterion} | found))
    leave()


if __name__ == "__main__":
    main()
