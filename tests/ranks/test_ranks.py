"""Rank pruning: formulas = brute force, cut = formula, next step = masked step, a plain adapter at the end."""

import json
import os

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from tiny import tiny_llama
from transformers import Trainer, TrainingArguments
from zygote import read_back

from secateur import PruningCallback
from secateur.config.ranks import RankOptions
from secateur.models.surgery import lora_factors
from secateur.ranks import RANK_CRITERIA, RankPruner
from secateur.ranks.checks import rank_schedule
from secateur.ranks.cut import score
from secateur.ranks.layers import Averages, last_update_norm, second_moment
from secateur.ranks.recovery import compensation, damped, newton_step, rise_of_each, rise_of_set
from secateur.system.errors import InputError, NumericsError
from tests.pruning.test_pruner import rows

STEPS = 15


def random_problem(d=7, r=6, seed=0):
    """A factor, its gradient and an ill-conditioned curvature (condition number about 1e8), float64."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    basis, _ = torch.linalg.qr(draw(r, r))
    curvature = basis @ torch.diag(torch.logspace(-6, 2, r, dtype=torch.float64)) @ basis.T
    return draw(d, r), draw(d, r), (curvature + curvature.T) / 2


def brute_force(factor, gradient, curvature, gone):
    """min over δ of ⟨G, δ⟩ + ½ tr(δ H δᵀ) with (F + δ)_S = 0, row by row, by the KKT system."""
    r = factor.shape[1]
    size = len(gone)
    select = torch.zeros(size, r, dtype=torch.float64)
    select[torch.arange(size), gone] = 1
    kkt = torch.cat([
        torch.cat([curvature, select.T], 1), torch.cat([select, torch.zeros(size, size, dtype=torch.float64)], 1)
    ])  # fmt: skip
    right = torch.cat([-gradient, -factor[:, gone]], 1)
    change = torch.linalg.solve(kkt, right.T).T[:, :r]
    value = (gradient * change).sum() + 0.5 * (change @ curvature * change).sum()
    return change, float(value)


@pytest.mark.parametrize("gone", [[2], [0, 3, 5]])
def test_compensation_is_the_constrained_least_squares(gone) -> None:
    factor, _, curvature = random_problem()
    index = torch.tensor(gone)
    inverse = torch.linalg.inv(curvature)
    change, rise = brute_force(factor, torch.zeros_like(factor), curvature, gone)
    torch.testing.assert_close(compensation(factor, inverse, index), change, rtol=1e-5, atol=1e-7)
    assert rise_of_set(factor, inverse, index) == pytest.approx(rise, rel=1e-6)
    if len(gone) == 1:
        assert float(rise_of_each(factor, inverse)[gone[0]]) == pytest.approx(rise, rel=1e-6)


@pytest.mark.parametrize("gone", [[2], [0, 3, 5]])
def test_newton_and_compensation_are_the_full_minimiser(gone) -> None:
    factor, gradient, curvature = random_problem()
    index = torch.tensor(gone)
    stay = torch.tensor([j for j in range(6) if j not in gone])
    inverse = torch.linalg.inv(curvature)
    full, _ = brute_force(factor, gradient, curvature, gone)
    ours = compensation(factor, inverse, index)
    ours[:, stay] += newton_step(gradient, curvature, stay, longest=float("inf"))
    torch.testing.assert_close(ours, full, rtol=1e-5, atol=1e-6)
    newton = -gradient @ inverse
    formula = newton - (factor + newton)[:, index] @ torch.linalg.inv(inverse[index][:, index]) @ inverse[index]
    torch.testing.assert_close(ours, formula, rtol=1e-4, atol=1e-5)
    assert float(newton_step(gradient, curvature, stay, longest=0.1).norm()) == pytest.approx(0.1)


def adapted(rank=8, dtype=torch.float64, **lora):
    torch.manual_seed(0)
    options = {"r": rank, "lora_alpha": rank, "target_modules": "all-linear", **lora}
    return get_peft_model(tiny_llama(layers=2, dtype=dtype), LoraConfig(**options), autocast_adapter_dtype=False)


def train(model, pruner, steps=STEPS, masked=None):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    model.train()
    for ids in rows(steps * 4).split(4):
        model(ids, labels=ids).loss.backward()
        pruner.observe()
        optimizer.step()
        pruner.step(optimizer)
        optimizer.zero_grad()
    return optimizer


def prune_to(model, rank=3, steps=STEPS, **options):
    return RankPruner(model, rank=rank, total_steps=steps, prune_start=2, prune_end=11, frequency=3, **options)


def test_a_duplicated_component_goes_with_the_function_kept() -> None:
    """Component 5 is component 2 again; one factor's recovery keeps the function."""
    errors = {}
    for recovery in ("none", "compensate"):
        model = adapted()
        for layer in lora_layers_of(model):
            with torch.no_grad():
                torch.nn.init.normal_(lora_factors(layer).b, std=0.3)
                lora_factors(layer).a[5] = lora_factors(layer).a[2]
                lora_factors(layer).b[:, 5] = lora_factors(layer).b[:, 2]
        ids = rows(4)
        before = [delta(layer) for layer in lora_layers_of(model)]
        pruner = RankPruner(
            model, rank=7, total_steps=1, schedule="one-shot", prune_start=1, recovery=recovery, damping=1e-9
        )
        model(ids, labels=ids).loss.backward()
        pruner.observe()
        pruner._choose = lambda *_, pruner=pruner: {path: torch.tensor([5]) for path in pruner.layers}
        pruner.step(torch.optim.AdamW(p for p in model.parameters() if p.requires_grad))
        after = [delta(layer) for layer in lora_layers_of(model)]
        errors[recovery] = max(float((a - b).norm() / b.norm()) for a, b in zip(after, before, strict=True))
    assert errors["compensate"] < 1e-4
    assert errors["none"] > 0.1


