"""Mixtures of experts: apart they compute the same, and whole experts go with their row of the router."""

import json
from dataclasses import replace

import pytest
import torch
from tiny import tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from secateur import Pruner
from secateur.architecture.discovery import find_units
from secateur.architecture.experts import (
    ExpertList,
    drop_experts,
    expert_lists,
    stack_experts,
    unstack_experts,
    unused_experts,
)
from secateur.architecture.families import FAMILIES
from secateur.checkpoint.comparing import logits_of
from secateur.checkpoint.export import build_small
from secateur.cli import main
from secateur.config.prune import PruneConfig
from secateur.models.surgery import merged_and_sliced
from secateur.pruning.masks import Masks
from secateur.system.errors import InputError
from secateur.training.finetune import load_base, without_weights
from secateur.training.prepare import plan_budget, prepare
from tests.architecture.rows import IDS, SIZES, TYPES, tiny

MOE = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe"]


def stacked(name: str):
    """The stock model with experts in three dimensions, of the same weights as `tiny` gives."""
    apart = tiny(name)
    model = AutoModelForCausalLM.from_config(apart.config, dtype=torch.float32)
    model.load_state_dict(dict(stack_experts(apart.state_dict().items(), FAMILIES[name])))
    return model.eval(), apart


@pytest.mark.parametrize("name", MOE)
def test_apart_they_compute_the_same(name) -> None:
    stock, apart = stacked(name)
    expected = logits_of(stock, IDS)
    scale = float(expected.abs().max())
    torch.testing.assert_close(logits_of(apart, IDS), expected, rtol=0.0, atol=1e-5 * scale)
    state = {key: value.clone() for key, value in stock.state_dict().items()}
    layers = unstack_experts(stock)
    assert layers == (2 if name == "qwen2_moe" else 3)  # one of its layers has an FFN alone
    assert unstack_experts(stock) == 0
    again = dict(stack_experts(stock.state_dict().items(), FAMILIES[name]))
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)


@pytest.mark.parametrize("name", MOE)
def test_without_some_experts_the_router_is_one_of_the_others(name) -> None:
    """Against the stock model whose router cannot choose those that went: their logits are minus infinity."""
    stock, small = stacked(name)
    for experts in expert_lists(small).values():
        experts.counting = True
    small(IDS)
    mass = {path: experts.mass.clone() for path, experts in expert_lists(small).items()}
    gone = drop_experts(small, FAMILIES[name], 3)
    assert all(numbers == [int(mass[path].argmin())] for path, numbers in gone.items())
    chosen = []
    for path, numbers in gone.items():
        router = stock.get_submodule(path.replace("experts", "gate"))
        router.register_forward_hook(without(numbers, router))
        small.get_submodule(path.replace("experts", "gate")).register_forward_hook(
            lambda module, args, output: chosen.append(output[0].float().softmax(-1).sum(-1))
        )
    found, expected = logits_of(small, IDS), logits_of(stock, IDS)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=float(1e-5 * expected.abs().max()))
    assert len(chosen) == len(gone)
    for total in chosen:  # probabilities over the experts that stay
        torch.testing.assert_close(total, torch.ones_like(total))


def without(numbers, router):
    def hook(module, args, output):
        logits = output[0].clone()
        logits[:, numbers] = -torch.inf
        weights, index = logits.float().softmax(-1).topk(router.top_k, dim=-1)
        if getattr(router, "norm_topk_prob", True):
            weights = weights / weights.sum(-1, keepdim=True)
        return logits, weights, index

    return hook


def test_refusals() -> None:
    stock, apart = stacked("mixtral")
    with pytest.raises(InputError, match=r"call secateur\.unstack_experts\(model\) before LoRA is added"):
        find_units(stock, FAMILIES["mixtral"])
    for count in (1, 4):
        with pytest.raises(InputError, match=f"--experts {count}: .* give a number from 2 to 3"):
            drop_experts(apart, FAMILIES["mixtral"], count)
    with pytest.raises(InputError, match='allocation="global": a mixtral has one size in its config'):
        Pruner(apart, sparsity=0.2, criterion="magnitude", allocation="global")


