"""Run by torchrun in test_sharding: a bare loop whose frozen base is whole (one process) or sharded (two)."""

import json
import sys
from pathlib import Path

import torch
from product import some_of
from safetensors.torch import save_file
from tiny import tiny_llama
from torch.utils._python_dispatch import TorchDispatchMode
from two_processes import CRITERIA_SHOWN, EVERY_WAY, adapted, at_cut, norms_in_float64, with_lora

from secateur import Pruner
from secateur.checkpoint.streaming import export_streamed
from secateur.models.sharded_loading import load_sharded
from secateur.parallel.distributed import average_gradients_, barrier, join, leave, processes
from secateur.parallel.sharding import gathered, shard_base
from secateur.system.errors import InputError
from secateur.system.launcher import rank
from secateur.training.loss import causal_lm_loss

STEPS, GLOBAL_BATCH, LENGTH = 8, 8, 24
CUTS = (2, 4, 6)
WAYS = some_of(  # with those of two_processes, each once at least
    EVERY_WAY, ["lora-shrink", "taylor-mask", "gate-shrink", "wanda-shrink", "obs-mask"]
)
CASES = {name: (name.split("-")[0], CRITERIA_SHOWN[name.split("-")[0]], name.split("-")[1]) for name in WAYS}
CASES |= {
    "gate-lstsq-shrink": ("gate", "lstsq", "shrink"),
    "gate-sequential-shrink": ("gate", "sequential", "shrink"),
    "gate-search-shrink": ("gate", "none", "shrink"),
    "flap-bias-mask": ("flap", "bias", "mask"),
    "tied": ("lora", "none", "shrink"),
    "loaded": ("lora", "none", "shrink"),  # from files into shards, never whole in a process
}
EXPORTED = ("lora-shrink", "tied")


class Traffic(TorchDispatchMode):
    """Bytes of the tensors that go into collectives, by the operation's name."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[str, int] = {}
        self.largest: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("c10d", "_c10d_functional"):
            tensors = [t for t in torch.utils._pytree.tree_leaves(args) if isinstance(t, torch.Tensor)]
            name = func.name().split("::")[1].split(".")[0].strip("_")
            size = max((t.numel() * t.element_size() for t in tensors), default=0)
            self.bytes[name] = self.bytes.get(name, 0) + size
            self.largest[name] = max(self.largest.get(name, 0), size)
        return func(*args, **(kwargs or {}))


def run(folder: Path, name: str) -> None:
    criterion, compensate, way = CASES[name]
    if name == "loaded":
        base = load_sharded(str(folder / "checkpoint"))
        dense = held = base_bytes(base)
        model = with_lora(base)
    else:
        model = adapted(tied=name == "tied", bias="bias" in name)
        dense = base_bytes(model)
        shard_base(model)
        held = base_bytes(model)
    pruner = Pruner(
        model, sparsity=0.4, total_steps=STEPS, prune_start=0, prune_end=6, frequency=2, criterion=criterion,
        compensate=compensate, shrink=way == "shrink",
        **({"allocation": "search", "search_evaluations": 13} if "search" in name else {}),
    )  # fmt: skip
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-3, weight_decay=0.0)
    ids = torch.randint(3, 99, (STEPS, GLOBAL_BATCH, LENGTH), generator=torch.Generator().manual_seed(7))
    if pruner.pruned.calibrated_for:
        pruner.calibrate([{"input_ids": ids[:2].flatten(0, 1)[rank() :: processes()]}])
    traffic, seen = {}, {}
    with norms_in_float64():
        for step in range(STEPS):
            batch = ids[step].chunk(processes())[rank()]
            with Traffic() as training:
                causal_lm_loss(model(input_ids=batch), batch).backward()
                average_gradients_([p for p in model.parameters() if p.requires_grad])
            with Traffic() as scoring:
                pruner.observe()
            optimizer.step()
            with Traffic() as cutting:
                if pruner.step(optimizer):
                    seen |= at_cut(pruner)
            if step == 0:
                largest = training.largest.get("allgather_base", 0)
            traffic[step + 1] = {"training": training.bytes, "scoring": scoring.bytes, "cutting": cutting.bytes}
            optimizer.zero_grad()
    refused = ""
    if held != dense:
        try:
            pruner.export(folder / "refused", probe_ids=ids[0, :1])
        except InputError as error:
            refused = str(error)
    report = None
    if name in EXPORTED:
        report = export_streamed(
            model, pruner.live, pruner.live_keep, folder / name, probe_ids=ids[0, :1], dtype=torch.float64,
            file_bytes=100_000,
        )  # fmt: skip
    values = {path: gathered(value.detach()) for path, value in sorted(model.state_dict().items())}
    if rank() == 0:
        state = {path: value.contiguous() for path, value in values.items() if "lm_head" not in path}
        save_file(state | seen, folder / f"{name}.safetensors")
        facts = {"dense": dense, "held": held, "traffic": traffic, "refused": refused,
                 "cuts": [cut.step for cut in pruner.cuts], "parameters": report and report.parameters,
                 "lora": sum(p.numel() * 8 for p in trained), "largest_gathered": largest,
                 "units": sum(pool.size for pool in pruner.units.pools)}  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(facts))


def base_bytes(model) -> int:
    """What this process holds of the frozen weights."""
    frozen = [p for p in model.parameters() if not p.requires_grad]
    local = [p.to_local() if hasattr(p, "to_local") else p for p in frozen]
    return sum(p.numel() * p.element_size() for p in local)


if __name__ == "__main__":
    join(torch.device("cpu"))
    if rank() == 0:
        tiny_llama(layers=2, dtype=torch.float64).save_pretrained(Path(sys.argv[1]) / "checkpoint")
    barrier()
    for case in CASES:
        run(Path(sys.argv[1]), case)
    leave()