def lora_layers_of(model):
    return [m for m in model.modules() if hasattr(m, "lora_A") and hasattr(m, "get_base_layer")]


def delta(layer):
    lora = lora_factors(layer)
    return (lora.scaling * lora.b @ lora.a).detach()


@pytest.mark.parametrize("criterion", list(RANK_CRITERIA))
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_the_target_is_reached_and_everything_agrees(tmp_path, criterion, allocation) -> None:
    model = adapted(dtype=torch.float32)
    pruner = prune_to(model, criterion=criterion, allocation=allocation)
    scaling = [lora_factors(layer).scaling for layer in lora_layers_of(model)]
    optimizer = train(model, pruner)
    ranks = list(pruner.ranks.values())
    assert sum(ranks) == 3 * len(ranks)
    assert set(ranks) == {3} if allocation == "uniform" else min(ranks) >= 1
    assert [lora_factors(layer).scaling for layer in lora_layers_of(model)] == scaling
    for layer in lora_layers_of(model):
        for parameter in (lora_factors(layer).a, lora_factors(layer).b):
            assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape
    ids = rows(2)
    expected = model.eval()(ids).logits
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_llama(layers=2), tmp_path, is_trainable=True, autocast_adapter_dtype=False)
    for layer, other in zip(lora_layers_of(model), lora_layers_of(again), strict=True):
        assert lora_factors(layer).a.shape == lora_factors(other).a.shape
        assert other.scaling["default"] == pytest.approx(layer.scaling["default"])
    torch.testing.assert_close(again.eval()(ids).logits, expected, rtol=0.0, atol=1e-6)
    merged = again.merge_and_unload()
    torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-4, atol=1e-4)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["r"] == 3 or config["rank_pattern"]


