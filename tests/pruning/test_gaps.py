"""Layers and blocks that go whole: what is before a gap takes the least-squares map that stands for it into itself."""

import copy

import pytest
import torch
from tiny import tiny_llama
from torch import nn

from secateur import Pruner
from secateur.architecture.discovery import find_units
from secateur.architecture.families import FAMILIES
from secateur.architecture.layout import INSIDE
from secateur.models.surgery import merged_weight
from secateur.pruning.compensation.sequence import refit_in_sequence
from secateur.system.errors import InputError
from tests.architecture.rows import tiny
from tests.pruning.test_depth import IDS, pruner_of, train, with_lora
from tests.pruning.test_pruner import rows
from tests.pruning.test_sequence import with_lora as deep

KINDS = {"layers": ("layers",), "blocks": ("blocks",), "mixed": ("heads", "channels", "blocks")}


def stays(units, gone):
    """Pool name -> which of its units stay: none where it or its block is named, else all but every third of width."""
    found = {}
    for pool in units.pools:
        block = f"layer.{pool.layer}.{INSIDE.get(pool.kind)}"
        keep = torch.full((pool.size,), pool.name not in gone and block not in gone)
        if pool.size > 1 and pool.layer == 2:
            keep[::3] = False
        found[pool.name] = keep
    return found


def by_hand(model, units, keep, ids, ridge):
    """Attention and FFN one after the other as a plain loop: what stays is fitted to where the layer begins, of which
    something stays next."""
    base, parts = model.get_base_model(), []
    whole = base.model.embed_tokens(ids)
    positions = base.model.rotary_emb(whole, torch.arange(ids.shape[1])[None])
    for number, layer in enumerate(base.model.layers):
        for kind, linear in (("attention", layer.self_attn.o_proj), ("ffn", layer.mlp.down_proj)):
            mask = torch.ones(linear.base_layer.weight.shape[1]).double()
            for pool in units.pools:
                inner = INSIDE.get(pool.kind, pool.kind)
                if pool.layer == number and inner in ("layer", f"{kind}_block"):
                    end = next(end for end in pool.ends if base.get_submodule(end.linear) is linear)
                    mask[end.entries(~keep[pool.name])] = 0

            def adds(h, mask=mask, layer=layer, linear=linear, kind=kind):
                seen = {}
                hook = linear.register_forward_pre_hook(lambda m, args: (seen.setdefault("x", args[0] * mask),))
                if kind == "attention":
                    entering = layer.input_layernorm(h)
                    out, _ = layer.self_attn(entering, position_embeddings=positions, attention_mask=None)
                else:
                    out = layer.mlp(layer.post_attention_layernorm(h))
                hook.remove()
                return seen["x"].flatten(0, 1), out

            parts.append((mask, linear, adds))
    ones = [torch.ones_like(mask) for mask, _, _ in parts]
    streams, cut, lost = [whole], whole, False
    for (_, _, adds), one in zip(parts, ones, strict=True):
        streams.append(streams[-1] + adds(streams[-1], one)[1])
    for number, (mask, linear, adds) in enumerate(parts):
        if not mask.any():
            lost = True
            continue
        following = next((n for n in range(number + 1, len(parts)) if parts[n][0].any()), len(parts))
        if following // 2 > number // 2:  # where its layer begins
            following -= following % 2
        lost |= not mask.all() or following > number + 1
        x, less = adds(cut, mask)
        stay = mask.nonzero().flatten()
        if lost:
            x, lacks = x[:, stay], (streams[following] - cut - less).flatten(0, 1)
            level = (ridge * x.square().sum(0).mean()).sqrt() * torch.eye(len(stay)).double()
            wanted = torch.cat([lacks, torch.zeros(len(stay), lacks.shape[1]).double()])
            linear.base_layer.weight[:, stay] += torch.linalg.lstsq(torch.cat([x, level]), wanted).solution.T
        cut = cut + adds(cut, mask)[1]


GONE = {
    "layers": ["layer.1.layer", "layer.2.layer", "layer.4.layer"],
    "layers from the first on": ["layer.0.layer", "layer.2.layer"],
    "blocks": ["layer.1.ffn_block", "layer.2.attention_block", "layer.3.attention_block", "layer.3.ffn_block"],
    "mixed": ["layer.0.ffn_block", "layer.3.attention_block"],
}


@pytest.mark.parametrize("case", GONE)
def test_it_is_brute_force_least_squares(case) -> None:
    """By `lstsq` on stacked rows, with LoRA at work."""
    kinds, found = KINDS[case.split()[0]], []
    for way in (
        lambda *given: by_hand(*given, rows(6), 0.1),
        lambda *given: refit_in_sequence(*given, [{"input_ids": part} for part in rows(6).split(2)], ridges=[0.1]),
    ):
        model = deep(layers=5)
        units = find_units(model.get_base_model(), FAMILIES["llama"], kinds=kinds)
        with torch.no_grad():
            way(model, units, stays(units, GONE[case]))
        found.append({name: parameter.detach() for name, parameter in model.named_parameters()})
    start = dict(deep(layers=5).named_parameters())
    changed = [{name for name, weight in each.items() if not torch.equal(weight, start[name])} for each in found]
    assert changed[0] == changed[1] != set()
    for name in changed[0]:  # float32 inside transformers
        torch.testing.assert_close(found[1][name], found[0][name], rtol=1e-5, atol=1e-6)


