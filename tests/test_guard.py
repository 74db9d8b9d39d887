"""Steps with gradients that are not finite are left out, named, and end the run when they do not end."""

import pytest
import torch
from test_pruner import BATCH, LR, STEPS, adapted, pruner_for, rows
from transformers import Trainer, TrainingArguments

from secateur import PruningCallback
from secateur.errors import NumericsError
from secateur.guard import NumericsGuard
from secateur.progress import Progress


class Poisoned(Trainer):
    """A Trainer whose loss is NaN at some steps."""

    poisoned: frozenset[int] = frozenset()

    def compute_loss(self, model, inputs, **kwargs):
        loss = super().compute_loss(model, inputs, **kwargs)
        return loss * float("nan") if self.state.global_step + 1 in self.poisoned else loss


def train(tmp_path, poisoned, policy, **options):
    model = adapted(layers=2)
    pruner = pruner_for(model, total_steps=STEPS, **options)
    guard = NumericsGuard(policy, Progress(STEPS))
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=LR, use_cpu=True,
        report_to="none", save_strategy="no", disable_tqdm=True, logging_nan_inf_filter=False,
    )  # fmt: skip
    data = [{"input_ids": row, "labels": row} for row in rows()]
    trainer = Poisoned(
        model=model,
        args=arguments,
        train_dataset=data,
        callbacks=[guard, PruningCallback(pruner, leave_out=lambda: guard.bad)],
    )
    trainer.poisoned = frozenset(poisoned)
    trainer.train()
    return model, pruner


@pytest.mark.parametrize("criterion", ["lora", "gate", "wanda"])
def test_bad_steps_are_left_out(tmp_path, capsys, criterion) -> None:
    model, pruner = train(tmp_path, {3, 4, 9, 18}, "stop", criterion=criterion)  # 9 and 18 are cuts
    assert pruner.sparsity == pytest.approx(0.4, abs=0.01)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert all(torch.isfinite(scores).all() and scores.any() for scores in pruner.scores.values())
    said = capsys.readouterr().err
    assert "step 3: the gradient of " in said
    assert said.count("the step is left out") == 4


def test_three_in_a_row_end_the_run(tmp_path) -> None:
    with pytest.raises(NumericsError, match="step 7: the gradient of .*lora_.* is not finite, like those of the 2"):
        train(tmp_path, {5, 6, 7}, "stop")
    train(tmp_path, {5, 6, 7, 8}, "skip")


def test_a_cut_needs_a_score(tmp_path) -> None:
    with pytest.raises(NumericsError, match="step 9: no step before the first cut had finite gradients"):
        train(tmp_path, range(1, 12), "skip")