@pytest.mark.parametrize("recovery", ["none", "compensate"])
def test_the_next_step_is_the_masked_one(recovery) -> None:
    """After a cut training goes on as if what went had been zeroed and frozen, and what stays rewritten."""
    model = adapted()
    pruner = prune_to(model, criterion="magnitude", recovery=recovery)
    cuts = {}
    real = pruner._remove

    def noting(path, gone, optimizer):
        before = pruner.layers[path]
        stay = [j for j in range(lora_factors(before).a.shape[0]) if j not in gone.tolist()]
        real(path, gone, optimizer)
        lora = lora_factors(pruner.layers[path])
        cuts[pruner.steps_done, path] = stay, lora.a.detach().clone(), lora.b.detach().clone()

    pruner._remove = noting
    train(model, pruner)
    assert len(cuts) == sum(gone > 0 for cut in pruner.cuts for gone in cut.removed.values()) > 0
    small = [delta(layer) for layer in lora_layers_of(model)]
    for one, other in zip(small, train_masked(adapted(), pruner, cuts), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def train_masked(model, pruner, cuts):
    """The same run on full-size factors: the rest is masked, what stays at a cut takes the values it has there."""
    layers = dict(zip(pruner.layers, lora_layers_of(model), strict=True))
    live = {path: torch.arange(8) for path in layers}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    model.train()
    for step, ids in enumerate(rows(STEPS * 4).split(4), 1):
        model(ids, labels=ids).loss.backward()
        for path, layer in layers.items():
            gone = torch.ones(8, dtype=torch.bool).index_fill(0, live[path], False)
            lora_factors(layer).a.grad[gone] = 0
            lora_factors(layer).b.grad[:, gone] = 0
        optimizer.step()
        for path, layer in layers.items():
            lora = lora_factors(layer)
            with torch.no_grad():
                if (step, path) in cuts:
                    stay, a, b = cuts[step, path]
                    live[path] = live[path][stay]
                    lora.a[live[path]], lora.b[:, live[path]] = a, b
                mask = torch.zeros(8, dtype=torch.float64).index_fill(0, live[path], 1.0)
                lora.a.mul_(mask[:, None])
                lora.b.mul_(mask)
        optimizer.zero_grad()
    return [delta(layer) for layer in layers.values()]


@pytest.mark.parametrize("steps", [12, 17, 23])
def test_the_target_is_exact_whatever_the_length(steps) -> None:
    model = adapted(rank=7)
    pruner = RankPruner(model, rank=2, total_steps=steps, frequency=4, criterion="random")
    train(model, pruner, steps)
    assert set(pruner.ranks.values()) == {2}
    assert all(cut.step <= round(0.6 * steps) for cut in pruner.cuts)


def test_newton_recovery_moves_no_further_than_the_optimiser(tmp_path) -> None:
    model = adapted()
    pruner = prune_to(model, recovery="newton+compensate")
    train(model, pruner)
    assert set(pruner.ranks.values()) == {3}
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_trainer_takes_the_same_callback_and_state_comes_back(tmp_path) -> None:
    model = adapted(dtype=torch.float32)
    pruner = prune_to(model)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=STEPS, per_device_train_batch_size=4, use_cpu=True, report_to="none",
        save_strategy="steps", save_steps=8, disable_tqdm=True,
    )  # fmt: skip
    data = [{"input_ids": row, "labels": row} for row in rows()]
    Trainer(model=model, args=arguments, train_dataset=data, callbacks=[PruningCallback(pruner)]).train()
    assert set(pruner.ranks.values()) == {3}
    other = prune_to(adapted(dtype=torch.float32))
    other.load(tmp_path / "checkpoint-8")
    assert other.steps_done == 8
    assert other.ranks == pruner.cuts[1].ranks
    assert all(averages.steps == 8 for averages in other._averages.values())
    again = Trainer(
        model=other.model, args=arguments, train_dataset=data, callbacks=[PruningCallback(other)]
    )  # fmt: skip
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    for one, two in zip(model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 9}, "rank is 9: give a rank from 1 to the adapter's 8"),
        ({"rank": 0}, "rank is 0"),
        ({"recovery": "full"}, "recovery is 'full'"),
        ({"criterion": "gradeint"}, "Did you mean 'gradient'"),
        ({"damping": 0.0}, "damping is 0.0"),
        ({"fisher_decay": 1.0}, "fisher_decay is 1.0"),
        ({"k1": 2}, "k1 and k2 go together"),
        ({"k1": 2, "k2": 0}, "k2 is 0"),
        ({"criterion": "sparsegpt", "recovery": "newton+compensate"}, "one update cannot follow both"),
    ],
)
def test_bad_input(options, message) -> None:
    with pytest.raises(InputError, match=message):
        RankPruner(adapted(), **{"rank": 3, **options})
    with pytest.raises(InputError, match="only plain LoRA"):
        RankPruner(adapted(use_dora=True), rank=3)
    with pytest.raises(InputError, match="needs a PEFT model"):
        RankPruner(tiny_llama(layers=2), rank=3)


