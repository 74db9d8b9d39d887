"""Loops that others write: how they call the model, in which order they call the pruner, with which optimiser."""

import copy

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from tiny import CHECKPOINTING, tiny_llama
from torch.nn.functional import cross_entropy
from torch.optim import LBFGS, SGD, Adafactor, AdamW
from transformers.optimization import Adafactor as OldAdafactor

from secateur import Pruner, RankPruner
from secateur.models.surgery.moments import check_states, cut_state
from secateur.system.errors import InputError

IDS = torch.randint(3, 99, (40, 16), generator=torch.Generator().manual_seed(7))
MASK = torch.ones(4, 16, dtype=torch.long)
MASK[:, 8:] = 0


def adapted(**options):
    torch.manual_seed(0)
    base = tiny_llama(layers=2, dtype=torch.float64)
    return get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", **options), autocast_adapter_dtype=False)


def pruner_for(model, **options):
    return Pruner(model, sparsity=0.4, total_steps=4, prune_start=1, prune_end=3, frequency=2, **options)


def labels(ids):
    return ids.where(MASK.bool(), -100)


def by_name(model, ids):
    return model(input_ids=ids, attention_mask=MASK, labels=labels(ids)).loss


def by_position(model, ids):
    return model(ids, MASK, labels=labels(ids)).loss


def by_embeddings(model, ids):
    states = model.get_input_embeddings()(ids)
    return model(inputs_embeds=states, attention_mask=MASK, labels=labels(ids)).loss


def of_the_base(model, ids):
    return by_name(model.get_base_model(), ids)


def of_the_decoder(model, ids):
    base = model.get_base_model()
    logits = base.lm_head(base.model(input_ids=ids, attention_mask=MASK).last_hidden_state)
    return cross_entropy(logits[:, :-1].flatten(0, 1), labels(ids)[:, 1:].flatten(), ignore_index=-100)


def with_a_look(model, ids):
    model(input_ids=IDS[:30], labels=IDS[:30])  # nobody goes back through it
    return by_name(model, ids)


CALLS = (by_name, by_position, by_embeddings, of_the_base, of_the_decoder, with_a_look)


