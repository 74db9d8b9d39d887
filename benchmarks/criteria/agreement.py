"""How far criteria agree on what goes: intersection over union of the units removed (LoRAPrune's Fig. 4).

    SECATEUR_DATA=/path/to/data python benchmarks/criteria/agreement.py --steps 10 --json docs/results/agreement.json

SmolLM2-135M-Instruct, scores averaged over the same `steps` batches of 2,048 tokens of C4 (c4_calib.jsonl), without
training; against `taylor` (the weights' own gradients, per sequence). FFN channels as uniform allocation takes them;
KV groups, of which a layer has three, ranked over the whole model, as each criterion ranks across layers.
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import set_seed

from secateur.config.prune import PruneConfig
from secateur.models.devices import autocast, compute_dtype
from secateur.pruning.allocation import make_budget
from secateur.pruning.pruner import Pruner
from secateur.runs.prune import make_pruner
from secateur.system.records import environment, markdown_table, write_json
from secateur.training.finetune import add_lora, load_base
from secateur.training.loss import causal_lm_loss
from secateur.training.prepare import PruneJob, prepare

CELLS: dict[str, dict[str, object]] = {
    "taylor": {"criterion": "taylor"},
    "gate": {"criterion": "gate"},
    "gate, over sequences": {"criterion": "gate", "gate_tokens": 0},
    "lora, random start, rows": {"criterion": "lora"},
    "lora, random start, rows, projected": {"criterion": "lora", "normalize": "projected"},
    "lora, random start, all linears": {"criterion": "lora", "score_linears": "all"},
    "lora, PiSSA start, rows": {"criterion": "lora", "lora_init": "pissa"},
    "lora, PiSSA start, rows, projected": {"criterion": "lora", "lora_init": "pissa", "normalize": "projected"},
    "lora, PiSSA start, all linears": {"criterion": "lora", "lora_init": "pissa", "score_linears": "all"},
    "wanda": {"criterion": "wanda"},
    "magnitude": {"criterion": "magnitude"},
    "random": {"criterion": "random"},
}
SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    data = Path(os.environ.get("SECATEUR_DATA") or sys.exit("set SECATEUR_DATA to the folder of the data sets"))
    removed = {}
    for name, options in CELLS.items():
        pruner = scored(options, data, given.steps)
        removed[name] = {"attention": lowest_groups(pruner), "ffn": uniform_channels(pruner)}
        print(f"{name}: scored", flush=True)
    found = {
        kind: {
            name: [overlap(removed["taylor"][kind][s], removed[name][kind][s]) for s in SPARSITIES] for name in CELLS
        }
        for kind in ("attention", "ffn")
    }
    for kind, rows in found.items():
        lines = [(name, *(f"{value:.2f}" for value in values)) for name, values in rows.items()]
        print(f"\n{kind}\n\n{markdown_table(lines, ('criterion', *(f'{s:.0%}' for s in SPARSITIES)))}")
    if given.json:
        record = {
            "steps": given.steps,
            "sparsities": SPARSITIES,
            "iou_with_taylor": found,
            "environment": environment(),
        }
        write_json(given.json, record)


def scored(options: dict[str, object], data: Path, steps: int) -> Pruner:
    """A pruner whose scores are the mean over the first `steps` batches, in the same order for all."""
    fixed = {"model": "smollm2-135m-instruct", "data": (str(data / "c4_calib.jsonl"),), "output": "unused-agreement"}
    config = PruneConfig(**fixed, steps=steps, schedule="one-shot", sparsity=0.2, prune_start=steps, **options)  # type: ignore[arg-type]
    job = prepare(config)
    set_seed(0)
    dtype = compute_dtype("auto")
    base = load_base(job, dtype)
    model = add_lora(base, config, [path.rsplit(".", 1)[-1] for path in job.budget.units.family.linears])
    pruner = make_pruner(model, job)
    model.train()
    for batch in torch.arange(len(job.blocks)).split(config.batch_size)[:steps]:
        backward(model, job, batch, dtype)
        pruner.observe()
        pruner.steps_done += 1
        model.zero_grad()
    pruner.close()
    return pruner


def backward(model: nn.Module, job: PruneJob, batch: Tensor, dtype: torch.dtype) -> None:
    ids, labels = (torch.tensor([job.blocks[int(i)][key] for i in batch]) for key in ("input_ids", "labels"))
    with autocast("cpu", dtype):
        loss = causal_lm_loss(model(input_ids=ids), labels)
    loss.backward()


def uniform_channels(pruner: Pruner) -> dict[float, Tensor]:
    """Sparsity -> (channels of all layers,) bool, which would go."""
    everything = {name: torch.ones_like(keep) for name, keep in pruner.keep.items()}
    found = {}
    for sparsity in SPARSITIES:
        budget = make_budget(pruner.units, replace(pruner.allocator.goal, sparsity=sparsity), pruner.allocator.legal)
        keep = budget.select(pruner.scores, everything, 1.0)
        found[sparsity] = torch.cat([~mask for name, mask in keep.items() if name.endswith(".ffn")])
    return found


def lowest_groups(pruner: Pruner) -> dict[float, Tensor]:
    """Sparsity -> (KV groups of all layers,) bool, that share with the lowest scores."""
    scores = torch.stack([scores for name, scores in pruner.scores.items() if not name.endswith(".ffn")])
    if pruner.allocator.goal.across_layers == "mean":
        scores = scores / scores.mean(dim=1, keepdim=True)
    ranks = scores.flatten().argsort().argsort()
    return {sparsity: ranks < round(sparsity * len(ranks)) for sparsity in SPARSITIES}


def overlap(one: Tensor, other: Tensor) -> float:
    """Intersection over union of what goes."""
    return int((one & other).sum()) / int((one | other).sum())


if __name__ == "__main__":
    main()