def test_adapters_of_other_kinds_and_sizes() -> None:
    budget = {"init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 1, "total_step": 9}
    ada = get_peft_model(tiny_llama(layers=1), AdaLoraConfig(target_modules=["q_proj"], **budget))
    with pytest.raises(InputError, match="the adapter is ADALORA: only plain LoRA"):
        RankPruner(ada, rank=2)
    with pytest.raises(InputError, match="k_proj is 32 x 64, so a rank above 32 adds nothing"):
        RankPruner(adapted(rank=40), rank=3)
    for merges in (True, False):
        model = adapted(dtype=torch.float32, init_lora_weights="pissa")
        if merges:
            RankPruner(model, rank=3, merges=True)
        else:
            with pytest.warns(UserWarning, match="what save_pretrained writes fits no model"):
                RankPruner(model, rank=3)


def test_a_fresh_process_reads_the_adapter(tmp_path) -> None:
    model = adapted(dtype=torch.float32)
    train(model, prune_to(model, allocation="global"))
    model.save_pretrained(tmp_path / "adapter")
    tiny_llama(layers=2).save_pretrained(tmp_path / "base")
    torch.save(model.eval()(rows(2)).logits, tmp_path / "logits.pt")
    code = (
        "import sys, torch; from peft import PeftModel; from transformers import AutoModelForCausalLM\n"
        f"base = AutoModelForCausalLM.from_pretrained({str(tmp_path / 'base')!r})\n"
        f"model = PeftModel.from_pretrained(base, {str(tmp_path / 'adapter')!r}).eval()\n"
        f"ids = torch.load({str(tmp_path / 'ids.pt')!r}); logits = torch.load({str(tmp_path / 'logits.pt')!r})\n"
        "assert 'secateur' not in sys.modules\n"
        "torch.testing.assert_close(model(ids).logits, logits, rtol=0, atol=1e-5)\n"
    )
    torch.save(rows(2), tmp_path / "ids.pt")
    done = read_back(code, tmp_path, dict(os.environ))
    assert done.returncode == 0, done.stderr[-2000:]


def test_gradients_that_are_not_finite_are_named_and_leave_the_averages_alone() -> None:
    model = adapted(r=8)
    pruner = RankPruner(model, rank=4, total_steps=20, prune_start=10)
    train(model, pruner, steps=2)
    before = {path: own.tensors["curvature_a"].clone() for path, own in pruner._averages.items()}
    model(rows(4), labels=rows(4)).loss.backward()
    path, layer = list(pruner.layers.items())[3]
    lora_factors(layer).b.grad[1, 2] = float("nan")
    with pytest.raises(NumericsError, match=f"step 3: gradients of {path} are not finite"):
        pruner.observe()
    assert all(torch.equal(own.tensors["curvature_a"], before[path]) for path, own in pruner._averages.items())


def test_padding_is_no_activation() -> None:
    """E[z zᵀ] of padded rows is that of their own tokens; without a mask it is not."""
    short = rows(4)[:, :7]
    padded = torch.cat([short, torch.zeros_like(short)], dim=1)
    mask = torch.cat([torch.ones_like(short), torch.zeros_like(short)], dim=1)
    labels = padded.masked_fill(mask == 0, -100)
    found = []
    for inputs in ({"input_ids": short}, {"input_ids": padded, "attention_mask": mask}, {"input_ids": padded}):
        model = adapted()
        pruner = prune_to(model, criterion="wanda")
        model(**inputs, labels=labels[:, : inputs["input_ids"].shape[1]]).loss.backward()
        pruner.observe()
        found.append([own.tensors["second_z"] for own in pruner._averages.values()])
    for alone, masked, everything in zip(*found, strict=True):
        torch.testing.assert_close(masked, alone, rtol=1e-6, atol=1e-9)
        assert (everything - alone).norm() > 0.05 * alone.norm()


@pytest.mark.parametrize(("recovery", "factor"), [("compensate", "a"), ("compensate", "b"), ("newton+compensate", "a")])
def test_a_cut_is_the_constrained_least_squares(recovery, factor) -> None:
    """Of the factor whose rise is lower; the other's slice is dropped."""
    model = adapted()
    for layer in lora_layers_of(model):
        torch.nn.init.normal_(lora_factors(layer).b.data, std=0.1)
    pruner = RankPruner(model, rank=5, total_steps=9, schedule="one-shot", prune_start=1, recovery=recovery)
    path, layer = next(iter(pruner.layers.items()))
    model(rows(4), labels=rows(4)).loss.backward()
    lora = lora_factors(layer)
    columns = {"a": lora.a.detach().T.clone(), "b": lora.b.detach().clone()}
    gradients = {"a": lora.a.grad.T.clone(), "b": lora.b.grad.clone()}
    # A long step, so that the cap does not bind.
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e9, weight_decay=0.0)
    values = [p.detach().clone() for p in model.parameters()]
    pruner.observe()
    pruner._averages[path].tensors["curvature_b" if factor == "a" else "curvature_a"] *= 1e9  # the dearer one
    optimizer.step()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), values, strict=True):
            parameter.copy_(value)
    gone = [1, 4, 6]
    stay = [j for j in range(8) if j not in gone]
    pruner._choose = lambda *_: {path: torch.tensor(gone)}
    pruner.step(optimizer)
    curvature = damped(gradients[factor].T @ gradients[factor], 0.1)
    gradient = gradients[factor] if "newton" in recovery else torch.zeros_like(gradients[factor])
    change, _ = brute_force(columns[factor], gradient, curvature, gone)
    expected = {name: value[:, stay] for name, value in columns.items()}
    expected[factor] = (columns[factor] + change)[:, stay]
    lora = lora_factors(layer)
    torch.testing.assert_close(lora.a.detach().T, expected["a"], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(lora.b.detach(), expected["b"], rtol=1e-6, atol=1e-9)
    assert (expected[factor] - columns[factor][:, stay]).norm() > 1e-3 * columns[factor].norm()


def test_the_newton_score_is_the_formula() -> None:
    """½‖(F − GH⁻¹)_j‖² / [H⁻¹]_jj, of both factors, where the cap does not bind; without it, that of `compensate`."""
    model = adapted()
    pruner = prune_to(model, recovery="newton+compensate")
    model(rows(4), labels=rows(4)).loss.backward()
    pruner.observe()
    path, layer = next(iter(pruner.layers.items()))
    lora = lora_factors(layer)
    scores = []
    for rate in (1e9, 1e-12):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
        optimizer.param_groups[0]["lr"] = 0.0
        optimizer.step()
        optimizer.param_groups[0]["lr"] = rate
        scores.append(score(pruner._now(path, optimizer), pruner.criterion, pruner.options.recovery, 0))
    expected = []
    for newton in (True, False):
        total = 0.0
        for factor, gradient in ((lora.b.detach(), lora.b.grad), (lora.a.detach().T, lora.a.grad.T)):
            inverse = torch.linalg.inv(damped(gradient.T @ gradient, 0.1))
            moved = factor - gradient @ inverse if newton else factor
            total = total + 0.5 * moved.square().sum(0) / inverse.diagonal()
        expected.append(total)
    torch.testing.assert_close(scores[0], expected[0])
    torch.testing.assert_close(scores[1], expected[1], rtol=1e-4, atol=1e-12)
    assert (expected[0] - expected[1]).norm() > 0.01 * expected[1].norm()


def test_the_last_update_of_adamw() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
    optimizer = torch.optim.AdamW([weight], lr=0.03, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.0)
    for step in range(3):
        before = weight.detach().clone()
        weight.grad = torch.full_like(weight, 0.1 * step + 0.05).index_fill_(0, torch.tensor([1]), -1e-3)
        optimizer.step()
        assert last_update_norm(weight, optimizer) == pytest.approx(float((weight.detach() - before).norm()))
    for other in (None, torch.optim.SGD([weight], lr=0.1)):
        with pytest.raises(InputError, match=r"no moments of a LoRA parameter: pass the torch\.optim\.AdamW"):
            last_update_norm(weight, other)


def test_averages_are_debiased_and_forget_at_the_decay() -> None:
    averages = Averages()
    values = [torch.tensor([float(value)]) for value in (8, 4, 3, 1)]
    found = []
    for value in values:
        averages.mix({"taylor": value}, 0.6)
        found.append(averages.tensors["taylor"].item())
    assert found == pytest.approx([8, 6, 0.6 * 6 + 0.4 * 3, 0.6 * 4.8 + 0.4 * 1])
    averages.mix({"taylor": torch.tensor([5.0, 7.0])}, 0.6)  # the layer was sliced by its units meanwhile
    assert averages.tensors["taylor"].tolist() == [5.0, 7.0]


def test_large_second_moments_are_close_in_bfloat16(monkeypatch) -> None:
    from secateur.ranks import layers

    monkeypatch.setattr(layers, "compute_dtype", lambda *args: torch.bfloat16)
    gradient = torch.randn(300, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 64)
    exact = gradient.T @ gradient
    found = second_moment(gradient)
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)
    scale = exact.diagonal().sqrt()
    assert ((found - exact) / scale[:, None] / scale).abs().max() < 0.01
    assert torch.equal(second_moment(gradient[:, :63]), gradient[:, :63].T @ gradient[:, :63])


