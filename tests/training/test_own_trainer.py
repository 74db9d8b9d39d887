"""Somebody else's Trainer: what accelerate leaves on the model, and what cannot be pruned in it."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny import tiny_llama, tiny_tokenizer
from transformers import Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from secateur import Pruner, PruningCallback, RankPruner
from secateur.checkpoint.comparing import logits_of
from secateur.models.devices import without_autocast
from secateur.parallel.replicas import unwrapped
from secateur.pruning import pruner as pruner_module
from secateur.system.errors import InputError
from secateur.training.callback import unscaled

STEPS, LENGTH = 6, 16


def adapted():
    torch.manual_seed(0)
    return get_peft_model(tiny_llama(layers=2), LoraConfig(r=4, target_modules="all-linear"))


def pruner_for(model, **options):
    return Pruner(model, **{"sparsity": 0.4, "prune_start": 1, "prune_end": 4, "frequency": 1, **options})


def arguments(folder, kind=TrainingArguments, **options):
    return kind(
        output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=2, learning_rate=1e-2, use_cpu=True,
        report_to="none", disable_tqdm=True, **{"save_strategy": "no", **options},
    )  # fmt: skip


def rows():
    ids = torch.randint(3, 99, (32, LENGTH), generator=torch.Generator().manual_seed(7)).tolist()
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


@pytest.mark.parametrize("kind", ["trainer", "sft"])
def test_autocast_left_on_a_model_is_no_fault_of_its_export(tmp_path, kind) -> None:
    """bf16, gradient checkpointing and accumulation: in the precision of its weights the model is what was written."""
    model = adapted()
    pruner = pruner_for(model, criterion="gate")
    options = {"bf16": True, "gradient_checkpointing": True, "gradient_accumulation_steps": 2}
    if kind == "trainer":
        trainer = Trainer(model, arguments(tmp_path / "run", **options), train_dataset=rows())
    else:
        given = arguments(tmp_path / "run", SFTConfig, max_length=LENGTH, **options)
        data = rows().remove_columns("labels")
        trainer = SFTTrainer(model, given, train_dataset=data, processing_class=tiny_tokenizer())
    trainer.add_callback(PruningCallback(pruner))
    trainer.train()
    wrapped = model.forward
    assert hasattr(wrapped, "__wrapped__"), "accelerate's autocast is there"
    report = pruner.export(tmp_path / "small", tokenizer=tiny_tokenizer())
    assert report.merge_kl < 1e-9
    assert model.forward == wrapped, "and training may go on with it"


def test_an_autocast_around_the_calls_narrows_nothing() -> None:
    found = []
    for narrow in (False, True):
        model = adapted()
        pruner = pruner_for(model, total_steps=3, prune_end=2)
        ids = torch.arange(3, 19).unsqueeze(0)
        for _ in range(2):
            model(input_ids=ids, labels=ids).loss.backward()
            with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
                pruner.observe()
                pruner.step(torch.optim.SGD([p for p in model.parameters() if p.requires_grad]))
            model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            found.append((pruner.scores, logits_of(model, ids)))
    (scores, logits), (narrow_scores, narrow_logits) = found
    assert all(torch.equal(scores[name], narrow_scores[name]) for name in scores)
    assert torch.equal(logits, narrow_logits)


def test_the_best_model_is_one_after_the_last_cut(tmp_path) -> None:
    """An earlier one has other units, so it does not fit: it was the end of the run."""
    model = adapted()
    pruner = pruner_for(model)
    options = {
        "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1,
        "load_best_model_at_end": True, "metric_for_best_model": "eval_loss",
    }  # fmt: skip
    trainer = Trainer(model, arguments(tmp_path, **options), train_dataset=rows(), eval_dataset=rows().select(range(4)))
    trainer.add_callback(PruningCallback(pruner))
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert min(losses[:3]) < min(losses[3:]), "the best of all is one that does not fit"
    assert trainer.state.best_metric == min(losses[3:])


def test_trainers_that_no_cut_can_follow_are_refused_at_their_start(tmp_path) -> None:
    model = adapted()
    given = arguments(tmp_path)
    refused = {"Trainer trains another model than the pruner's": Trainer(adapted(), given, train_dataset=rows())}
    several = arguments(tmp_path)
    several._n_gpu = 2
    refused["one process for each device"] = Trainer(model, several, train_dataset=rows())
    sharded = arguments(tmp_path)
    sharded.fsdp = "full_shard"
    refused[r"sharded \(FSDP\).*shard_base"] = Trainer(model, given, train_dataset=rows())
    refused[r"sharded \(FSDP\).*shard_base"].args = sharded
    for words, trainer in refused.items():
        trainer.add_callback(PruningCallback(pruner_for(model)))
        with pytest.raises(InputError, match=words):
            trainer.callback_handler.on_train_begin(trainer.args, trainer.state, trainer.control)


@pytest.mark.parametrize("clipped", [True, False])
def test_a_loss_scale_is_undone_once_and_an_overflow_left_out(clipped) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    optimizer.scaler = scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale((weight * torch.tensor([1.0, 2.0])).sum()).backward()
    if clipped:  # which undoes it
        scaler.unscale_(optimizer)
    assert unscaled(optimizer)
    assert weight.grad.tolist() == [1.0, 2.0]
    scaler.step(optimizer)
    scaler.update()
    scaler.scale((weight * float("inf")).sum()).backward()
    assert not unscaled(optimizer)


def test_wrappers_are_taken_off_or_refused() -> None:
    model = adapted()
    assert unwrapped(torch.compile(model, backend="eager")) is model
    for kind in (Pruner, RankPruner):
        with pytest.raises(InputError, match="one process for each device"):
            kind(torch.nn.DataParallel(model), **({"sparsity": 0.4} if kind is Pruner else {"rank": 2}))


def test_processes_that_disagree_leave_no_result(tmp_path, monkeypatch) -> None:
    def announce(model):
        def compare() -> None:
            raise InputError("apart")

        return compare

    monkeypatch.setattr(pruner_module, "announce", announce)
    with pytest.raises(InputError, match="apart"):
        pruner_for(adapted(), criterion="magnitude", total_steps=STEPS).export(tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_without_autocast_is_undone_by_an_error() -> None:
    model = adapted()
    model._original_forward = model.forward
    model.forward = narrow = lambda *args, **kwargs: None
    with pytest.raises(ZeroDivisionError), without_autocast(model):
        assert model.forward == model._original_forward
        1 / 0  # noqa: B018
    assert model.forward is narrow
