"""The pruner: masking = shrinking, the same cuts in every loop, permanence, refusals."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny import CHECKPOINTING, tiny_llama, tiny_tokenizer
from transformers import Trainer, TrainerState, TrainingArguments, get_cosine_schedule_with_warmup
from trl import SFTConfig, SFTTrainer

from secateur import Pruner, PruningCallback, Scoring
from secateur.config.prune import PruneConfig
from secateur.criteria import CRITERIA, Evidence
from secateur.pruning.budget import budget_goal
from secateur.runs.outcome import alternatives
from secateur.system.errors import InputError, NumericsError

STEPS, BATCH, LENGTH = 24, 4, 32
LR = 1e-2


def adapted(dtype=torch.float32, targets="all-linear", seed=0, **options):
    torch.manual_seed(seed)
    model = tiny_llama(**{"layers": 4, "dtype": dtype, **options})
    return get_peft_model(model, LoraConfig(r=4, target_modules=targets), autocast_adapter_dtype=False)


def pruner_for(model, **options):
    defaults = dict(sparsity=0.4, prune_start=4, prune_end=18, frequency=5)
    return Pruner(model, **{**defaults, **options})


def rows(count=STEPS * BATCH):
    generator = torch.Generator().manual_seed(7)
    return torch.randint(3, 99, (count, LENGTH), generator=generator)


def train_bare(model, pruner, clip=1.0, lr_decay=True):
    """A plain PyTorch loop; returns the losses."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, 0, STEPS) if lr_decay else None
    losses = []
    model.train()
    for ids in rows().split(BATCH):
        loss = model(ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        pruner.observe()
        optimizer.step()
        pruner.step(optimizer)
        if schedule is not None:
            schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, optimizer


@pytest.mark.parametrize(
    ("options", "way"),
    [
        ({}, "raw"),
        ({"criterion": "gate"}, "raw"),
        ({"criterion": "wanda"}, "mean"),
        ({"across_layers": "mean"}, "mean"),
    ],
)
def test_layers_compare_as_suits_the_criterion(options, way) -> None:
    """What estimates a change of the loss is on one scale; the user's word goes before that."""
    pruner = pruner_for(adapted(), allocation="global", **options)
    assert pruner.budget.across_layers == way
    config = PruneConfig(model="m", data=("d",), output="o", allocation="global", **options)
    assert budget_goal(config, 0.4, CRITERIA[config.criterion].across_layers).across_layers == way


@pytest.mark.parametrize(
    ("attention", "allocation", "bias"),
    [
        ("kv_group", "uniform", False),
        ("kv_group", "global", True),
        ("query_head", "uniform", True),
        ("query_head", "global", False),
        ("none", "uniform", True),
        ("none", "global", False),
    ],
)
def test_shrinking_is_masking(attention, allocation, bias) -> None:
    check_shrinking_is_masking(attention=attention, allocation=allocation, bias=bias)


@pytest.mark.parametrize(
    "options",
    [
        {"scoring": Scoring(normalize="linear", linears="all")},
        {"scoring": Scoring(normalize="projected", linears="all")},
        {"ema_relative": True},
        {"criterion": "magnitude", "scoring": Scoring(normalize="linear")},
        {"criterion": "random"},
    ],
    ids=["linear", "projected", "relative", "magnitude", "random"],
)
def test_shrinking_is_masking_for_scores_that_look_at_other_units(options) -> None:
    check_shrinking_is_masking(**options)


def check_shrinking_is_masking(bias=False, **options):
    """Same losses, same cuts, same moments on what is left; float64, as Adam amplifies round-off."""
    runs = {}
    for shrink in (True, False):
        model = adapted(torch.float64, bias=bias)
        pruner = pruner_for(model, **options, shrink=shrink, total_steps=STEPS)
        losses, optimizer = train_bare(model, pruner)
        runs[shrink] = (losses, pruner, model, optimizer)
    (losses, shrunk, small, small_opt), (masked_losses, masked, big, big_opt) = runs[True], runs[False]
    assert len(shrunk.cuts) == 3
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(masked_losses), rtol=1e-9, atol=0.0)
    assert all(torch.equal(shrunk.keep[name], masked.keep[name]) for name in shrunk.keep)
    assert shrunk.sparsity == masked.sparsity > 0.39
    for pool in masked.units.pools:
        for member in pool.members:
            stay = member.entries(masked.keep[pool.name])
            a_or_b = "lora_B" if member.dim == 0 else "lora_A"
            pair = [m.get_base_model().get_submodule(member.linear) for m in (small, big)]
            factors = [getattr(module, a_or_b)["default"].weight for module in pair]
            torch.testing.assert_close(factors[0], factors[1].index_select(member.dim, stay), rtol=1e-9, atol=1e-12)
            moments = [o.state[f]["exp_avg"] for o, f in zip((small_opt, big_opt), factors, strict=True)]
            torch.testing.assert_close(moments[0], moments[1].index_select(member.dim, stay), rtol=1e-9, atol=1e-15)


