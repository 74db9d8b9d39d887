"""Run by torchrun in test_distributed: the bare training of one process or of two, in float64."""

import sys

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tiny import tiny_llama
from transformers import TrainingArguments

from secateur import Pruner, PruningCallback, RankPruner
from secateur.distributed import leave
from secateur.finetune import AutocastTrainer
from secateur.launcher import rank
from secateur.loss import causal_lm_loss

STEPS, GLOBAL_BATCH, LENGTH = 14, 8, 24


def main(output: str, batch: int, criterion: str, compensate: str, shrink: bool, disagree: bool) -> None:
    torch.manual_seed(0)
    model = get_peft_model(
        tiny_llama(layers=2, dtype=torch.float64),
        LoraConfig(r=4, target_modules="all-linear"),
        autocast_adapter_dtype=False,
    )
    pruner: Pruner | RankPruner
    times = {"total_steps": STEPS, "prune_start": 3, "prune_end": 11, "frequency": 4}
    if criterion.startswith("rank-"):
        pruner = RankPruner(model, rank=2, criterion=criterion.removeprefix("rank-"), **times)
    else:
        pruner = Pruner(model, sparsity=0.4, criterion=criterion, compensate=compensate, shrink=shrink, **times)
    if disagree and rank() == 1:
        pruner.scores = {name: -scores for name, scores in pruner.scores.items()}
        pruner.criterion = __import__("secateur.criteria", fromlist=["CRITERIA"]).CRITERIA["random"]
        pruner.scoring = pruner.criterion.options("random", pruner.scoring)
    ids = torch.randint(3, 99, (STEPS * GLOBAL_BATCH, LENGTH), generator=torch.Generator().manual_seed(7))
    trainer = AutocastTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=output + ".run", max_steps=STEPS, per_device_train_batch_size=batch, learning_rate=5e-3,
            use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, weight_decay=0.0,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in ids],
        compute_loss_func=causal_lm_loss,
        callbacks=[PruningCallback(pruner)],
    )  # fmt: skip
    trainer.train()
    if rank() == 0:
        state = {name: value.contiguous() for name, value in model.state_dict().items() if "lm_head" not in name}
        if isinstance(pruner, RankPruner):
            seen = {f"keep.{name}": torch.tensor(rank) for name, rank in pruner.ranks.items()}
        else:
            seen = {f"keep.{name}": mask for name, mask in pruner.keep.items()}
            seen |= {f"scores.{name}": value for name, value in pruner.scores_before_cuts.items()}
        save_file(state | seen, output)
    leave()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5] == "shrink", "disagree" in sys.argv)
