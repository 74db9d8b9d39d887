"""FFNs beside routed experts, routers of every kind, and which experts go."""

import json

import pytest
import torch
from tiny import tiny_tokenizer
from transformers import AutoModelForCausalLM

from secateur import Pruner
from secateur.architecture.discovery import find_units
from secateur.architecture.experts import (
    LEAST_TOKENS,
    check_expert_count,
    drop_experts,
    expert_lists,
    stack_experts,
    unstack_experts,
)
from secateur.architecture.families import FAMILIES
from secateur.architecture.stock import resized_config, stock_class_of
from secateur.checkpoint.comparing import logits_of
from secateur.cli import main
from secateur.system.errors import InputError
from tests.architecture.rows import IDS, mixtures, tiny

BIASED = {
    "deepseek_v3": "gate.e_score_correction_bias",
    "glm4_moe": "gate.e_score_correction_bias",
    "gpt_oss": "router.bias",
    "afmoe": "expert_bias",
    "minimax_m2": "e_score_correction_bias",
    "dots3_note_text": "gate.e_score_correction_bias",
}
"""What, at minus infinity, keeps a router from choosing an expert; the others' weights stay as they are."""


def stacked(name: str):
    """The stock model, and the same with its experts apart."""
    apart = tiny(name, 2)
    model = stock_class_of(apart.config)._from_config(apart.config, dtype=torch.float32)
    model.load_state_dict(dict(stack_experts(apart.state_dict().items(), FAMILIES[name.split("/")[0]])))
    return model.eval(), apart


def counted(model):
    """What it was given: a batch in which every expert sees enough."""
    ids = torch.stack([torch.arange(3, 103), torch.arange(3, 103).flip(0), torch.arange(103, 3, -1)])
    for experts in expert_lists(model).values():
        experts.counting = True
    model(ids)
    return ids


@pytest.mark.parametrize("name", mixtures.TYPES)
def test_apart_every_mixture_computes_the_same(name) -> None:
    stock, apart = stacked(name)
    family, expected = FAMILIES[name.split("/")[0]], logits_of(stock, IDS)
    close = {"rtol": 0.0, "atol": 1e-5 * float(expected.abs().max())}
    torch.testing.assert_close(logits_of(apart, IDS), expected, **close)
    if any(each.stock and not each.together for each in family.beside):
        unstacked = {path for path, module in apart.named_modules() if isinstance(module, torch.nn.Linear)}
        assert not any(path.endswith((".gate_proj", ".down_proj")) and ".mlp." in path for path in unstacked)
    again = dict(stack_experts(apart.state_dict().items(), family))
    assert again.keys() == stock.state_dict().keys()
    assert all(torch.equal(again[key], value) for key, value in stock.state_dict().items())


@pytest.mark.parametrize("name", BIASED)
def test_what_a_router_says_of_each_expert_goes_with_it(name) -> None:
    stock, small = stacked(name)
    family = FAMILIES[name]
    counted(small)
    gone = drop_experts(small, family, 3)
    for path, numbers in gone.items():
        holder, _, leaf = BIASED[name].rpartition(".")
        place = path.removesuffix(".experts") + ("." + holder if holder else "")
        getattr(stock.get_submodule(place), leaf).data[..., numbers] = -1e9
    expected = logits_of(stock, IDS)
    close = {"rtol": 0.0, "atol": 2e-5 * float(expected.abs().max())}
    torch.testing.assert_close(logits_of(small, IDS), expected, **close)
    again = AutoModelForCausalLM.from_config(small.config, dtype=torch.float32).eval()
    again.load_state_dict(dict(stack_experts(small.state_dict().items(), family)))
    torch.testing.assert_close(logits_of(again, IDS), expected, **close)


def test_ernies_correction_goes_with_its_expert() -> None:
    """It is added to probabilities, which are others without some experts, so only what is left of it is known."""
    model = tiny("ernie4_5_moe", 2)
    statics = model.model.layers[1].mlp.gate.moe_statics
    before = statics.e_score_correction_bias.clone()
    counted(model)
    (gone,) = drop_experts(model, FAMILIES["ernie4_5_moe"], 3).values()
    assert torch.equal(statics.e_score_correction_bias, before[:, [n for n in range(4) if n not in gone]])


def let_skip_(model) -> None:
    """Half of the tokens skip each layer's experts; at first none do."""
    for layer in model.model.layers:
        seen = []
        handle = layer.mlp.gate.router_mlp.register_forward_hook(lambda m, args, output, seen=seen: seen.append(output))
        logits_of(model, torch.arange(3, 103).unsqueeze(0))
        handle.remove()
        chances = seen[0].softmax(-1).flatten(0, 1)
        layer.mlp.gate.balancing_biases[-1] = (chances[:, :-1].amax(-1) - chances[:, -1]).median()