def test_a_cut_changes_the_function_and_the_work(tmp_path) -> None:
    model = adapted()
    before = model(rows(1)).logits.detach()
    pruner = pruner_for(model, total_steps=STEPS)
    size = sum(p.numel() for n, p in model.named_parameters() if "lora" not in n)
    train_bare(model, pruner)
    after = sum(p.numel() for n, p in model.named_parameters() if "lora" not in n)
    report = pruner.export(tmp_path / "small", tokenizer=tiny_tokenizer())
    assert report.parameters == after
    card = (tmp_path / "small" / "README.md").read_text()
    assert f"{after:,} parameters are left" in card
    assert 'from_pretrained("small")' in card
    assert size - after == pruner.removed_params == round(pruner.sparsity * pruner.units.prunable_params)
    assert (model(rows(1)).logits - before).abs().max() > 0.1


def test_every_loop_makes_the_same_cuts(tmp_path) -> None:
    """Bare loop, Trainer with the callback, TRL's SFTTrainer: float32, dropout 0, same clipping, same order."""
    options = dict(
        output_dir=str(tmp_path), max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=LR,
        lr_scheduler_type="cosine", weight_decay=0.0, max_grad_norm=1.0, use_cpu=True, report_to="none",
        save_strategy="no", logging_steps=1, disable_tqdm=True, bf16=False, train_sampling_strategy="sequential",
    )  # fmt: skip
    data = Dataset.from_dict({"input_ids": rows().tolist(), "labels": rows().tolist()})
    pruners = {}
    model = adapted()
    pruners["bare"] = pruner_for(model, total_steps=STEPS)
    train_bare(model, pruners["bare"])
    model = adapted()
    pruners["trainer"] = pruner_for(model)
    callbacks = [PruningCallback(pruners["trainer"])]
    Trainer(model=model, args=TrainingArguments(**options), train_dataset=data, callbacks=callbacks).train()
    model = adapted()
    pruners["sft"] = pruner_for(model)
    SFTTrainer(
        model=model,
        args=SFTConfig(**options, max_length=LENGTH, packing=False, **{CHECKPOINTING: False}),
        train_dataset=data.remove_columns("labels"),
        processing_class=tiny_tokenizer(),
        callbacks=[PruningCallback(pruners["sft"])],
    ).train()
    bare = pruners["bare"]
    assert bare.removed_params > 0
    for name in ("trainer", "sft"):
        assert [cut.step for cut in pruners[name].cuts] == [cut.step for cut in bare.cuts] == [9, 14, 18]
        for cut, same in zip(pruners[name].cuts, bare.cuts, strict=True):
            assert cut.removed == same.removed
            assert cut.scores.keys() == same.scores.keys()


def test_moving_average_is_eq_11() -> None:
    model = adapted()
    pruner = pruner_for(model, total_steps=STEPS, ema=0.7)
    expected = None
    for ids in rows(3 * BATCH).split(BATCH):
        model(ids, labels=ids).loss.backward()
        fresh = pruner.scorer.criterion.score(pruner.units.pools[1], Evidence(pruner.modules), pruner.scorer.scoring)
        expected = (0.0 if expected is None else 0.7 * expected) + 0.3 * fresh
        pruner.observe()
        pruner.step()
        model.zero_grad()
    torch.testing.assert_close(pruner.scores[pruner.units.pools[1].name], expected)


@pytest.mark.parametrize(("relative", "same"), [(True, True), (False, False)])
def test_relative_averages_do_not_feel_a_steps_size(relative, same) -> None:
    averages = []
    for size in (1.0, 3.0):  # of the second step's gradients; eta = 0, as its term is not linear in them
        model = adapted()
        pruner = pruner_for(model, total_steps=STEPS, ema_relative=relative, scoring=Scoring(eta=0.0))
        for number, ids in enumerate(rows(3 * BATCH).split(BATCH)):
            (model(ids, labels=ids).loss * (size if number == 1 else 1.0)).backward()
            pruner.observe()
            pruner.step()
            model.zero_grad()
        averages.append(torch.cat(list(pruner.scores.values())))
    assert torch.allclose(*averages, rtol=1e-5) == same
    if relative:
        torch.testing.assert_close(averages[0].mean(), torch.tensor(1 - 0.9**3))


def test_what_is_out_stays_out_and_is_recorded() -> None:
    model = adapted()
    pruner = pruner_for(model, total_steps=STEPS, frequency=1, shrink=False)
    train_bare(model, pruner)
    gone = [(name, unit) for cut in pruner.cuts for name, units in cut.removed.items() for unit in units]
    assert len(gone) == len(set(gone)) == sum(int((~mask).sum()) for mask in pruner.keep.values())
    assert pruner.cuts[-1].step == 18
    assert pruner.cuts[-1].sparsity == pruner.sparsity


