"""Whole layers as units: what they score, that masks and slices are one, and what is refused."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_llama
from torch import nn

from secateur import Pruner
from secateur.pruning.allocation.depth import layer_words
from secateur.system.errors import InputError

IDS = torch.randint(3, 127, (3, 24), generator=torch.Generator().manual_seed(1))
LAYERS = 5


def with_lora(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    base = tiny_llama(layers=LAYERS, dtype=dtype, bias=True)
    return get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)).eval()


def pruner_of(model, **given):
    options = {
        "units": "layers",
        "sparsity": 0.4,
        "prune_start": 1,
        "prune_end": 5,
        "frequency": 2,
        "schedule": "linear",
    }
    pruner = Pruner(model, **{"total_steps": 6, "criterion": "gate", **options, **given})
    if pruner.pruned.calibrated_for:
        pruner.calibrate([{"input_ids": IDS[:2]}, {"input_ids": IDS[2:]}])
    return pruner


def train(model, pruner, steps=6, first=0):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, eps=1e-3)
    for _ in range(first, steps):
        model(input_ids=IDS, labels=IDS).loss.backward()
        pruner.observe()
        optimizer.step()
        pruner.step(optimizer)
        optimizer.zero_grad()
    return optimizer


@pytest.mark.parametrize("criterion", ["gate", "lora", "taylor", "loss"])
def test_blocks_shrink_as_they_are_masked(criterion) -> None:
    masked, shrunk = with_lora(), with_lora()
    given = {"criterion": criterion, "units": "blocks", "sparsity": 0.45}
    one, other = pruner_of(masked, shrink=False, **given), pruner_of(shrunk, **given)
    train(masked, one)
    optimizer = train(shrunk, other)
    assert [cut.removed for cut in one.cuts] == [cut.removed for cut in other.cuts]
    kinds = {name.rsplit(".", 1)[-1] for name, keep in one.keep.items() if not keep.all()}
    assert kinds == {"attention_block", "ffn_block"}
    torch.testing.assert_close(shrunk(input_ids=IDS).logits, masked(input_ids=IDS).logits, rtol=0.0, atol=1e-9)
    assert {p for group in optimizer.param_groups for p in group["params"]} == {
        p for p in shrunk.parameters() if p.requires_grad
    }
    finest = min(pool.unit_params for pool in one.units.pools)
    assert abs(one.removed_params - one.budget.removed_params) <= finest


@pytest.mark.parametrize("criterion", ["gate", "lora"])
def test_blocks_compete_with_their_own_heads_and_channels(criterion) -> None:
    masked, shrunk = with_lora(), with_lora()
    before = sum(p.numel() for p in shrunk.get_base_model().parameters())
    given = {"criterion": criterion, "units": "heads,channels,blocks", "allocation": "global", "sparsity": 0.5}
    one, other = pruner_of(masked, shrink=False, **given), pruner_of(shrunk, **given)
    assert one.units.prunable_params == sum(
        parameter.numel()
        for name, parameter in tiny_llama(layers=LAYERS, bias=True).model.layers.named_parameters()
        if "norm" not in name and name.split(".", 1)[1] not in ("self_attn.o_proj.bias", "mlp.down_proj.bias")
    )
    with torch.no_grad():  # a block that adds next to nothing goes whole
        for model in (masked, shrunk):
            model.get_base_model().model.layers[2].mlp.down_proj.base_layer.weight.mul_(1e-4)
            model.get_base_model().model.layers[2].mlp.down_proj.lora_B["default"].weight.mul_(1e-4)
    train(masked, one)
    train(shrunk, other)
    gone = {name: int((~keep).sum()) for name, keep in one.keep.items()}
    assert gone == {name: int((~keep).sum()) for name, keep in other.keep.items()}
    assert gone["layer.2.ffn_block"] == 1
    assert gone["layer.2.ffn"] == 96
    assert any(0 < count < 96 for name, count in gone.items() if name.endswith(".ffn")), "others lose channels"
    for name, keep in one.keep.items():  # a block that stays keeps its floor, one that goes leaves nothing
        layer, kind = name.rsplit(".", 1)
        if kind in ("ffn", "kv_group"):
            block = layer + (".ffn_block" if kind == "ffn" else ".attention_block")
            assert gone[name] == len(keep) if gone[block] else gone[name] <= 0.7 * len(keep)
    assert one.sparsity == pytest.approx(0.5, abs=0.005)
    torch.testing.assert_close(shrunk(input_ids=IDS).logits, masked(input_ids=IDS).logits, rtol=0.0, atol=1e-9)
    left = sum(p.numel() for name, p in shrunk.get_base_model().named_parameters() if ".lora_" not in name)
    lora = sum(p.numel() for name, p in with_lora().get_base_model().named_parameters() if ".lora_" in name)
    assert before - lora - left == one.removed_params


def test_a_blocks_gate_is_the_gradient_of_a_switch_on_its_output() -> None:
    model = with_lora()
    pruner = pruner_of(model, units="blocks", gate_tokens=0)
    model(input_ids=IDS, labels=IDS).loss.backward()
    pruner.observe()
    model.zero_grad()
    switches = {name: torch.ones(len(IDS), 1, 1, dtype=torch.float64, requires_grad=True) for name in pruner.keep}
    pruner.close()
    for pool in pruner.units.pools:
        path, switch = pool.gates[0].linear, switches[pool.name]
        module = model.get_base_model().get_submodule(path)
        module.register_forward_pre_hook(lambda m, args, switch=switch: (args[0] * switch,))
    model(input_ids=IDS, labels=IDS).loss.backward()
    for name, switch in switches.items():
        wanted = switch.grad.square().sum() / len(IDS)
        torch.testing.assert_close(pruner.scores[name].squeeze() / 0.1, wanted, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("criterion", ["gate", "lora", "taylor", "influence", "loss", "magnitude"])
def test_shrinking_is_masking_and_the_parameters_are_gone(criterion) -> None:
    masked, shrunk = with_lora(), with_lora()
    one, other = pruner_of(masked, criterion=criterion, shrink=False), pruner_of(shrunk, criterion=criterion)
    train(masked, one)
    optimizer = train(shrunk, other)
    assert [cut.removed for cut in one.cuts] == [cut.removed for cut in other.cuts]
    gone = [name for name, keep in one.keep.items() if not keep.all()]
    assert len(gone) == 2
    assert len([cut for cut in one.cuts if cut.removed]) == 2, "one after the other"
    torch.testing.assert_close(shrunk(input_ids=IDS).logits, masked(input_ids=IDS).logits, rtol=0.0, atol=1e-9)
    left = dict(shrunk.named_parameters())
    for name, parameter in masked.named_parameters():
        away = any(f".layers.{pool.split('.')[1]}." in name for pool in gone)
        assert (name not in left) == away
        if not away:
            torch.testing.assert_close(left[name], parameter, rtol=0.0, atol=1e-9)
    held = {p for group in optimizer.param_groups for p in group["params"]}
    assert held == {p for p in left.values() if p.requires_grad} >= optimizer.state.keys()
    assert one.sparsity == pytest.approx(0.4, abs=1e-9)


def test_gate_is_the_gradient_of_a_switch_on_what_the_layer_adds() -> None:
    model = with_lora()
    pruner = pruner_of(model, gate_tokens=0)
    switches, handles = torch.ones(len(IDS), LAYERS, dtype=torch.float64, requires_grad=True), []
    model(input_ids=IDS, labels=IDS).loss.backward()
    pruner.observe()
    model.zero_grad()
    for number, layer in enumerate(model.get_base_model().model.layers):

        def hook(module, args, output, number=number):
            return args[0] + switches[:, number].view(-1, 1, 1) * (output - args[0])

        handles.append(layer.register_forward_hook(hook))
    model(input_ids=IDS, labels=IDS).loss.backward()
    wanted = switches.grad.square().sum(0) / len(IDS)
    found = torch.cat(list(pruner.scores.values())) / (1 - pruner.options.ema)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=0.0)


def test_influence_and_the_loss_without_are_their_formulas() -> None:
    model = with_lora()
    states = model(input_ids=IDS, output_hidden_states=True).hidden_states
    layers = model.get_base_model().model.layers
    inputs, outputs = [], []
    for layer in layers:
        layer.register_forward_hook(lambda m, args, output: (inputs.append(args[0]), outputs.append(output), None)[2])
    whole = model(input_ids=IDS, labels=IDS).loss.item()
    assert torch.equal(inputs[1], states[1])
    turned = [1 - nn.functional.cosine_similarity(x, y, dim=-1).mean() for x, y in zip(inputs, outputs, strict=True)]
    pruner = pruner_of(model, criterion="influence", schedule="one-shot")
    train(model, pruner, steps=1)
    found = torch.cat(list(pruner.scores_before_cuts.values()))
    torch.testing.assert_close(found, torch.stack(turned).detach(), rtol=1e-9, atol=0.0)

    wanted = []
    for number in range(LAYERS):
        other = with_lora()
        del other.get_base_model().model.layers[number]
        wanted.append(other(input_ids=IDS, labels=IDS, use_cache=False).loss.item() - whole)
    model = with_lora()
    pruner = pruner_of(model, criterion="loss", schedule="one-shot")
    train(model, pruner, steps=1)
    found = torch.cat(list(pruner.scores_before_cuts.values()))
    # transformers' own loss is of float32 logits
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-4, atol=0.0)
    worst = sorted(range(LAYERS), key=wanted.__getitem__)[:2]
    assert sorted(int(name.split(".")[1]) for cut in pruner.cuts for name in cut.removed) == sorted(worst)


@pytest.mark.parametrize("criterion", ["gate", "influence"])
def test_layers_computed_twice_count_once(criterion) -> None:
    found = []
    for reentrant in (None, False, True):
        model = with_lora().train()
        if reentrant is not None:
            model.get_base_model().activation_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        pruner = pruner_of(model, criterion=criterion)
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        pruner.observe()
        found.append(torch.cat(list(pruner.scores.values())))
    torch.testing.assert_close(found[1:], [found[0]] * 2, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("shrink", [True, False])
def test_state_goes_into_a_fresh_pruner(shrink, tmp_path) -> None:
    whole = with_lora()
    straight = pruner_of(whole, shrink=shrink)
    train(whole, straight)
    model = with_lora()
    first = pruner_of(model, shrink=shrink)
    optimizer = train(model, first, steps=4)
    assert any(not keep.all() for keep in first.keep.values())
    first.save(tmp_path)
    again = with_lora()
    second = pruner_of(again, shrink=shrink)
    second.load(tmp_path)
    again.load_state_dict(model.state_dict())  # strict: the same parameters are left
    resumed = torch.optim.AdamW([p for p in again.parameters() if p.requires_grad], lr=1e-3, eps=1e-3)
    resumed.load_state_dict(optimizer.state_dict())
    for _ in range(2):
        again(input_ids=IDS, labels=IDS).loss.backward()
        second.observe()
        resumed.step()
        second.step(resumed)
        resumed.zero_grad()
    assert {name: mask.tolist() for name, mask in second.keep.items()} == {
        name: mask.tolist() for name, mask in straight.keep.items()
    }
    left = dict(again.named_parameters())
    assert all(torch.equal(left[name], parameter) for name, parameter in whole.named_parameters())


def test_protected_layers_stay_and_the_nearest_count_goes() -> None:
    model = with_lora()
    pruner = pruner_of(model, sparsity=0.35, protect_first=2, protect_last=1, schedule="one-shot", criterion="random")
    assert layer_words(pruner.budget) == "2 of 5 layers go"
    assert pruner.budget.sparsity == pytest.approx(0.4)
    train(model, pruner, steps=1)
    assert [int(name.split(".")[1]) for name, keep in pruner.keep.items() if not keep.all()] == [2, 3]
    for options, words in (
        ({"sparsity": 0.09}, "is not reachable with .*: at least 0.2000"),
        ({"sparsity": 0.95}, "at most 0.8000. Stay within that: one has to stay"),
        ({"sparsity": 0.7, "protect_first": 2}, "at most 0.6000. Stay within that: protect fewer"),
        ({"allocation": "global"}, "global.? says how much each layer loses"),
        ({"attention": "query_head"}, "attention is about heads and channels"),
        ({"compensate": "lstsq"}, "use sequential, by which the layers before and behind do, or none"),
        ({"criterion": "wanda"}, "scores heads and channels, by input moments"),
        ({"units": "heads,channels,blocks"}, "add .*allocation.*global"),
        (
            {"units": "heads,channels,blocks", "allocation": "global", "criterion": "magnitude"},
            "are on no one scale",
        ),
        ({"criterion": "influence", "units": "heads,channels"}, "influence.? scores whole layers"),
    ):
        with pytest.raises(InputError, match=words):
            pruner_of(with_lora(), **options)