def counted(model):
    for experts in expert_lists(model).values():
        experts.counting = True
    model(IDS)
    for experts in expert_lists(model).values():
        experts.counting = False
        experts.chosen.zero_()
    return model


def test_experts_are_not_dropped_unseen() -> None:
    stock, apart = stacked("qwen3_moe")
    for model in (stock, apart):  # not taken apart; taken apart, but nothing has run
        with pytest.raises(InputError, match="--experts 3: nothing has counted what the router gives.*unstack_experts"):
            drop_experts(model, FAMILIES["qwen3_moe"], 3)
        assert model.config.num_experts == 4
    with pytest.raises(InputError, match="--experts 3: a mistral has no experts: leave --experts out"):
        drop_experts(tiny("mistral"), FAMILIES["mistral"], 3)
    settings = PruneConfig(model="m", data=("d",), output="o", sparsity=0.5, experts=4)
    with pytest.raises(InputError, match="--experts 4: a mistral has no experts"):
        plan_budget(settings, tiny("mistral").config)
    with pytest.raises(InputError, match="--experts 4: the model has 4 experts .* give a number from 2 to 3"):
        plan_budget(settings, apart.config)


@pytest.mark.parametrize("name", MOE)
def test_who_stays_keeps_its_number_and_its_balance(name, tmp_path) -> None:
    """Numbers in records are those from before any expert went; the loss of balance counts those that stay."""
    _, model = stacked(name)
    lists = list(expert_lists(counted(model)).values())
    lists[0].mass[1] = 0.0
    gone = drop_experts(model, FAMILIES[name], 3)
    path = next(iter(gone))
    assert gone[path] == [1]
    assert expert_lists(model)[path].numbers == (0, 2, 3)
    pools = find_units(model, FAMILIES[name], "none").pools
    assert [pool.name for pool in pools[:3]] == ["layer.0.expert0.ffn", "layer.0.expert2.ffn", "layer.0.expert3.ffn"]
    expert_lists(model)[path].chosen[:2] = 5
    assert unused_experts(model)[path] == [3]
    small = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32).eval()
    small.load_state_dict(dict(stack_experts(model.state_dict().items(), FAMILIES[name])))
    expected = small(IDS, labels=IDS, output_router_logits=True)
    found = model(IDS, labels=IDS, output_router_logits=True)
    torch.testing.assert_close(found.aux_loss, expected.aux_loss)
    torch.testing.assert_close(found.loss, expected.loss)


def test_what_was_counted_goes_into_a_checkpoint(tmp_path) -> None:
    options = {"sparsity": 0.3, "total_steps": 4, "criterion": "magnitude"}
    saved, resumed = (Pruner(tiny("mixtral"), **options) for _ in range(2))
    saved.model.train()(IDS)
    counts = {path: experts.chosen.clone() for path, experts in expert_lists(saved.model).items()}
    assert all(int(chosen.sum()) == 2 * IDS.numel() for chosen in counts.values())
    saved.share()
    saved.save(tmp_path)
    resumed.load(tmp_path)
    for path, experts in expert_lists(resumed.model).items():
        assert torch.equal(experts.chosen, counts[path])


def test_other_layouts_of_experts_are_refused() -> None:
    options = {"num_local_experts": 4, "num_hidden_layers": 1, "hidden_size": 48, "intermediate_size": 24}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt_oss", **options))
    with pytest.raises(InputError, match="the experts of this mixtral are GptOssExperts with .*gate_up_proj_bias"):
        unstack_experts(model, FAMILIES["mixtral"])
    for change in ({"is_transposed": True}, {"is_concatenated": False}):
        stock, _ = stacked("mixtral")
        vars(stock.model.layers[0].mlp.experts).update(change)
        with pytest.raises(InputError, match="the experts of this mixtral are MixtralExperts"):
            unstack_experts(stock)


