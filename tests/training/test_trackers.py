"""What trackers are told in a Trainer of the user's own."""

from transformers import Trainer, TrainerCallback, TrainingArguments

from secateur import PruningCallback
from tests.pruning.test_pruner import BATCH, LR, adapted, pruner_for, rows


class Tracker(TrainerCallback):
    """Keeps what it is told, as the callback of W&B would send it."""

    def __init__(self) -> None:
        self.told: list[dict[str, float]] = []

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if "loss" in logs:
            self.told.append(dict(logs))


def test_a_trainer_of_the_users_own(tmp_path) -> None:
    model = adapted(layers=2)
    pruner, tracker = pruner_for(model, prune_start=2, prune_end=6, frequency=2), Tracker()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path), max_steps=8, per_device_train_batch_size=BATCH, learning_rate=LR, use_cpu=True,
            report_to="none", save_strategy="no", disable_tqdm=True, logging_steps=1,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in rows(8 * BATCH)],
        callbacks=[tracker],
    )  # fmt: skip
    trainer.callback_handler.callbacks.insert(0, PruningCallback(pruner))
    trainer.train()
    said = [line["sparsity"] for line in tracker.told]
    assert said[0] == 0
    assert said == sorted(said)
    assert said[-1] == pruner.sparsity > 0.3
    history = [line for line in trainer.state.log_history if "loss" in line]
    assert [line["sparsity"] for line in history] == said
    assert history[-1]["removed_parameters"] == pruner.removed_params
