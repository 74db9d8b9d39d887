"""Scores on fused, interleaved and transposed projections: those of the same weights in linears of their own."""

import copy
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from secateur import Pruner
from secateur.architecture.discovery import find_units
from secateur.architecture.families import FAMILIES, Family
from secateur.checkpoint.comparing import logits_of
from secateur.models.coverage import tell_transposed_
from tests.architecture.rows import IDS, SIZES, tiny

FUSED = {"q": "qkv_proj", "k": "qkv_proj", "v": "qkv_proj", "gate": "gate_up_proj", "up": "gate_up_proj"}


@pytest.mark.parametrize(
    "criterion", ["magnitude", "taylor", "taylor-accumulated", "gate", "wanda", "flap", "obs", "lora"]
)
@pytest.mark.parametrize("normalize", ["none", "linear"])
def test_scores_on_fused_projections_are_those_of_the_same_weights_unfused(criterion, normalize) -> None:
    fused = tiny("phi3")
    config = {k: v for k, v in {**SIZES, "sliding_window": 8}.items() if v is not None or k == "bos_token_id"}
    apart = AutoModelForCausalLM.from_config(AutoConfig.for_model("mistral", **config), dtype=torch.float32).eval()
    state = {}
    for name, tensor in fused.state_dict().items():
        if "qkv_proj" in name:
            parts = zip("qkv", tensor.split([96, 48, 48]), strict=True)
            state |= {name.replace("qkv_proj", f"{part}_proj"): rows for part, rows in parts}
        elif "gate_up_proj" in name:
            parts = zip(("gate", "up"), tensor.chunk(2), strict=True)
            state |= {name.replace("gate_up_proj", f"{part}_proj"): rows for part, rows in parts}
        else:
            state[name] = tensor
    apart.load_state_dict(state)
    torch.testing.assert_close(logits_of(apart, IDS), logits_of(fused, IDS))
    options = {"criterion": criterion, "normalize": normalize}
    expected = scores_of(apart, **options)
    for name, scores in scores_of(fused, **options).items():
        # Signed terms cancel within a unit, so what float32 rounds is small beside the largest unit, not beside each.
        rtol = 1e-3 if criterion == "obs" else 1e-4  # it inverts matrices
        torch.testing.assert_close(scores, expected[name], rtol=rtol, atol=float(1e-6 * expected[name].max()))


@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "gate", "wanda", "obs", "lora"])
def test_scores_on_transposed_projections_are_those_of_linears(criterion) -> None:
    stored = tiny("gpt2")
    plain = copy.deepcopy(stored)
    for path, module in list(plain.named_modules()):
        if type(module).__name__ == "Conv1D":
            linear = torch.nn.Linear(module.nx, module.nf)
            linear.weight.data, linear.bias.data = module.weight.data.T.contiguous(), module.bias.data
            plain.set_submodule(path, linear)
    torch.testing.assert_close(logits_of(plain, IDS), logits_of(stored, IDS))
    expected = scores_of(plain, criterion=criterion, normalize="none")
    for name, scores in scores_of(stored, criterion=criterion, normalize="none").items():
        # Signed terms cancel within a unit, so what float32 rounds is small beside the largest unit, not beside each.
        torch.testing.assert_close(scores, expected[name], rtol=1e-4, atol=float(1e-6 * expected[name].max()))