def test_an_unknown_mixture_of_a_known_layout(tmp_path) -> None:
    """`--family` reaches the experts wherever the model is built: plan, training, measuring."""
    options = {k: v for k, v in {**SIZES, **TYPES["olmoe"]}.items() if v is not None}
    config = AutoConfig.for_model("flex_olmo", **options)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("a quick brown fox jumps over the lazy dog. " * 40)
    settings = PruneConfig(
        model=str(tmp_path / "model"), data=(str(tmp_path / "text.txt"),), output=str(tmp_path / "out"), family="olmoe",
        sparsity=0.3, steps=2, batch_size=2, seq_len=32, experts=3, prune_start=1, prune_end=2, frequency=1,
        criterion="gate",
    )  # fmt: skip
    job = prepare(replace(settings, criterion="lora"))
    base = load_base(job, torch.float32)
    assert len(expert_lists(base)) == len(expert_lists(without_weights(job))) == 3
    assert len(find_units(base, job.family).of_kind("ffn")) == 12


def test_the_command(tmp_path, capsys) -> None:
    """Experts go before training, channels during it, and one that is never chosen is named."""
    options = {k: v for k, v in {**SIZES, **TYPES["mixtral"], "num_local_experts": 6}.items() if v is not None}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **options), dtype=torch.float32)
    with torch.no_grad():
        for layer in model.model.layers:
            a, b = torch.randn(2, 48)
            # Of a and -a one is chosen, and of b and -b: never the two whose rows are zero.
            layer.mlp.gate.weight.copy_(torch.stack([a, -a, b, -b, 0 * a, 0 * b]))
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("a quick brown fox jumps over the lazy dog. " * 120)
    arguments = ["prune", "--model", str(tmp_path / "model"), "--data", str(tmp_path / "text.txt"), "--steps", "6",
                 "--batch-size", "2", "--seq-len", "32", "--dtype", "float32", "--frequency", "1", "--sparsity", "0.3",
                 "--experts", "5", "--rank", "4"]  # fmt: skip
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 0, capsys.readouterr().err
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert {tuple(numbers) for numbers in result["experts"]["gone"].values()} <= {(4,), (5,)}
    assert len(result["experts"]["never_used"]) == 3
    assert result["sparsity"]["reached"] == pytest.approx(0.3, abs=0.02)  # widths are multiples of 8
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(small).__name__ == "MixtralForCausalLM"
    assert small.config.num_local_experts == 5
    assert small.config.intermediate_size % 8 == 0
    said = capsys.readouterr()
    assert "3 experts gone, 5 stay in each layer" in said.out + said.err
    assert "experts that no token of the training was given to: model.layers.0.mlp.experts [4]" in said.out + said.err
    assert not any(isinstance(module, ExpertList) for module in small.modules())
    assert main(["plan", *arguments[1:3], "--sparsity", "0.3"]) == 0
    adapting = ["adapt", *arguments[1:13], "--init-rank", "4", "--rank", "2", "--output", str(tmp_path / "adapter")]
    assert main(adapting) == 0, capsys.readouterr().err  # an adapter of the stock model: PEFT has read it back
    said = capsys.readouterr()
    assert "LoRA does not reach 92% of the parameters: model.layers.*.mlp.experts (92%)" in said.out + said.err
    assert main([*adapting, "--overwrite", "--targets", "q_proj", "w2"]) == 2
    assert "--targets w2: PEFT takes these names for experts of a mixtral" in capsys.readouterr().err


