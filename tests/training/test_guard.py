"""Steps with gradients that are not finite are left out, named, and end the run when they do not end."""

import pytest
import torch
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

from secateur import PruningCallback
from secateur.models.memory import TRAIN_LESS, memory_for
from secateur.system.errors import NumericsError, OutOfMemoryError
from secateur.system.progress import Progress
from secateur.training.guard import START_UP, NumericsGuard, first_faulty_module
from secateur.training.trainer import AutocastTrainer
from tests.pruning.test_pruner import BATCH, LR, STEPS, adapted, pruner_for, rows


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
        callbacks=[guard, PruningCallback(pruner, guard=guard)],
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


LAYER = "model.layers.1.mlp.up_proj"


def poisoning(model, steps, guard, value=float("nan"), backward=False):
    """From now on a layer's output, or its gradient, has such a value in those steps."""

    def forward(module, args, output):
        if guard.step_now() not in steps:
            return output
        if backward:
            if output.requires_grad:
                output.register_hook(lambda gradient: gradient * value)
            return output
        return output * value

    model.get_base_model().get_submodule(LAYER).register_forward_hook(forward)


def train_watched(tmp_path, steps, policy="stop", backward=False, **options):
    """As `secateur prune` trains: losses are seen, and modules looked at."""
    model = adapted(layers=2)
    pruner = pruner_for(model, total_steps=STEPS)
    guard = NumericsGuard(policy, Progress(STEPS))
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=LR, use_cpu=True,
        report_to="none", save_strategy="no", disable_tqdm=True, logging_nan_inf_filter=False,
    )  # fmt: skip
    data = [{"input_ids": row, "labels": row} for row in rows()]
    trainer = AutocastTrainer(
        model=model, args=arguments, train_dataset=data, callbacks=[guard, PruningCallback(pruner, guard=guard)]
    )
    trainer.guard = guard
    guard.step_now = lambda: trainer.state.global_step + 1
    poisoning(model, steps, guard, backward=backward, **options)
    trainer.train()
    return model, pruner


def test_the_first_module_that_is_not_finite_is_named(tmp_path, capsys) -> None:
    model, _ = train_watched(tmp_path, {3, 4})
    said = capsys.readouterr().err
    assert f"step 3: the loss is not finite, first in the output of {LAYER}; the step is left out" in said
    assert said.count("the step is left out") == 2
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_an_infinite_gradient_behind_a_finite_loss(tmp_path, capsys) -> None:
    train_watched(tmp_path, {3}, value=float("inf"), backward=True)
    said = capsys.readouterr().err
    assert "step 3: the gradient of " in said
    assert "though the output of every module is" in said


def test_a_look_at_the_modules_changes_nothing(tmp_path) -> None:
    model = adapted(layers=2)
    before, ids = torch.random.get_rng_state(), rows(2)
    assert first_faulty_module(model, lambda: model(ids)) is None
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_loss_alone_is_looked_at(tmp_path) -> None:
    """Without a gradient (all targets masked, say) nothing else would tell."""
    guard, model = NumericsGuard("stop", Progress(STEPS)), torch.nn.Linear(2, 2)
    guard.saw(torch.tensor(float("inf")), None)
    guard.on_pre_optimizer_step(
        TrainingArguments(output_dir=str(tmp_path), use_cpu=True), TrainerState(), TrainerControl(), model=model
    )
    assert guard.note() == {"left_out": "the loss is not finite"}


