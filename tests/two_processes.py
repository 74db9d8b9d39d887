"""Run by torchrun in test_distributed: trainings of one process or of two, in float64, one after the other."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tiny import tiny_llama
from torch import nn
from transformers import TrainerCallback, TrainingArguments
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from secateur import Pruner, PruningCallback, RankPruner
from secateur.criteria import CRITERIA
from secateur.parallel.distributed import DisagreementError, leave
from secateur.system.launcher import launched, rank
from secateur.system.progress import Progress
from secateur.training.guard import NumericsGuard
from secateur.training.loss import causal_lm_loss
from secateur.training.trainer import AutocastTrainer

STEPS, GLOBAL_BATCH, LENGTH = 14, 8, 24
CUTS = (5, 8, 11)
CRITERIA_SHOWN = {"lora": "none", "taylor": "none", "gate": "none", "wanda": "none", "obs": "lstsq"}
"""Criterion -> compensation, as the cells of docs/results/distributed.md."""
CASES = {f"{name}-{way}": (name, how, way) for name, how in CRITERIA_SHOWN.items() for way in ("shrink", "mask")}
CASES |= {
    "gate-lstsq": ("gate", "lstsq", "shrink"),
    "rank-gradient": ("rank-gradient", "none", "shrink"),
    "rank-sparsegpt": ("rank-sparsegpt", "none", "shrink"),  # averages what the processes saw of activations
    "nan-gate-lstsq": ("gate", "lstsq", "shrink"),  # the step of the second cut has no finite gradient
    "nan-obs-lstsq": ("obs", "lstsq", "mask"),
}
FAULTS = {
    "units": ("magnitude", "none", "mask"),
    "lora": ("lora", "none", "shrink"),
    "rewritten": ("gate", "lstsq", "shrink"),
    "rank": ("rank-gradient", "none", "shrink"),
}
"""What process 1 gets wrong between the first cut and the second, and the run that it does so in."""


class Spoils(TrainerCallback):
    """Makes a step's gradients not finite, or changes a weight of one process's model."""

    def __init__(self, model: nn.Module, nan_at: int = 0, weight: str = "") -> None:
        self.model, self.nan_at, self.weight = model, nan_at, weight

    def on_step_begin(self, args, state, control, **kwargs):
        if self.weight and state.global_step == 5 and rank() == 1:
            chosen = next(p for name, p in self.model.named_parameters() if self.weight in name)
            chosen.data += 1e-12

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.nan_at:
            next(p for p in self.model.parameters() if p.grad is not None).grad[0, 0] = torch.nan


@contextmanager
def norms_in_float64() -> Iterator[None]:
    """Llama's norm computes in float32, whose round-off would be all that two runs differ by."""

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)

    with patch.object(LlamaRMSNorm, "forward", forward):
        yield


def adapted(**options: object) -> nn.Module:
    return with_lora(tiny_llama(layers=2, dtype=torch.float64, **options))


def with_lora(base: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return get_peft_model(base, LoraConfig(r=4, target_modules="all-linear"), autocast_adapter_dtype=False)


def at_cut(pruner: Pruner | RankPruner) -> dict[str, torch.Tensor]:
    """What is to be the same when a cut is done: what is left, and the scores by which that was chosen."""
    step = pruner.steps_done
    if isinstance(pruner, RankPruner):
        return {f"cut{step}.left.{name}": torch.tensor(left) for name, left in pruner.ranks.items()}
    found = {f"cut{step}.keep.{name}": mask.clone() for name, mask in pruner.keep.items()}
    return found | {f"cut{step}.scores.{name}": scores.clone() for name, scores in pruner.scores.items()}


def train(name: str, criterion: str, compensate: str, way: str, weight: str = "") -> dict[str, torch.Tensor]:
    """Train a tiny model; what was so at each cut, and the weights at the end."""
    model = adapted()
    pruner: Pruner | RankPruner
    times = {"total_steps": STEPS, "prune_start": 2, "prune_end": 11, "frequency": 3}
    if criterion.startswith("rank-"):
        pruner = RankPruner(model, rank=2, criterion=criterion.removeprefix("rank-"), **times)
    else:
        pruner = Pruner(
            model, sparsity=0.4, criterion=criterion, compensate=compensate, shrink=way == "shrink", **times
        )
    if name == "units" and rank() == 1:
        pruner.scorer.criterion = CRITERIA["random"]
        pruner.scorer.scoring = pruner.scorer.criterion.options("random", pruner.scorer.scoring)
    ids = torch.randint(3, 99, (STEPS * GLOBAL_BATCH, LENGTH), generator=torch.Generator().manual_seed(7))
    seen: dict[str, torch.Tensor] = {}
    guard = NumericsGuard("skip", Progress(STEPS))
    pruning = PruningCallback(pruner, lambda cut: seen.update(at_cut(pruner)), leave_out=lambda: guard.bad)
    trainer = AutocastTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=sys.argv[1] + "/run", max_steps=STEPS, per_device_train_batch_size=GLOBAL_BATCH // launched(),
            learning_rate=5e-3, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True,
            weight_decay=0.0,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in ids],
        compute_loss_func=causal_lm_loss,
        callbacks=[Spoils(model, CUTS[1] if name.startswith("nan-") else 0, weight), guard, pruning],
    )  # fmt: skip
    with norms_in_float64():
        trainer.train()
    state = {path: value.contiguous() for path, value in model.state_dict().items() if "lm_head" not in path}
    return state | seen


def main(folder: Path) -> None:
    for name, case in CASES.items():
        found = train(name, *case)
        if rank() == 0:
            save_file(found, folder / f"{name}.safetensors")
    weights = {"lora": "q_proj.lora_B", "rewritten": "down_proj.base_layer.weight", "rank": "q_proj.lora_B"}
    for name, case in FAULTS.items() if launched() > 1 else ():
        said = ""
        try:
            train(name, *case, weights.get(name, ""))
        except DisagreementError as error:
            said = str(error)
        (folder / f"fault-{name}-{rank()}.json").write_text(json.dumps(said))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
