"""Run by torchrun in test_distributed: trainings of one process or of two, in float64, one after the other."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from peft import LoraConfig, get_peft_model
from product import some_of
from safetensors.torch import save_file
from tiny import tiny_llama
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from secateur import Pruner, PruningCallback, RankPruner
from secateur.architecture.discovery import find_units
from secateur.architecture.families import FAMILIES
from secateur.criteria import CRITERIA
from secateur.parallel.distributed import DisagreementError, announce, barrier, join, leave
from secateur.system.launcher import launched, rank
from secateur.system.progress import Progress
from secateur.training.guard import NumericsGuard
from secateur.training.loss import causal_lm_loss
from secateur.training.recovery.beside import Beside
from secateur.training.recovery.restart import RestartCallback
from secateur.training.trainer import AutocastTrainer

STEPS, GLOBAL_BATCH, LENGTH = 14, 8, 24
CUTS = (5, 8, 11)
CRITERIA_SHOWN = {"lora": "none", "taylor": "none", "gate": "none", "wanda": "none", "obs": "lstsq"}
"""Criterion -> compensation, as the cells of docs/results/distributed.md."""
EVERY_WAY = [f"{name}-{way}" for name in CRITERIA_SHOWN for way in ("shrink", "mask")]
WAYS = some_of(
    EVERY_WAY,
    ["lora-mask", "taylor-shrink", "gate-mask", "wanda-mask", "obs-shrink"],
)
CASES = {name: (name.split("-")[0], CRITERIA_SHOWN[name.split("-")[0]], name.split("-")[1]) for name in WAYS}
CASES |= {
    "beside-gate": ("gate", "none", "shrink"),  # gains, norms and weights are trained too, and LoRA begins anew
    "gate-lstsq": ("gate", "lstsq", "shrink"),
    "gate-sequential": ("gate", "sequential", "shrink"),
    "learned": ("learned", "none", "mask"),
    "compresso": ("compresso", "none", "shrink"),
    "projected-lstsq": ("projected", "lstsq", "shrink"),
    "gate-search": ("gate", "none", "shrink"),  # its fitness is of what all processes hold together
    "rank-gradient": ("rank-gradient", "none", "shrink"),
    "rank-sparsegpt": ("rank-sparsegpt", "none", "shrink"),  # averages what the processes saw of activations
    "gate-layers": ("gate", "none", "shrink"),
    "loss-layers": ("loss", "none", "mask"),
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
LATE = {"last": ("lora", "none", "shrink")}
"""The same after the last cut."""
OWN = {
    "trainer": {},
    "trainer-accumulation": {},
    "trainer-one-shot": {"schedule": "one-shot", "prune_start": 1},
    "trainer-rank": {},
    "given": {},
    "wrapped": {},
    "wrapped-one-shot": {"schedule": "one-shot", "prune_start": 1},
    "wrapped-rank": {},
}
"""Somebody else's loops, whose model is in DistributedDataParallel where there are two processes: by Trainer, before
the pruner is made or after it."""


class Spoils(TrainerCallback):
    """Makes a step's gradients not finite, or changes a weight of one process's model."""

    def __init__(self, model: nn.Module, nan_at: int = 0, weight: str = "", spoil_at: int = 6) -> None:
        self.model, self.nan_at, self.weight, self.spoil_at = model, nan_at, weight, spoil_at

    def on_step_begin(self, args, state, control, **kwargs):
        if self.weight and state.global_step == self.spoil_at and rank() == 1:
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


def adapted(layers: int = 2, **options: bool) -> nn.Module:
    return with_lora(tiny_llama(layers=layers, dtype=torch.float64, **options))


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
    model = adapted(layers=4) if name.endswith("-layers") else adapted()
    beside = name.startswith("beside")
    if beside:
        units = find_units(model.get_base_model(), FAMILIES["llama"])
        Beside(model, units, ("norms", "gains", "weights"), restarts=True)
    pruner: Pruner | RankPruner
    times = {"total_steps": STEPS, "prune_start": 2, "prune_end": 11, "frequency": 3}
    if criterion.startswith("rank-"):
        pruner = RankPruner(model, rank=2, criterion=criterion.removeprefix("rank-"), **times)
    else:
        searched = {"allocation": "search", "search_evaluations": 13, "calibration_tokens": 16 * LENGTH}
        pruner = Pruner(
            model, sparsity=0.4, criterion=criterion, compensate=compensate, shrink=way == "shrink", **times,
            **(searched if name.endswith("-search") else {}),
            **({"units": "layers", "calibration_tokens": 16 * LENGTH} if name.endswith("-layers") else {}),
        )  # fmt: skip
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
        callbacks=[
            Spoils(model, CUTS[1] if name.startswith("nan-") else 0, weight, 12 if name in LATE else 6), guard, pruning,
            *([RestartCallback(CUTS, 0, True, lambda words: None)] if beside else []),
        ],
    )  # fmt: skip
    with norms_in_float64():
        trainer.train()
    state = {path: value.contiguous() for path, value in model.state_dict().items() if "lm_head" not in path}
    return state | seen


def train_own(name: str) -> dict[str, torch.Tensor]:
    """The weights that a loop which knows nothing of several processes comes to, but that DDP averages gradients."""
    model = adapted()
    times = {"total_steps": STEPS, "prune_start": 2, "prune_end": 11, "frequency": 3, **OWN[name]}

    def pruner_of(model: nn.Module) -> Pruner | RankPruner:
        return RankPruner(model, rank=2, **times) if name.endswith("rank") else Pruner(model, sparsity=0.4, **times)

    ids = torch.randint(3, 99, (STEPS * GLOBAL_BATCH, LENGTH), generator=torch.Generator().manual_seed(7))
    own = GLOBAL_BATCH // launched()
    with norms_in_float64():
        if name.startswith("trainer"):
            parts = 2 if name.endswith("accumulation") else 1
            arguments = TrainingArguments(
                output_dir=sys.argv[1] + "/run", max_steps=STEPS, per_device_train_batch_size=own // parts,
                gradient_accumulation_steps=parts, learning_rate=5e-3, use_cpu=True, report_to="none",
                save_strategy="no", disable_tqdm=True, weight_decay=0.0,
            )  # fmt: skip
            rows, pruner = [{"input_ids": row, "labels": row} for row in ids], pruner_of(model)
            Trainer(model, arguments, train_dataset=rows, callbacks=[PruningCallback(pruner)]).train()
        else:
            wrapped, pruner = model, None if name == "given" else pruner_of(model)
            if launched() > 1:
                join(torch.device("cpu"))
                wrapped = DistributedDataParallel(model)
            pruner = pruner or pruner_of(wrapped)
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
            for batch in ids.split(GLOBAL_BATCH):
                part = batch.chunk(launched())[rank()]
                wrapped(input_ids=part, labels=part).loss.backward()
                pruner.observe()
                optimizer.step()
                pruner.step(optimizer)
                optimizer.zero_grad()
    state = {path: value.contiguous() for path, value in model.state_dict().items() if "lm_head" not in path}
    return state | at_cut(pruner)


def announced_apart() -> str:
    """What an export says of processes that train apart after all is done."""
    model = adapted()
    if rank() == 1:
        next(p for p in model.parameters() if p.requires_grad).data += 1e-12
    compare = announce(model)
    barrier()
    return said_by(compare)


def not_averaged() -> str:
    """What a loop is told in which each process trains by itself."""
    model = adapted()
    pruner = Pruner(model, sparsity=0.4, total_steps=3, schedule="one-shot", prune_start=1, criterion="magnitude")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])

    def steps() -> None:
        for number in range(2):
            ids = torch.arange(8).unsqueeze(0) + 3 + number * rank()  # only the step after the cut is another one
            model(input_ids=ids, labels=ids).loss.backward()
            pruner.observe()
            optimizer.step()
            pruner.step(optimizer)
            optimizer.zero_grad()

    return said_by(steps)


def said_by(work: Callable[[], None]) -> str:
    try:
        work()
    except DisagreementError as error:
        return str(error)
    return ""


def main(folder: Path) -> None:
    for name in OWN:
        found = train_own(name)
        if rank() == 0:
            save_file(found, folder / f"own-{name}.safetensors")
    for name, case in CASES.items():
        found = train(name, *case)
        if rank() == 0:
            save_file(found, folder / f"{name}.safetensors")
    weights = {"lora": "q_proj.lora_B", "rewritten": "down_proj.base_layer.weight", "rank": "q_proj.lora_B"}
    weights["last"] = weights["lora"]
    for name, case in (FAULTS | LATE).items() if launched() > 1 else ():
        said = said_by(partial(train, name, *case, weights.get(name, "")))
        (folder / f"fault-{name}-{rank()}.json").write_text(json.dumps(said))
    if launched() > 1:
        apart = {"export": announced_apart(), "own": not_averaged()}
        (folder / f"apart-{rank()}.json").write_text(json.dumps(apart))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
