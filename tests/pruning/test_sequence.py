"""Refit in sequence: ridge least squares towards the model before the cut, on what the layers already cut make."""

import pytest
import torch
from live import LiveBytes
from product import some_of
from tiny import tiny_llama
from torch import nn

from secateur import Pruner
from secateur.architecture.discovery import find_units
from secateur.architecture.families import FAMILIES
from secateur.models.surgery import merged_weight
from secateur.pruning.compensation import steps
from secateur.pruning.compensation.blocks import block_of
from secateur.pruning.compensation.cost import refit_bytes
from secateur.pruning.compensation.layerwise import recorded
from secateur.pruning.compensation.ridge import RIDGES, Sums
from secateur.pruning.compensation.sequence import refit_in_sequence
from secateur.pruning.masks import Masks
from secateur.system.errors import InputError
from tests.architecture.rows import TYPES, basic, tiny
from tests.pruning.test_pruner import STEPS, adapted, pruner_for, rows, train_bare


def with_lora(**options):
    model = adapted(dtype=torch.float64, **options)
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


def some_gone(units, share=0.4, seed=5, only=None):
    """Pool name -> which units stay: some at random go."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for pool in units.pools:
        order = torch.randperm(pool.size, generator=generator)
        gone = round(share * pool.size) if only is None or pool.name in only else 0
        keep[pool.name] = torch.ones(pool.size, dtype=torch.bool).index_fill(0, order[:gone], False)
    return keep


def by_hand(model, units, keep, ids, ridge):
    """The same for a Llama with LoRA, as a plain loop: normal equations, written out."""
    base = model.get_base_model()
    layers = base.model.layers
    with torch.no_grad():
        whole = base.model.embed_tokens(ids)
        cut = whole.clone()
        positions = base.model.rotary_emb(whole, torch.arange(ids.shape[1])[None])
        for number, layer in enumerate(layers):
            masks = {
                pool.kind: torch.zeros(pool.gates[0].size)
                .double()
                .index_fill_(0, pool.gates[0].entries(keep[pool.name]), 1)
                for pool in units.pools
                if pool.layer == number
            }

            def attention(h, mask, layer=layer, positions=positions):
                seen = {}
                hook = layer.self_attn.o_proj.register_forward_pre_hook(
                    lambda m, args: (seen.setdefault("x", args[0] * mask),)
                )
                out = layer.self_attn(
                    hidden_states=layer.input_layernorm(h), position_embeddings=positions, attention_mask=None
                )[0]
                hook.remove()
                return seen["x"], out

            def ffn(h, mask, layer=layer):
                x = layer.post_attention_layernorm(h)
                x = layer.mlp.act_fn(layer.mlp.gate_proj(x)) * layer.mlp.up_proj(x) * mask
                return x, layer.mlp.down_proj(x)

            for part, kind, linear in (
                (attention, "kv_group", layer.self_attn.o_proj),
                (ffn, "ffn", layer.mlp.down_proj),
            ):
                _, full = part(whole, torch.ones_like(masks[kind]))
                x, less = part(cut, masks[kind])
                whole = whole + full
                stay = masks[kind].nonzero().flatten()
                rows, lacks = x.flatten(0, 1)[:, stay], (whole - cut - less).flatten(0, 1)
                gram = rows.T @ rows
                change = torch.linalg.solve(
                    gram + ridge * gram.diagonal().mean() * torch.eye(len(gram)).double(), rows.T @ lacks
                ).T
                linear.base_layer.weight[:, stay] += change
                cut = cut + less + x[..., stay] @ change.T


def test_it_is_a_plain_loop_with_normal_equations() -> None:
    """Heads and channels of all layers: later ones see what the cut ones before them make. LoRA is at work."""
    ids, batches = rows(6), [{"input_ids": part} for part in rows(6).split(2)]
    weights = []
    for way in (
        lambda *given: by_hand(*given, ids, 0.1),
        lambda *given: refit_in_sequence(*given, batches, ridges=[0.1]),
    ):
        model = with_lora(layers=3)
        units = find_units(model.get_base_model(), FAMILIES["llama"])
        way(model, units, some_gone(units))
        weights.append({name: p.detach() for name, p in model.named_parameters()})
    start = dict(with_lora(layers=3).named_parameters())
    changed = {name for name, weight in weights[1].items() if not torch.equal(weight, start[name])}
    assert changed == {
        name for name in start if name.endswith(("o_proj.base_layer.weight", "down_proj.base_layer.weight"))
    }
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-6, atol=1e-7)  # float32 inside transformers


@pytest.mark.parametrize("first", ["layer.1.kv_group", "layer.1.ffn"])
def test_where_nothing_upstream_was_cut_it_is_least_squares_of_the_own_output(first) -> None:
    """The first linear that loses columns: Δ of the outputs that it has lost, by `lstsq` on stacked rows."""
    model = with_lora(layers=3)
    units = find_units(model.get_base_model(), FAMILIES["llama"])
    keep = some_gone(units, only={first})
    (gate,) = next(pool for pool in units.pools if pool.name == first).gates
    linear = model.get_base_model().get_submodule(gate.linear)
    seen = []
    hook = linear.register_forward_pre_hook(lambda m, args: seen.append(args[0].detach().flatten(0, 1)))
    before = merged_weight(linear)
    with torch.no_grad():
        model(rows(6))
    hook.remove()
    stay, gone = gate.entries(keep[first]), gate.entries(~keep[first])
    x, lost = seen[0][:, stay], seen[0][:, gone] @ before[:, gone].T
    level = (0.3 * x.square().sum(0).mean()).sqrt() * torch.eye(len(stay)).double()
    expected = torch.linalg.lstsq(
        torch.cat([x, level]), torch.cat([lost, torch.zeros(len(stay), 64).double()])
    ).solution
    found = refit_in_sequence(model, units, keep, [{"input_ids": rows(6)}], ridges=[0.3])
    torch.testing.assert_close(merged_weight(linear)[:, stay] - before[:, stay], expected.T, rtol=1e-6, atol=1e-8)
    assert all("layers.0" not in path for path in found)
    assert set(found) == {path for path in found if "layers.1" in path or "layers.2" in path} != set()


def test_what_is_doubled_goes_without_a_trace() -> None:
    """Channel 5 does what channel 2 does, and KV group 1 what group 0 does, in all layers, LoRA included."""
    model = with_lora(layers=3, ffn=24)
    units = find_units(model.get_base_model(), FAMILIES["llama"])
    with torch.no_grad():
        for layer in model.get_base_model().model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for linear, to, of in [(mlp.gate_proj, [5], [2]), (mlp.up_proj, [5], [2])] + [
                (linear, range(len(linear.weight) // 2, len(linear.weight)), range(len(linear.weight) // 2))
                for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
            ]:
                for weight in (linear.base_layer.weight, linear.lora_B["default"].weight):
                    weight[list(to)] = weight[list(of)]
    keep = {
        pool.name: torch.ones(pool.size, dtype=torch.bool).index_fill(
            0, torch.tensor(5 if pool.kind == "ffn" else 1), False
        )
        for pool in units.pools
    }
    ids = rows(40)
    with torch.no_grad():
        before = model(ids).logits
        refit_in_sequence(model, units, keep, [{"input_ids": ids}], ridges=[1e-12])
        for pool in units.pools:
            for gate in pool.gates:
                linear = model.get_base_model().get_submodule(gate.linear)
                gone = gate.entries(~keep[pool.name])
                linear.base_layer.weight[:, gone] = 0
                linear.lora_A["default"].weight[:, gone] = 0
        torch.testing.assert_close(model(ids).logits, before, rtol=0, atol=1e-5)


IN_A_ROW = [name for name in basic.TYPES if not FAMILIES[name.split("/")[0]].alike_only]
NORMS_BEHIND = ("gemma2", "gemma3_text", "olmo2")


@pytest.mark.parametrize("name", some_of(IN_A_ROW, ["llama", "gpt_neox", "phi", *NORMS_BEHIND]))
def test_every_family(name, monkeypatch) -> None:
    """What a layer adds is found by trying, and the refit brings the logits closer to those before: closer than
    where each linear's own output is the target."""
    base = tiny(name)
    family = FAMILIES[name.split("/")[0]]
    units = find_units(base, family)
    layers = [base.get_submodule(place.prefix) for place in units.places]
    ids = torch.randint(3, 99, (12, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        (hidden,), (batch,) = recorded(base, layers, [{"input_ids": ids}])
        for layer, call in zip(layers, batch.calls, strict=True):
            found = block_of(layer, call, hidden, *map(layer.get_submodule, (family.o, family.mlp_out)))
            for branch in (found.attention, found.ffn):
                assert branch.normed == (name in NORMS_BEHIND)
            if name in NORMS_BEHIND:
                norm = layer.post_feedforward_layernorm.weight + (1 if "gemma" in name else 0)
                torch.testing.assert_close(found.ffn.gain, norm.double(), rtol=1e-4, atol=1e-4)
            else:
                gains = float(found.attention.gain), float(found.ffn.gain)
                assert gains == pytest.approx(2 * (0.7 if name == "granite" else 1.0,), abs=1e-4)
            hidden = call(layer, hidden)
        stream = []
        hook = layers[-1].register_forward_hook(
            lambda m, args, out: stream.append(out[0] if type(out) is tuple else out)
        )
        before = base(ids).logits
        hook.remove()
        torch.testing.assert_close(hidden, stream[0])
        keep = some_gone(units, share=1 / 3)
        errors = {}
        start = {key: value.clone() for key, value in base.state_dict().items()}
        masks = Masks(units, {path: base.get_submodule(path) for path in units.linears}, {})
        for way in ("none", "stream", "own output"):
            if way == "own output":
                monkeypatch.setattr(steps, "block_of", lambda *given: None)
            if way != "none":
                refit_in_sequence(base, units, keep, [{"input_ids": part} for part in ids.split(4)])
            masks.update(keep)
            errors[way] = float((base(ids).logits - before).square().sum())
            masks._masks.clear()
            base.load_state_dict(start)
    print(name, errors)
    assert errors["stream"] < 0.8 * errors["none"]
    assert errors["own output"] < errors["none"]


IN_ROW = [
    name
    for name, family in ((name, FAMILIES[name.split("/")[0]]) for name in TYPES)
    if not (family.experts or family.encoder_decoder or family.layers_vary)
]


@pytest.mark.parametrize("name", IN_ROW)
def test_the_layers_of_a_family_follow_one_another(name) -> None:
    """Else the refit of a run that asks for none would end it at its first cut."""
    model = tiny(name, 2)
    units = find_units(model, FAMILIES[name.split("/")[0]], "none")
    layers = [model.get_submodule(place.prefix) for place in units.places]
    with torch.no_grad():
        entering, (batch,) = recorded(model, layers, [{"input_ids": rows(2)}])
    assert len(batch.calls) == len(layers)
    assert entering[0].shape[:2] == rows(2).shape


def test_padding_does_not_count() -> None:
    ids = rows(8)
    mask = torch.ones_like(ids)
    mask[::2, :9] = 0
    other = torch.where(mask.bool(), ids, 50)
    found = []
    for given in (ids, other):
        model = with_lora(layers=2)
        units = find_units(model.get_base_model(), FAMILIES["llama"])
        refit_in_sequence(model, units, some_gone(units), [{"input_ids": given, "attention_mask": mask}])
        found.append(model.state_dict())
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight, rtol=1e-9, atol=1e-11)


def test_the_ridge_is_the_one_that_suits_other_tokens() -> None:
    """Few tokens want a large one, many a small one, as least squares on those that are fitted to says."""
    torch.manual_seed(0)
    truth, x = torch.randn(8, 32), torch.randn(6000, 32)
    r = x @ truth.T + 8 * torch.randn(6000, 8)
    chosen = {}
    for count in (64, 6000):
        sums = Sums(8, 32, x)
        held = torch.arange(count) % 4 == 3
        sums.add(x[:count], r[:count], held)
        _, fit = sums.fit(RIDGES, "o")
        errors = {}
        for ridge in RIDGES:
            fitted = x[:count][~held]
            gram = fitted.T @ fitted
            level = ridge * gram.diagonal().mean() * torch.eye(32)
            change = torch.linalg.solve(gram + level, fitted.T @ r[:count][~held]).T
            left = r[:count][held] - x[:count][held] @ change.T
            errors[ridge] = float(left.square().sum() / r[:count][held].square().sum())
        assert fit.ridge == min(errors, key=errors.get)
        assert fit.error == pytest.approx(errors[fit.ridge], rel=1e-4)
        chosen[count] = fit.ridge
    assert chosen[6000] < chosen[64]


@pytest.mark.parametrize(
    ("allocation", "schedule"), [("uniform", "cubic"), ("global", "cubic"), ("global", "one-shot")]
)
def test_shrinking_is_masking(allocation, schedule) -> None:
    runs = {}
    for shrink in (True, False):
        model = adapted(torch.float64)
        pruner = pruner_for(
            model, criterion="gate", compensate="sequential", allocation=allocation, schedule=schedule, shrink=shrink,
            total_steps=STEPS,
        )  # fmt: skip
        pruner.calibrate([{"input_ids": part} for part in rows(32).split(8)])
        losses, _ = train_bare(model, pruner)
        assert model.training
        runs[shrink] = losses, pruner
    (losses, shrunk), (masked_losses, masked) = runs[True], runs[False]
    assert [cut.removed for cut in shrunk.cuts] == [cut.removed for cut in masked.cuts]
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(masked_losses), rtol=1e-6, atol=0.0)
    for path, module in shrunk.modules.items():
        expected = merged_weight(masked.modules[path])
        for pool in masked.units.pools:
            for member in pool.members:
                if member.linear == path:
                    expected = expected.index_select(member.dim, member.entries(masked.keep[pool.name]))
        torch.testing.assert_close(merged_weight(module), expected, rtol=1e-4, atol=1e-6)