def test_what_a_gap_adds_linearly_goes_without_a_trace() -> None:
    """Two layers whose sum is a linear map of what the layer before them reads in its down."""
    model = tiny_llama(layers=4, ffn=24, dtype=torch.float64)
    units = find_units(model, FAMILIES["llama"], kinds=("layers",))
    layers, ids, seen = model.model.layers, rows(40), []
    mixed = torch.randn(64, 24, generator=torch.Generator().manual_seed(0)).double() / 24
    layers[1].mlp.down_proj.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    for layer in layers[2:3]:
        layer.forward = lambda h, *args, **kwargs: h + seen[-1] @ mixed.T
    keep = {pool.name: torch.tensor([pool.layer != 2]) for pool in units.pools}
    with torch.no_grad():
        before = model(ids).logits
        start = layers[1].mlp.down_proj.weight.clone()
        refit_in_sequence(model, units, keep, [{"input_ids": ids}], ridges=[1e-12])
        torch.testing.assert_close(layers[1].mlp.down_proj.weight - start, mixed, rtol=0, atol=1e-5)
        layers[2].forward = lambda h, *args, **kwargs: h
        torch.testing.assert_close(model(ids).logits, before, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("units", "more"),
    [("layers", {}), ("blocks", {}), ("heads,channels,blocks", {"allocation": "global", "sparsity": 0.5})],
)
def test_shrinking_is_masking_and_a_saved_state_goes_on(units, more, tmp_path) -> None:
    given = {"units": units, "compensate": "sequential", **more}
    masked, shrunk = with_lora(), with_lora()
    one, other = pruner_of(masked, shrink=False, **given), pruner_of(shrunk, **given)
    train(masked, one)
    optimizer = train(shrunk, other, steps=4)
    assert other.cuts[-1].removed
    other.save(tmp_path)
    again = with_lora()
    resumed = pruner_of(again, **given)
    resumed.load(tmp_path)
    weights = {name: weight for name, weight in shrunk.state_dict().items() if "lora_" in name}
    assert not again.load_state_dict(weights, strict=False).unexpected_keys
    second = torch.optim.AdamW([p for p in again.parameters() if p.requires_grad], lr=1e-3, eps=1e-3)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for model, pruner, each in ((shrunk, other, optimizer), (again, resumed, second)):
        for _ in range(2):
            model(input_ids=IDS, labels=IDS).loss.backward()
            pruner.observe()
            each.step()
            pruner.step(each)
            each.zero_grad()
    assert [cut.removed for cut in one.cuts] == [cut.removed for cut in other.cuts]
    torch.testing.assert_close(shrunk(input_ids=IDS).logits, masked(input_ids=IDS).logits, rtol=0.0, atol=1e-6)
    left = dict(again.named_parameters())
    assert all(torch.equal(left[name], weight) for name, weight in shrunk.named_parameters())


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma3_text"])
def test_logits_come_closer_to_those_before(name) -> None:
    base, family = tiny(name), FAMILIES[name]
    units = find_units(base, family, kinds=("layers",))
    gone = len(units.shapes) // 2
    keep = {pool.name: torch.tensor([pool.layer != gone]) for pool in units.pools}
    ids = torch.randint(3, 99, (16, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, errors = base(ids).logits, []
        layer = base.get_submodule(units.places[gone].prefix)
        for refits in (False, True):
            if refits:
                refit_in_sequence(base, units, keep, [{"input_ids": part} for part in ids.split(4)])
            hook = layer.register_forward_hook(
                lambda m, args, kwargs, out: (
                    ((args[0] if args else kwargs["hidden_states"]), *out[1:])
                    if isinstance(out, tuple)
                    else (args[0] if args else kwargs["hidden_states"])
                ),
                with_kwargs=True,
            )
            errors.append(float((base(ids).logits - before).square().sum()))
            hook.remove()
    assert errors[1] < 0.8 * errors[0]


def test_layers_that_cannot_make_up_for_others_are_refused_before_training() -> None:
    model = tiny_llama(layers=3)
    for layer in model.model.layers:  # a norm behind the sum
        own, norm = layer.forward, nn.LayerNorm(64)
        layer.forward = lambda *args, own=own, norm=norm, **kwargs: norm(own(*args, **kwargs))
    pruner = Pruner(model, units="layers", sparsity=0.3, criterion="magnitude", compensate="sequential")
    with pytest.raises(InputError, match="a norm stands behind the sum.*use compensate='none'"):
        pruner.calibrate([{"input_ids": rows(2)}])
    with pytest.raises(InputError, match="lstsq.* lets heads and channels take over.*sequential"):
        Pruner(model, units="layers", sparsity=0.3, criterion="magnitude", compensate="lstsq")


def test_the_map_is_in_the_weight_that_is_written() -> None:
    """`merged_weight` is base + LoRA: the change is in the base, so a stock layer holds it."""
    model = deep(layers=4)
    units = find_units(model.get_base_model(), FAMILIES["llama"], kinds=("layers",))
    down = model.get_base_model().model.layers[0].mlp.down_proj
    before, base = merged_weight(down).detach().clone(), down.base_layer.weight.detach().clone()
    refit_in_sequence(model, units, stays(units, ["layer.1.layer"]), [{"input_ids": rows(6)}])
    torch.testing.assert_close(merged_weight(down) - before, down.base_layer.weight - base)
    assert float((down.base_layer.weight - base).detach().norm()) > 1e-3
