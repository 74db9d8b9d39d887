"""A user's own Trainer: resumed from its checkpoint with `pruner.load`, it ends where it would have, to the bit."""

import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_llama
from transformers import SchedulerType, Trainer, TrainerCallback, TrainingArguments

from secateur import PruningCallback
from secateur.system.errors import InputError
from secateur.training.checkpoints import fault_of, find_latest
from tests.pruning.test_pruner import BATCH, LR, pruner_for, rows

STEPS = 24


class Died(Exception):
    pass


class Dying(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 14:
            raise Died


def trainer_in(folder, *callbacks, steps=STEPS, **options):
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.3)
    model = get_peft_model(tiny_llama(layers=2), lora)
    pruner = pruner_for(model, **options)
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=LR, use_cpu=True,
        report_to="none", save_strategy="steps", save_steps=5, save_total_limit=2, disable_tqdm=True, seed=3,
    )  # fmt: skip
    data = [{"input_ids": row, "labels": row} for row in rows()]
    trainer = Trainer(model=model, args=arguments, train_dataset=data, callbacks=[PruningCallback(pruner), *callbacks])
    return trainer, model, pruner


WAYS = {
    "shrunk": {},
    "masked": {"shrink": False},
    "compensated": {"criterion": "obs", "compensate": "lstsq"},
    "in sequence": {"criterion": "gate", "compensate": "sequential", "calibration_tokens": 700},
}


@pytest.mark.parametrize("way", list(WAYS))
def test_resumed_is_uninterrupted(tmp_path, way) -> None:
    trainer, whole, pruner = trainer_in(tmp_path / "whole", **WAYS[way])
    trainer.train()
    assert len(pruner.cuts) == 3
    trainer, _, _ = trainer_in(tmp_path / "out", Dying(), **WAYS[way])
    with pytest.raises(Died):
        trainer.train()
    checkpoint, skipped = find_latest(tmp_path / "out")
    assert checkpoint.name == "checkpoint-10"  # after the cut of step 9, before that of 14
    assert not skipped
    trainer, model, resumed = trainer_in(tmp_path / "out", **WAYS[way])
    resumed.load(checkpoint)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.cuts == pruner.cuts
    assert all(torch.equal(resumed.keep[name], keep) for name, keep in pruner.keep.items())
    assert model.state_dict().keys() == whole.state_dict().keys()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


@pytest.mark.parametrize("shrink", [True, False])
def test_a_pruner_that_was_not_loaded_is_refused(tmp_path, shrink) -> None:
    """With shrunk shapes PEFT refuses the weights before; with masks nothing else would tell."""
    trainer, _, _ = trainer_in(tmp_path, Dying(), shrink=shrink)
    with pytest.raises(Died):
        trainer.train()
    trainer, _, _ = trainer_in(tmp_path, shrink=shrink)
    kind, words = (
        (RuntimeError, "size mismatch") if shrink else (InputError, r"step 10 and the pruner stands at step 0")
    )
    with pytest.raises(kind, match=words):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))


def test_its_checkpoints_are_sealed(tmp_path) -> None:
    trainer, _, _ = trainer_in(tmp_path, Dying())
    with pytest.raises(Died):
        trainer.train()
    newest = tmp_path / "checkpoint-10"
    assert fault_of(newest) is None
    (newest / "pruner.json").unlink()
    assert find_latest(tmp_path)[0].name == "checkpoint-5"
    shutil.rmtree(newest)


def test_one_checkpoint_at_a_time_is_refused(tmp_path) -> None:
    trainer, _, _ = trainer_in(tmp_path)
    trainer.args.save_total_limit = 1
    with pytest.raises(InputError, match="save_total_limit is 1: give 2"):
        trainer.train()


@pytest.mark.parametrize("where", ["last", "first"])
def test_no_step_is_taken_after_the_last(tmp_path, where) -> None:
    """A run of an epoch (24 steps) and a bit is resumed from its last step: Trainer alone would take one more."""

    def trainer_of_26():
        trainer, model, pruner = trainer_in(tmp_path, steps=26)
        trainer.args.lr_scheduler_type = SchedulerType.CONSTANT  # the usual one ends with a rate of 0
        if where == "first":
            callbacks = trainer.callback_handler.callbacks
            callbacks.insert(0, callbacks.pop())
        return trainer, model, pruner

    trainer, whole, _ = trainer_of_26()
    trainer.train()
    checkpoint, _ = find_latest(tmp_path)
    assert checkpoint.name == "checkpoint-26"
    trainer, model, pruner = trainer_of_26()
    pruner.load(checkpoint)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert (trainer.state.global_step, pruner.steps_done) == (26, 26)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in whole.state_dict().items())
    assert {int(state["step"]) for state in trainer.optimizer.state_dict()["state"].values()} == {26}
    assert find_latest(tmp_path)[0] == checkpoint