def test_nothing_is_watched_when_nothing_is_left_to_cut() -> None:
    """Activations that no step takes would pile up to the end of the run."""
    done = prune_to(adapted(), criterion="wanda")
    assert done._activations.watching
    train(done.model, done)
    assert not done._activations.watching
    same = prune_to(adapted(), rank=8, criterion="wanda")
    resumed = RankPruner(adapted(), rank=3, criterion="wanda")
    assert resumed._activations.watching
    resumed.load_state_dict(done.state_dict())
    resumed.begin(STEPS)
    for pruner in (same, resumed):
        pruner.model(rows(2), labels=rows(2)).loss.backward()
        assert not pruner._activations.watching
        assert not pruner._activations._seen


def test_nothing_to_cut_by_k1_and_k2() -> None:
    schedule = rank_schedule(RankOptions(rank=8, frequency=2, k1=10, k2=2), 8, 20)
    assert schedule.last_cut <= 20


def test_a_cut_before_any_good_step_is_said_so() -> None:
    pruner = RankPruner(adapted(), rank=3, total_steps=5, prune_start=0, prune_end=1)
    pruner.skip()
    with pytest.raises(NumericsError, match="step 1: no step before the first cut had finite gradients"):
        pruner.step(torch.optim.AdamW(p for p in pruner.model.parameters() if p.requires_grad))


def test_a_curvature_that_cannot_be_inverted_names_the_remedy() -> None:
    pruner = prune_to(adapted())
    path = next(iter(pruner.layers))
    pruner._averages[path].tensors = {name: -torch.eye(8) for name in ("curvature_a", "curvature_b")}
    pruner._averages[path].tensors["curvature_a"][0, 0] = 100.0
    with pytest.raises(
        NumericsError, match=f"{path}: the curvature cannot be inverted with damping 0.1: raise --damping"
    ):
        score(pruner._now(path, None), pruner.criterion, pruner.options.recovery, 0)


def test_rslora_keeps_its_scaling_in_memory_too() -> None:
    model = adapted(use_rslora=True)
    train(model, prune_to(model))
    for layer in lora_layers_of(model):
        before = layer.scaling["default"]
        layer.set_scale("default", 1.0)
        assert layer.scaling["default"] == pytest.approx(before)