class Mlp(torch.nn.Module):
    def __init__(self, gate, up, down) -> None:
        super().__init__()
        for name, weight in (("gate_proj", gate), ("up_proj", up), ("down_proj", down)):
            linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            linear.weight.data = weight.clone()
            self.add_module(name, linear)

    def forward(self, x):
        return self.down_proj(torch.nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class ListOfMlps(torch.nn.ModuleList):
    """Experts as older modelling files have them."""

    def forward(self, hidden_states, top_k_index, top_k_weights):
        total = torch.zeros_like(hidden_states)
        for number, expert in enumerate(self):
            weight = (top_k_weights * (top_k_index == number)).sum(-1, keepdim=True)
            total = total + weight * expert(hidden_states)
        return total


LISTED = replace(
    FAMILIES["mixtral"],
    mlp_in=("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj"),
    mlp_out="mlp.experts.{}.down_proj",
)


class ListedConfig(MixtralConfig):
    model_type = "mixtral_as_a_list"


class ListedMixtral(MixtralForCausalLM):
    """A class of its own, as a checkpoint with such experts comes with."""

    config_class = ListedConfig

    def __init__(self, config) -> None:
        super().__init__(config)
        width, ffn = config.hidden_size, config.intermediate_size
        sizes = (ffn, width), (ffn, width), (width, ffn)
        for layer in self.model.layers:
            mlps = (Mlp(*(torch.zeros(size) for size in sizes)) for _ in range(config.num_local_experts))
            layer.mlp.experts = ListOfMlps(mlps)


def test_a_list_of_experts_is_written_as_one(tmp_path) -> None:
    AutoConfig.register(ListedConfig.model_type, ListedConfig, exist_ok=True)
    AutoModelForCausalLM.register(ListedConfig, ListedMixtral, exist_ok=True)
    values = tiny("mixtral").config.to_dict()
    model = ListedMixtral(ListedConfig(**{k: v for k, v in values.items() if k != "model_type"})).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    assert unstack_experts(model, LISTED) == 0
    with pytest.raises(InputError, match="--experts 3: nothing has counted"):
        drop_experts(model, LISTED, 3)
    dense = logits_of(model, IDS)
    units = find_units(model, LISTED, "kv_group")
    keep = {pool.name: torch.arange(pool.size) >= pool.size // 3 for pool in units.pools}
    masks = Masks(units, {path: model.get_submodule(path) for path in units.linears}, {})
    masks.update(keep)
    expected = logits_of(model, IDS)
    tensors = merged_and_sliced(model, units, keep)
    small = build_small(model.config, LISTED, units.shapes_after(keep), tensors, torch.float32, "keep")
    small.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.model.layers[2].mlp.experts[3].up_proj.out_features == 160
    torch.testing.assert_close(logits_of(again, IDS), expected, rtol=0.0, atol=float(2e-5 * expected.abs().max()))
    assert (expected - dense).abs().max() > 2e-3 * dense.abs().max()


def test_experts_that_are_a_list_already() -> None:
    name, family = "mixtral", LISTED

    def listed():
        model = tiny(name)
        for layer in model.model.layers:
            experts = layer.mlp.experts
            layer.mlp.experts = ListOfMlps(
                Mlp(*expert.gate_up.weight.chunk(2), expert.down.weight) for expert in experts
            )
        return model.requires_grad_(True)

    expected = logits_of(tiny(name), IDS)
    torch.testing.assert_close(logits_of(listed(), IDS), expected, rtol=0.0, atol=float(1e-5 * expected.abs().max()))
    found = []
    for shrink in (False, True):
        model = listed()
        pruner = Pruner(
            model, sparsity=0.4, total_steps=2, prune_start=0, prune_end=1, frequency=1, criterion="gate",
            family=family, shrink=shrink,
        )  # fmt: skip
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        model(IDS, labels=IDS).loss.backward()
        pruner.observe()
        pruner.step(optimizer)
        names = {key: tuple(value.shape) for key, value in merged_and_sliced(model, pruner.live, pruner.live_keep)}
        found.append((logits_of(model, IDS), names))
    (masked, sliced_names), (shrunk, shrunk_names) = found
    torch.testing.assert_close(shrunk, masked, rtol=0.0, atol=float(2e-5 * masked.abs().max()))
    assert (masked - expected).abs().max() > 2e-3 * expected.abs().max()
    assert sliced_names == shrunk_names
    assert sliced_names["model.layers.0.mlp.experts.1.up_proj.weight"][0] < 240