def test_it_recovers_more_than_each_linear_by_itself() -> None:
    """One-shot without training, to the end of the way that a run takes: logits closer to those before."""
    errors, ids = {}, rows(64)
    for how in ("none", "lstsq", "sequential"):
        model = adapted(torch.float64, layers=4)
        before = model.eval()(ids).logits.detach()
        pruner = Pruner(
            model, sparsity=0.4, criterion="gate", compensate=how, schedule="one-shot", prune_start=1, total_steps=2
        )
        if how == "sequential":
            pruner.calibrate({"input_ids": part} for part in ids.split(8))
        model(ids, labels=ids).loss.backward()
        pruner.observe()
        pruner.step(torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0))
        errors[how] = float((model.eval()(ids).logits.detach() - before).square().mean())
    assert errors["sequential"] < 0.8 * errors["lstsq"] < 0.8 * errors["none"]


def test_what_it_cannot_do_is_said_before_a_step() -> None:
    model = adapted()
    pruner = pruner_for(model, compensate="sequential", total_steps=STEPS)
    model(rows(2), labels=rows(2)).loss.backward()
    with pytest.raises(InputError, match=r"nothing to go by: call pruner.calibrate\(batches\) before training"):
        pruner.observe()
    with pytest.raises(InputError, match="nothing to go by"):
        pruner.calibrate([])
    with pytest.raises(InputError, match=r"batch 1 is a one with input_ids .*32"):
        pruner.calibrate([{"input_ids": rows(2)}, {"input_ids": rows(2)[0]}])
    with pytest.raises(InputError, match="mixtral is a mixture.*lstsq"):
        Pruner(tiny("mixtral"), sparsity=0.3, criterion="magnitude", compensate="sequential")
    with pytest.raises(InputError, match="t5 is an encoder-decoder.*lstsq"):
        Pruner(tiny("t5"), sparsity=0.3, criterion="magnitude", compensate="sequential")


@pytest.mark.parametrize(("ffn", "sequences"), [(96, 32), (1024, 1)])
def test_memory_is_what_is_planned(ffn, sequences) -> None:
    """Where streams and down's inputs are the most of it, and where the sums of one linear are."""
    model = tiny_llama(layers=2, ffn=ffn)
    units = find_units(model, FAMILIES["llama"])
    batches = [{"input_ids": torch.randint(3, 99, (1, 256))} for _ in range(sequences)]
    with LiveBytes(model.parameters()) as live:
        before = live.now
        refit_in_sequence(model, units, some_gone(units, share=0.04), batches)
    assert 0.8 < (live.peak - before) / refit_bytes(units, 64, 256 * sequences, 4) < 1.25


def test_autocast_sees_the_weights_as_they_are() -> None:
    """Its cache holds casts of weights that are trained: what is changed in between would not be seen."""
    found = []
    for trained in (False, True):
        model = tiny_llama(layers=2).requires_grad_(trained)
        units = find_units(model, FAMILIES["llama"])
        refit_in_sequence(model, units, some_gone(units), [{"input_ids": rows(8)}], dtype=torch.bfloat16)
        found.append(model.state_dict())
    assert all(torch.equal(found[1][name], weight) for name, weight in found[0].items())
