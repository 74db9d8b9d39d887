"""Memory of each process and bytes sent in a step, with the frozen base whole or sharded by FSDP2.

    torchrun --nproc-per-node 2 benchmarks/processes.py

A random Llama (float32, gloo on CPUs): sizes and traffic do not depend on the weights' values.
"""

import argparse
import json

import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from secateur import Pruner
from secateur.distributed import average_gradients_, barrier, join, leave, processes
from secateur.launcher import rank
from secateur.sharding import shard_base

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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=512)
    options = parser.parse_args()
    torch.set_num_threads(1)
    join()
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