class Apart(torch.nn.Module):
    """A fused projection's q, k and v (or gate and up) as linears of their own, joined after them."""

    def __init__(self, fused, sizes: dict[str, int], interleaved: tuple[int, int] | None) -> None:
        super().__init__()
        turned = not isinstance(fused, torch.nn.Linear)  # GPT-2's Conv1D
        weight, bias = (fused.weight.T if turned else fused.weight).data, fused.bias
        self.groups = interleaved
        rows = self.split(torch.arange(weight.shape[0]), list(sizes.values()))
        for name, own in zip(sizes, rows, strict=True):
            linear = torch.nn.Linear(weight.shape[1], len(own), bias=bias is not None)
            linear.weight.data = weight[own].clone()
            if bias is not None:
                linear.bias.data = bias.data[own].clone()
            self.add_module(name, linear)

    def split(self, rows, sizes):
        if self.groups is None:
            return rows.split(sizes)
        kv_heads, head_dim = self.groups
        each = rows.view(kv_heads, -1, head_dim)  # a KV head's query heads, its key, its value
        return each[:, :-2].flatten(), each[:, -2].flatten(), each[:, -1].flatten()

    def forward(self, x):
        said = [linear(x) for linear in self.children()]
        if self.groups is None:
            return torch.cat(said, -1)
        return torch.cat([part.unflatten(-1, (self.groups[0], -1, self.groups[1])) for part in said], -2).flatten(-3)


INTERLEAVED = {"gpt_neox": (6, 16), "falcon": (3, 16), "falcon/multi_query": (1, 16)}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set")  # by PEFT, anew at each linear of a GPT-2 of both kinds
@pytest.mark.parametrize("name", ["phi3", "gpt2", *INTERLEAVED])
@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "wanda", "flap", "lora"])
def test_scores_on_fused_projections_are_those_of_linears_in_their_place(name, criterion) -> None:
    """Also of heads that cannot go (Falcon): what is scored is the layout."""
    fused = tiny(name)
    family = replace(FAMILIES[name.split("/")[0]], no_heads=None)
    heads = find_units(fused, family).shapes[0]
    sizes = {"q": heads.heads * 16, "k": heads.kv_heads * 16, "v": heads.kv_heads * 16}
    split = replace(family, q=f"{family.q}.q", k=f"{family.q}.k", v=f"{family.q}.v", interleaved=False)
    apart = copy.deepcopy(fused)
    for layer in apart.get_submodule(family.layers):
        layer.set_submodule(family.q, Apart(layer.get_submodule(family.q), sizes, INTERLEAVED.get(name)))
        if len(family.mlp_in) > 1:
            place, both = family.mlp_in[0], dict.fromkeys(("gate", "up"), heads.ffn)
            layer.set_submodule(place, Apart(layer.get_submodule(place), both, None))
            split = replace(split, mlp_in=(f"{place}.gate", f"{place}.up"))
    dense = logits_of(fused, IDS)
    torch.testing.assert_close(logits_of(apart, IDS), dense, rtol=0.0, atol=float(1e-5 * dense.abs().max()))
    expected = scores_of(apart, criterion=criterion, normalize="none", family=split)
    assert any("kv_group" in pool for pool in expected)
    for pool, scores in scores_of(fused, criterion=criterion, normalize="none", family=family).items():
        torch.testing.assert_close(scores, expected[pool], rtol=1e-4, atol=float(1e-5 * expected[pool].max()))
        assert len(scores) == 1 or scores.std() > 5e-4 * scores.mean(), "scores that a wrong place would have too"


def scores_of(base, *, criterion: str, normalize: str, family: Family | None = None):
    """Unit scores of one step, with LoRA at its start (B = 0; the same A for projections that share an input)."""
    from secateur.criteria import Scoring

    family = family or FAMILIES[base.config.model_type]
    targets = sorted({path.rsplit(".", 1)[-1] for path in family.linears})
    lora = LoraConfig(r=4, target_modules=targets)
    tell_transposed_(lora, base)
    model = get_peft_model(base, lora)
    for path, parameter in model.named_parameters():
        if "lora_A" in path:
            generator = torch.Generator().manual_seed(parameter.shape[1])
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    pruner = Pruner(
        model, sparsity=0.2, total_steps=2, prune_start=0, prune_end=1, frequency=1, criterion=criterion, ema=0.0,
        scoring=Scoring(normalize=normalize), allocation="protected", family=family,
    )  # fmt: skip
    model(IDS, labels=IDS).loss.backward()
    pruner.observe()
    assert pruner.schedule.is_cut(1), "some criteria score at cuts only"
    assert all(scores.any() for scores in pruner.scores.values())
    return pruner.scores