@pytest.mark.parametrize(("name", "each", "more"), [("zaya", 1, 1), ("longcat_flash", 3, 2), ("dbrx", 2, 0)])
def test_what_a_router_chooses_beside_experts_stays(name, each, more) -> None:
    """Zaya may skip a layer, and some of LongCat's experts hand on what they read: their rows follow the others'."""
    model, family = tiny(name, 2), FAMILIES[name]
    layers = list(model.get_submodule(family.layers))
    before = [layer.get_submodule(family.router).weight.clone() for layer in layers]
    if name == "zaya":
        let_skip_(model)
    ids = counted(model)
    for experts in expert_lists(model).values():
        assert (int(experts.chosen.sum()) == ids.numel() * each) == (more == 0)
    gone = drop_experts(model, family, 3)
    for layer, rows, numbers in zip(layers, before, gone.values(), strict=True):
        left = rows[[number for number in range(4 + more) if number not in numbers]]
        assert torch.equal(layer.get_submodule(family.router).weight, left)
    again = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32).eval()
    again.load_state_dict(dict(stack_experts(model.state_dict().items(), family)))
    expected = logits_of(model, IDS)
    torch.testing.assert_close(logits_of(again, IDS), expected, rtol=0.0, atol=2e-5 * float(expected.abs().max()))


def test_a_key_that_is_of_two_mixtures_lets_no_expert_go() -> None:
    with pytest.raises(InputError, match="--experts 3: its attention has as many experts as its FFN"):
        check_expert_count(tiny("jetmoe").config, FAMILIES["jetmoe"], 3)


def noting(seen, path):
    """A hook that keeps what a router read and said."""

    def hook(module, args, output) -> None:
        seen[path] = [args[0].reshape(-1, 48), *output]

    return hook


@pytest.mark.parametrize("name", ["deepseek_v3", "gpt_oss", "llama4_text"])
def test_reap_is_the_mean_of_what_an_expert_adds(name) -> None:
    """Against the stock model's own router and experts run one by one."""
    stock, small = stacked(name)
    ids = counted(small)
    seen: dict[str, list[torch.Tensor]] = {}
    family = FAMILIES[name]
    for path in expert_lists(small):
        router = stock.get_submodule(path.removesuffix(family.experts) + family.router)
        router.register_forward_hook(noting(seen, path))
    stock(ids)
    for path, experts in expert_lists(small).items():
        x, *said = seen[path]
        scores = said[0] if name == "llama4_text" else torch.zeros(len(x), len(experts)).scatter(1, said[2], said[1])
        for number, expert in enumerate(experts):
            given = scores[:, number] > 0
            read, gate = x[given], scores[given, number]
            # Llama 4 weighs what an expert reads, the others what it says.
            added = expert(read * gate[:, None]) if name == "llama4_text" else expert(read) * gate[:, None]
            mean = added.norm(dim=1).mean()
            torch.testing.assert_close(experts.effect[number] / experts.chosen[number], mean, rtol=1e-4, atol=0)
    means = {path: experts.effect / experts.chosen for path, experts in expert_lists(small).items()}
    if name == "llama4_text":
        with pytest.raises(InputError, match="router's weights are in what a llama4_text's experts read"):
            drop_experts(small, family, 3, "router")
    gone = drop_experts(small, family, 3, "reap")
    assert gone == {path: [int(mean.argmin())] for path, mean in means.items()}


def test_a_mean_over_few_tokens_is_none() -> None:
    model = tiny("qwen3_moe", 2)
    counted(model)
    second = expert_lists(model)["model.layers.1.mlp.experts"]
    second.chosen[:] = torch.tensor([LEAST_TOKENS * 4 - 1.0, 0, 0, 0])
    with pytest.raises(InputError, match=rf"of model\.layers\.1\.mlp\.experts have seen {LEAST_TOKENS - 1} tokens"):
        drop_experts(model, FAMILIES["qwen3_moe"], 3, "reap")
    assert model.config.num_experts == 4
    second.chosen[0] += 1
    assert drop_experts(model, FAMILIES["qwen3_moe"], 3, "reap").keys() == expert_lists(model).keys()


