"""How far criteria agree on what goes: intersection over union of the units removed (LoRAPrune's Fig. 4).

    SECATEUR_DATA=/path/to/data python benchmarks/agreement.py --steps 10 --json docs/results/agreement.json

SmolLM2-135M-Instruct, scores averaged over the same `steps` batches of 2,048 tokens of C4 (c4_calib.jsonl), without
training, uniform allocation; against `taylor` (the weights' own gradients, per sequence). Attention and FFN apart.
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import set_seed

from secateur.allocation import make_budget
from secateur.config import PruneConfig
from secateur.devices import autocast, compute_dtype
from secateur.finetune import add_lora, load_base
from secateur.loss import causal_lm_loss
from secateur.prepare import PruneJob, prepare
from secateur.prune import make_pruner
from secateur.pruner import Pruner
from secateur.records import environment, markdown_table, write_json

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
        removed[name] = masks(scored(options, data, given.steps))
        print(f"{name}: scored", flush=True)
    found = {
        kind: {name: [overlap(removed["taylor"], removed[name], s, kind) for s in SPARSITIES] for name in CELLS}
        for kind in ("attention", "ffn")
    }
    for kind, rows in found.items():
        lines = [(name, *("–" if v is None else f"{v:.2f}" for v in values)) for name, values in rows.items()]
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


def masks(pruner: Pruner) -> dict[float, dict[str, Tensor]]:
    """Sparsity -> pool -> units that would go."""
    everything = {name: torch.ones_like(keep) for name, keep in pruner.keep.items()}
    found = {}
    for sparsity in SPARSITIES:
        budget = make_budget(pruner.units, replace(pruner.budget_options, sparsity=sparsity), pruner.legal)
        found[sparsity] = {n: ~keep for n, keep in budget.select(pruner.scores, everything, 1.0).items()}
    return found


def overlap(
    one: dict[float, dict[str, Tensor]], other: dict[float, dict[str, Tensor]], sparsity: float, kind: str
) -> float | None:
    """Intersection over union of what goes, over all layers; None where nothing goes."""
    names = [name for name in one[sparsity] if name.endswith(".ffn") == (kind == "ffn")]
    both = sum(int((one[sparsity][name] & other[sparsity][name]).sum()) for name in names)
    either = sum(int((one[sparsity][name] | other[sparsity][name]).sum()) for name in names)
    return both / either if either else None


if __name__ == "__main__":
    main()