def train(model, pruner, call=by_name, make=SGD, steps=4):
    optimizer = make([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(steps):
        model.train(step % 2 == 0)  # a callback's model.eval() changes no score
        call(model, IDS[4 * step : 4 * step + 4]).backward()
        pruner.observe()
        optimizer.step()
        pruner.step(optimizer)
        optimizer.zero_grad()
    return model.eval()(input_ids=IDS[:2]).logits.detach()


@pytest.mark.parametrize("criterion", ["gate", "wanda", "taylor"])
def test_scores_are_the_same_however_the_model_is_called(criterion) -> None:
    """Padding counts in none of them, and each step's sequences do, once."""
    found = []
    for call in CALLS:
        pruner = pruner_for(model := adapted(), criterion=criterion)
        train(model, pruner, call, steps=2)
        found.append(pruner.scores)
    for call, scores in zip(CALLS, found, strict=True):
        for name, expected in found[0].items():  # the decoder's loss is taken in float64, the model's in float32
            torch.testing.assert_close(scores[name], expected, rtol=1e-5, atol=0, msg=f"{call.__name__} {name}")


def test_rank_pruners_leave_padding_out_however_the_model_is_called() -> None:
    found = []
    for call in (by_name, of_the_decoder):
        pruner = RankPruner(adapted(), rank=2, criterion="sparsegpt", total_steps=4, prune_start=2, prune_end=4)
        train(pruner.model, pruner, call, steps=1)
        found.append(pruner._averages["model.layers.0.mlp.down_proj"].tensors["second_z"])
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("reentrant", [False, True])
def test_two_passes_before_a_backward_keep_their_own_masks_under_checkpointing(reentrant) -> None:
    def both(model, ids):
        return by_name(model, ids) + model(input_ids=ids.flip(1), labels=ids.flip(1)).loss

    found = []
    for checkpointing in (False, True):
        model = adapted()
        if checkpointing:
            model.enable_input_require_grads()
            getattr(model.get_base_model(), f"{CHECKPOINTING}_enable")({"use_reentrant": reentrant})
            model.config.use_cache = False
        pruner = pruner_for(model, criterion="wanda")
        optimizer = SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        model.train()
        both(model, IDS[:4]).backward()
        pruner.observe()
        optimizer.step()
        found.append(pruner.scorer.statistics.moments["model.layers.1.mlp.down_proj"].square)
    torch.testing.assert_close(found[1], found[0])


def adamw_8bit(parameters, lr):
    optimizers = pytest.importorskip("bitsandbytes").optim
    return optimizers.AdamW8bit(parameters, lr=lr, min_8bit_size=16)


def adafactor(parameters, lr):
    return OldAdafactor(parameters, lr=lr, scale_parameter=False, relative_step=False)


@pytest.mark.parametrize("make", [Adafactor, adafactor, adamw_8bit])
def test_moments_in_other_shapes_shrink_too(make) -> None:
    """The result is near the masked run's: means over what went, and scales of 8-bit blocks, are not the same."""
    found = []
    for shrink in (True, False):
        model = adapted()
        pruner = pruner_for(model, shrink=shrink, criterion="magnitude")
        found.append(train(model, pruner, make=make))
    assert float((found[0] - found[1]).norm() / found[1].norm()) < 0.02
    train(model := adapted(), RankPruner(model, rank=2, total_steps=4, prune_start=1, prune_end=3), make=make)


def test_adafactors_moments_follow_their_side() -> None:
    shape, index = torch.Size([4, 6]), torch.tensor([0, 2])
    state = {"exp_avg_sq_row": torch.arange(4), "exp_avg_sq_col": torch.arange(6), "step": torch.tensor(3), "RMS": 0.1}
    assert [len(cut_state(state, shape, dim, index)[f"exp_avg_sq_{side}"]) for dim in (0, 1) for side in ("row", "col")
            ] == [2, 6, 4, 2]  # fmt: skip
    state = {"row_var": torch.ones(4, 1), "col_var": torch.ones(1, 6)}
    assert cut_state(state, shape, 1, index)["row_var"].shape == (4, 1)
    assert cut_state(state, shape, 1, index)["col_var"].shape == (1, 2)


def test_an_optimiser_whose_state_cannot_be_cut_is_refused_after_its_first_step() -> None:
    model = adapted()
    pruner = pruner_for(model, criterion="magnitude")
    optimizer = LBFGS([p for p in model.parameters() if p.requires_grad], max_iter=1)
    by_name(model, IDS[:4]).backward()
    pruner.observe()
    optimizer.step(lambda: by_name(model, IDS[:4]))
    with pytest.raises(InputError, match=r"LBFGS: the optimiser's .* does not follow its parameter's shape \(4, 64\)"):
        pruner.step(optimizer)


def test_a_parameter_without_entries_is_never_cut() -> None:
    """As LoRA has them on shared experts of width 0."""
    empty = torch.nn.Parameter(torch.zeros(0, 4))
    optimizer = AdamW([empty])
    empty.grad = torch.zeros(0, 4)
    optimizer.step()
    check_states(optimizer)


def test_calls_in_another_order_are_refused_where_they_change_the_result() -> None:
    def run(*calls, criterion="lora", kind=Pruner):
        model = adapted()
        times = {"total_steps": 4, "prune_start": 1, "prune_end": 3, "frequency": 1}
        pruner = (
            Pruner(model, sparsity=0.4, criterion=criterion, **times)
            if kind is Pruner
            else kind(model, rank=2, **times)
        )
        optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        known = {
            "backward": lambda: by_name(model, IDS[:4]).backward(), "observe": pruner.observe,
            "update": optimizer.step, "step": lambda: pruner.step(optimizer), "zero": optimizer.zero_grad,
        }  # fmt: skip
        for call in calls * 4:
            known[call]()
        return pruner.steps_done

    for kind in (Pruner, RankPruner):
        with pytest.raises(InputError, match=r"step\(\) was called before the optimiser's update"):
            run("backward", "observe", "step", "update", "zero", kind=kind)
        with pytest.raises(InputError, match=r"observe\(\) was called before in this step"):
            run("backward", "observe", "backward", "observe", "update", "step", "zero", kind=kind)
        with pytest.raises(InputError, match=r"observe\(\) has not been called"):
            run("backward", "update", "step", "zero", kind=kind)
    assert run("backward", "update", "observe", "step", "zero", criterion="gate") == 4, "what scores apart may be late"
    assert run("backward", "update", "zero", "observe", "step", criterion="gate") == 4
    assert run("backward", "observe", "zero", "backward", "observe", "update", "step", "zero") == 4, "a step left out"


def test_steps_in_the_middle_of_an_accumulation_are_refused() -> None:
    accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)
    model = adapted()
    pruner = pruner_for(model)
    model, optimizer = accelerator.prepare(model, AdamW([p for p in model.parameters() if p.requires_grad]))
    for number in range(2):
        with accelerator.accumulate(model):
            accelerator.backward(by_name(model, IDS[:4]))
            if number == 0:
                with pytest.raises(InputError, match="under `if accelerator.sync_gradients:`"):
                    pruner.step(optimizer)
                continue
            pruner.observe()
            optimizer.step()
            pruner.step(optimizer)
    assert pruner.steps_done == 1


def test_a_copy_of_the_model_is_not_watched() -> None:
    found = []
    for copied in (False, True):
        pruner = pruner_for(model := adapted(), criterion="gate")
        if copied:
            by_name(copy.deepcopy(model), IDS[:30][:4].flip(0)).backward()
        train(model, pruner, steps=1)
        found.append(pruner.scores["layer.0.ffn"])
    assert torch.equal(*found)


def test_an_adapter_that_is_merged_is_said_before_an_export(tmp_path) -> None:
    pruner = pruner_for(model := adapted())
    model.merge_adapter()
    with pytest.raises(InputError, match="the adapter is merged already: unmerge it"):
        pruner.export(tmp_path / "small")


def test_a_run_that_ends_before_its_last_cut_says_so(tmp_path, caplog) -> None:
    model = adapted()
    pruner = Pruner(model, sparsity=0.4, total_steps=8, prune_start=0, prune_end=8, frequency=2)
    train(model, pruner, steps=5)
    pruner.export(tmp_path / "early")
    share = pruner.schedule.progress(4)
    assert f"follow step 8, and 5 steps were made: {100 * share:.0f} % of the target is gone" in caplog.text
    caplog.clear()
    train(model, pruner, steps=3)
    pruner.export(tmp_path / "whole")
    assert "last cut" not in caplog.text