@pytest.mark.parametrize("shrink", [True, False])
def test_state_goes_into_a_fresh_pruner(shrink, tmp_path) -> None:
    model = adapted()
    pruner = pruner_for(model, total_steps=STEPS, shrink=shrink)
    train_bare(model, pruner)
    fresh = adapted()
    restored = pruner_for(fresh, total_steps=STEPS, shrink=shrink)
    pruner.save(tmp_path)
    restored.load(tmp_path)
    assert restored.cuts == pruner.cuts
    assert all(torch.equal(restored.scores[name], pruner.scores[name]) for name in pruner.scores)
    assert restored.sparsity == pruner.sparsity
    assert restored.steps_done == STEPS
    assert [s.key() for s in restored.live.shapes] == [s.key() for s in pruner.live.shapes]
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh(rows(1)).logits, model(rows(1)).logits)
    other = pruner_for(adapted(ffn=64), total_steps=STEPS)
    with pytest.raises(InputError, match="model with other units"):
        other.load_state_dict(pruner.state_dict())


def test_a_score_that_is_not_finite_is_named() -> None:
    model = adapted()
    pruner = pruner_for(model, total_steps=STEPS)
    ids = rows(2)
    model(ids, labels=ids).loss.backward()
    pruner.modules["model.layers.2.mlp.up_proj"].lora_B["default"].weight.grad[3, 0] = float("nan")
    with pytest.raises(NumericsError, match=r"step 1: the scores of layer.2.ffn are not finite.*lower the learning"):
        pruner.observe()


def test_refusals() -> None:
    with pytest.raises(InputError, match=r"LoRA does not cover model.layers.0.self_attn.k_proj and \d+ other linears"):
        pruner_for(adapted(targets=["q_proj", "v_proj"]))
    pruner_for(adapted(targets=["q_proj", "v_proj"]), criterion="magnitude")
    rows_only = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"]
    for scoring in (Scoring(linears="rows"), None):  # o and down take part in the cut, though rows alone are scored
        with pytest.raises(InputError, match=r"LoRA does not cover model.layers.0.self_attn.o_proj and 7 other"):
            pruner_for(adapted(targets=rows_only), scoring=scoring)
    dora = get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules="all-linear", use_dora=True))
    with pytest.raises(InputError, match=r"q_proj: only plain LoRA can be pruned"):
        pruner_for(dora)
    with pytest.raises(InputError, match="sparsity is 1.5"):
        pruner_for(adapted(), sparsity=1.5)
    pruner = pruner_for(adapted())
    with pytest.raises(InputError, match=r"pass total_steps, or call begin\(steps\)"):
        pruner.observe()
    pruner = pruner_for(adapted(), total_steps=STEPS, criterion="magnitude", schedule="one-shot", prune_start=1)
    pruner.observe()
    with pytest.raises(InputError, match=r"call pruner.step\(optimizer\)"):
        pruner.step()
    model = adapted()
    pruner = pruner_for(model, total_steps=STEPS, criterion="magnitude", schedule="one-shot", prune_start=1)
    pruner.observe()
    with pytest.raises(InputError, match="lacks .* of the LoRA parameters"):
        pruner.step(torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))]))


def test_alternatives_cover_all_allocations() -> None:
    model = adapted(layers=10)
    pruner = pruner_for(model, sparsity=0.25, total_steps=STEPS)
    train_bare(model, pruner)
    found = alternatives(pruner)
    assert set(found) == {"uniform", "protected", "global"}
    assert all(isinstance(share, float) and 0 < share < 1 for share in found.values())


def test_what_a_checkpoint_brings_must_have_the_models_shapes() -> None:
    model = adapted(layers=1)
    pruner = pruner_for(model, total_steps=STEPS)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    ids = rows(2)

    def first_step():
        callback = PruningCallback(pruner)
        callback.on_pre_optimizer_step(None, TrainerState(), None, model=model, optimizer=optimizer)

    model(ids, labels=ids).loss.backward()
    first_step()
    optimizer.step()
    parameter = next(p for p in model.parameters() if p.requires_grad)
    whole = optimizer.state[parameter]["exp_avg"]
    optimizer.state[parameter]["exp_avg"] = whole[:, :-1]  # of before a cut
    with pytest.raises(AssertionError, match="stale exp_avg of .*q_proj"):
        first_step()
    optimizer.state[parameter]["exp_avg"] = whole
    layer = model.get_base_model().get_submodule("model.layers.0.mlp.up_proj")
    layer.base_layer.weight = torch.nn.Parameter(layer.base_layer.weight[:-3].detach(), requires_grad=False)
    with pytest.raises(AssertionError, match=r"LoRA of another shape than .*up_proj, \(93, 64\)"):
        first_step()