def test_each_group_of_a_router_keeps_as_many() -> None:
    model = tiny("deepseek_v2/q_proj", 2)
    family = FAMILIES["deepseek_v2"]
    with pytest.raises(InputError, match=r"--experts 5: .* give a number from 4 to 6 that 2 divides, .* 2 groups"):
        check_expert_count(model.config, family, 5)
    counted(model)
    (experts,) = expert_lists(model).values()
    experts.mass[:] = torch.tensor([9.0, 8.0, 7.0, 6.0, 1.0, 2.0, 3.0, 4.0])
    assert list(drop_experts(model, family, 4).values()) == [[2, 3, 4, 5]]
    again = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32).eval()
    again.load_state_dict(dict(stack_experts(model.state_dict().items(), family)))
    expected = logits_of(model, IDS)
    torch.testing.assert_close(logits_of(again, IDS), expected, rtol=0.0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("shrink", [True, False])
def test_shared_experts_lose_with_the_routed_at_every_cut(shrink) -> None:
    """DeepSeek's shared experts are n times as wide as a routed one, by one size in the config."""
    model = tiny("deepseek_v3", 2).requires_grad_(True)
    family = FAMILIES["deepseek_v3"]
    pruner = Pruner(
        model, sparsity=0.4, total_steps=6, prune_start=1, prune_end=5, frequency=1, criterion="gate", shrink=shrink,
        schedule="linear",
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    widths = []
    for _ in range(6):
        model(IDS, labels=IDS).loss.backward()
        pruner.observe()
        pruner.step(optimizer)
        optimizer.zero_grad()
        dense, moe = pruner.units.shapes_after(pruner.keep)
        widths.append(moe.ffn)
        assert dict(moe.beside) == {"shared": 2 * moe.ffn}
        assert dict(dense.beside).keys() == {"dense"}
        resized_config(model.config, family, moe)
    assert len(set(widths)) > 2, "several cuts, all of which a config can say"
    names = [pool.name for pool in pruner.units.of_kind("ffn")]
    assert names == ["layer.0.dense.ffn", *(f"layer.1.expert{n}.ffn" for n in range(4)), "layer.1.shared.ffn"]
    odd = moe.without("ffn", 1, "shared")
    words = rf"one size .* \(moe_intermediate_size\) .* have {2 * moe.ffn - 1}"
    with pytest.raises(InputError, match=words):
        resized_config(model.config, family, odd)


def test_what_goes_with_heads_beside_the_projections() -> None:
    """GPT-OSS's sinks and AFMoE's gate on what attention gives: counted with the heads, and not scored."""
    for name, path, entries in (("gpt_oss", "sinks", 2), ("afmoe", "gate_proj", 2 * 16 * 48)):
        model = tiny(name, 2)
        units = find_units(model, FAMILIES[name])
        pool = units.of_kind("kv_group")[0]
        (member,) = (m for m in pool.members if not m.scored)
        assert member.linear == f"model.layers.0.self_attn.{path}"
        assert member.linear not in units.linears
        attention = model.get_submodule("model.layers.0.self_attn")
        own = sum(p.numel() for p in attention.parameters() if p.dim() > 1 or p is getattr(attention, "sinks", None))
        biases = sum(getattr(attention, f"{part}_proj").bias.numel() for part in "qkv") if name == "gpt_oss" else 0
        assert pool.size * pool.unit_params == own + biases
        assert pool.unit_params > entries


def test_the_command_on_a_deepseek(tmp_path, capsys) -> None:
    """Experts by REAP, then heads, routed and shared channels and dense ones; read back by a fresh process."""
    stock, _ = stacked("deepseek_v3")
    stock.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("a quick brown fox jumps over the lazy dog. " * 120)
    arguments = ["--model", str(tmp_path / "model"), "--sparsity", "0.3", "--steps", "4", "--batch-size", "2"]
    arguments += ["--seq-len", "32", "--dtype", "float32"]
    training = ["--data", str(tmp_path / "text.txt"), "--frequency", "1", "--attention-sparsity", "0.333"]
    training += ["--experts", "3", "--output", str(tmp_path / "out")]
    assert main(["plan", *arguments]) == 0, capsys.readouterr().err
    assert main(["prune", *arguments, *training]) == 0, capsys.readouterr().err
    said = "".join(capsys.readouterr())
    assert "1 experts gone, 3 stay in each layer" in said
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    dense, moe = result["shapes"]
    assert dense["dense_ffn"] < 240
    assert (moe["heads"], moe["shared_ffn"]) == (4, 2 * moe["ffn"])
    assert result["export"]["format"] == "stock"
    assert result["experts"]["by"] == "reap"
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(small).__name__ == "DeepseekV3ForCausalLM"
    sizes = (small.config.n_routed_experts, small.config.num_attention_heads, small.config.moe_intermediate_size)
    assert sizes == (3, 4, moe["ffn"])
    assert len(small.model.layers[1].mlp.gate.e_score_correction_bias) == 3


def test_ffns_of_gate_up_and_down_have_to_be_apart() -> None:
    stock, apart = stacked("deepseek_v3")
    with pytest.raises(InputError, match=r"model\.layers\.0\.mlp has linears whose names PEFT takes .*unstack_experts"):
        find_units(stock, FAMILIES["deepseek_v3"])
    assert unstack_experts(stock) == 1
    assert find_units(stock, FAMILIES["deepseek_v3"]).shapes == find_units(apart, FAMILIES["deepseek_v3"]).shapes