@pytest.mark.parametrize(("policy", "ends"), [("stop", True), ("skip", False)])
def test_scores_that_are_not_finite_follow_the_policy(tmp_path, capsys, policy, ends) -> None:
    model = adapted(layers=2)
    pruner = pruner_for(model, total_steps=STEPS)
    real = pruner.scorer.criterion
    bad_steps = {2, 3, 6, 7, 8}

    class Overflowing:
        def __getattr__(self, name):
            return getattr(real, name)

        def score(self, pool, evidence, scoring):
            scores = real.score(pool, evidence, scoring)
            bad = pruner.steps_done + 1 in bad_steps and pool is pruner.live.pools[-1]
            return scores * float("inf") if bad else scores

    pruner.scorer.criterion = Overflowing()
    guard = NumericsGuard(policy, Progress(STEPS))
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=LR, use_cpu=True,
        report_to="none", save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    data = [{"input_ids": row, "labels": row} for row in rows()]
    trainer = Trainer(
        model=model, args=arguments, train_dataset=data, callbacks=[guard, PruningCallback(pruner, guard=guard)]
    )
    if ends:
        with pytest.raises(NumericsError, match="step 8: the scores of layer.1.* are not finite, like those of the 2"):
            trainer.train()
    else:
        trainer.train()
        assert pruner.sparsity == pytest.approx(0.4, abs=0.01)
    said = capsys.readouterr().err
    assert said.count("the step is left out of the averages") == len(bad_steps)
    assert all(torch.isfinite(scores).all() for scores in pruner.scores.values())


def start_up(tmp_path, bad_steps, policy="stop", fp16=True):
    """What a float16 loss scaler shows the guard: infinite gradients until its scale fits."""
    guard = NumericsGuard(policy, Progress(60))
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    arguments.fp16 = fp16  # on a CPU the argument itself is refused
    left_out = []
    for step in range(1, 41):
        model = torch.nn.Linear(2, 2)
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, float("inf") if step in bad_steps else 1.0)
        guard.on_pre_optimizer_step(arguments, TrainerState(global_step=step - 1), TrainerControl(), model=model)
        left_out += [step] * guard.bad
        assert (model.weight.grad is None) == guard.bad
    return left_out


def test_a_loss_scaler_may_look_for_its_scale(tmp_path, capsys) -> None:
    assert start_up(tmp_path, set(range(1, 9))) == list(range(1, 9))
    assert "left out" not in capsys.readouterr().err  # expected, so nothing is said
    with pytest.raises(NumericsError, match="step 12"):  # after a good step they count
        start_up(tmp_path, {1, 2, 10, 11, 12})
    with pytest.raises(NumericsError, match=f"step {START_UP + 3}"):  # and it does not look forever
        start_up(tmp_path, set(range(1, 41)))
    with pytest.raises(NumericsError, match="step 3"):
        start_up(tmp_path, {1, 2, 3}, fp16=False)


def test_a_real_loss_scaler_skips_its_start(tmp_path) -> None:
    """GradScaler on the CPU: overflowing steps leave weights and averages alone, then training goes on."""
    model = adapted(layers=2)
    pruner = pruner_for(model, total_steps=STEPS)
    guard = NumericsGuard("stop", Progress(STEPS))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-30)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    arguments.fp16 = True
    callback, left_out = PruningCallback(pruner, guard=guard), []
    for step, ids in enumerate(rows().split(BATCH)):
        scaler.scale(model(ids, labels=ids).loss * 100).backward()
        scaler.unscale_(optimizer)
        state = TrainerState(global_step=step)
        guard.on_pre_optimizer_step(arguments, state, TrainerControl(), model=model)
        callback.on_pre_optimizer_step(arguments, state, TrainerControl(), model=model, optimizer=optimizer)
        if guard.bad:
            left_out.append(step)
            assert not any(scores.any() for scores in pruner.scores.values())
        scaler.step(optimizer)
        scaler.update()
        callback.on_optimizer_step(arguments, state, TrainerControl(), optimizer=optimizer)
        optimizer.zero_grad()
    assert left_out == list(range(len(left_out)))
    assert 0 < len(left_out) < 4
    assert pruner.sparsity == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.linalg.LinAlgError("cholesky: the input is not positive-definite"), False),
        (NotImplementedError("no kernel"), False),
        (RecursionError("too deep"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
    ],
)
def test_only_memory_is_called_memory(error, is_memory) -> None:
    with pytest.raises(OutOfMemoryError if is_memory else type(error)) as raised:  # noqa: SIM117
        with memory_for("training", TRAIN_LESS):
            raise error
    if is_memory:
        assert "out of memory while training" in str(raised.value)
        for remedy in ("--batch-size", "--gradient-checkpointing", "--load-in"):
            assert remedy in str(raised.value)
