"""What is trained beside LoRA, LoRA that begins anew, and rates that change after the last cut."""

import json
from io import StringIO

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny import save_tiny, tiny_llama
from transformers import AutoConfig, AutoModelForCausalLM

from secateur import Pruner
from secateur.architecture.discovery import find_units
from secateur.architecture.families import FAMILIES
from secateur.config.lora import LoraOptions, RecoveryOptions
from secateur.config.options import build
from secateur.config.prune import PruneConfig
from secateur.models.surgery import lora_factors, lora_layers, merged_and_sliced, merged_weight
from secateur.pruning.schedule import Schedule
from secateur.runs.prune import prune
from secateur.system.progress import Progress
from secateur.training.loss import causal_lm_loss
from secateur.training.prepare import lora_names, prepare
from secateur.training.recovery.beside import Beside, parts_of
from secateur.training.recovery.rates import LORA, Rates, lora_rates
from secateur.training.recovery.restart import columns_left, restart_lora_, restart_steps
from tests.architecture.rows import SIZES, TYPES

WORDS = "the quick brown fox jumps over the lazy dog while seven wizards box and quarrel about nothing at all. "
IDS = torch.randint(3, 99, (4, 24), generator=torch.Generator().manual_seed(3))


def adapted(dtype: torch.dtype = torch.float64, rank: int = 2, **options):
    base = tiny_llama(layers=2, dtype=dtype, **options)
    torch.manual_seed(0)
    return get_peft_model(base, LoraConfig(r=rank, target_modules="all-linear"), autocast_adapter_dtype=False)


def units_of(model):
    return find_units(model.get_base_model(), FAMILIES["llama"])


def optimizer_of(model, lr=5e-3):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)


def step(model, optimizer, ids=IDS) -> None:
    causal_lm_loss(model(input_ids=ids, use_cache=False), ids).backward()
    optimizer.step()
    optimizer.zero_grad()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def test_a_restart_leaves_the_function_and_the_rank_grows_beyond_loras() -> None:
    model = adapted()
    Beside(model, units_of(model), (), restarts=True)
    start = {path: merged_weight(layer).clone() for path, layer in lora_layers(model).items()}
    optimizer = optimizer_of(model)
    for _ in range(3):
        step(model, optimizer)
    before, drawn = logits(model), torch.get_rng_state()
    restart_lora_(model, optimizer, seed=5)
    torch.testing.assert_close(logits(model), before, rtol=1e-12, atol=1e-12)
    assert torch.equal(torch.get_rng_state(), drawn)
    factors = [lora_factors(layer) for layer in lora_layers(model).values()]
    assert all(not each.b.any() and each.a.any() for each in factors)
    assert not any(parameter in optimizer.state for each in factors for parameter in (each.a, each.b))
    first = [each.a.clone() for each in factors]
    for _ in range(3):
        step(model, optimizer)
    for path, layer in lora_layers(model).items():
        learnt = merged_weight(layer) - start[path]
        assert torch.linalg.matrix_rank(learnt, rtol=1e-9) == 4, path  # 2 of each of two lives
    restart_lora_(model, optimizer, seed=5)
    assert all(torch.equal(each.a, a) for each, a in zip(factors, first, strict=True))


def test_what_is_merged_into_a_wide_base_is_not_lost() -> None:
    """A product that is 1/1,000 of the weight: bfloat16 keeps 1 in 256 of it at most, float32 all."""
    lost = {}
    for wide in (False, True):
        model = adapted(torch.bfloat16)
        if wide:
            Beside(model, units_of(model), (), restarts=True)
        layer = lora_layers(model)["model.layers.0.mlp.down_proj"]
        lora, before = lora_factors(layer), layer.get_base_layer().weight.detach().clone().double()
        with torch.no_grad():
            lora.b.copy_(torch.randn(lora.b.shape, generator=torch.Generator().manual_seed(1)) * 1e-4)
        wanted = layer.scaling["default"] * lora.b.detach().double() @ lora.a.detach().double()
        restart_lora_(model, optimizer_of(model), seed=0)
        gained = layer.get_base_layer().weight.detach().double() - before
        lost[wide] = float((gained - wanted).norm() / wanted.norm())
    assert lost[True] < 1e-3 < 0.5 < lost[False]


def test_weights_are_trained_wide_and_others_are_not() -> None:
    model = adapted(torch.bfloat16)
    beside = Beside(model, units_of(model), ("weights",))
    before = {name: p.detach().clone() for name, p in model.get_base_model().named_parameters()}
    with torch.autocast("cpu", torch.bfloat16):
        loss = causal_lm_loss(model(input_ids=IDS, use_cache=False), IDS)
    loss.backward()
    optimizer_of(model, lr=1e-6).step()
    moved = {name for name, p in model.get_base_model().named_parameters() if not torch.equal(p, before[name])}
    linears = {f"{path}.base_layer.weight" for path in units_of(model).linears}
    assert {name for name in moved if ".lora_" not in name} == linears == set(beside.kinds)
    for name in linears:  # every entry with a gradient; in bfloat16 a step of 1e-6 is nothing
        now = beside.parameters[name]
        assert bool((now != before[name])[now.grad != 0].all())
    assert beside.counts() == {"weights": sum(p.numel() for p in beside.parameters.values())}


ALL = ("norms", "gains", "biases", "weights")


def scatter(beside: Beside) -> None:
    """Move what is trained, each entry by something else."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in beside.parameters.values():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
def test_folded_is_applied(name) -> None:
    """All that is trained beside LoRA, and a gain at each head and channel: the same logits from a stock class."""
    config = AutoConfig.for_model(name, **{k: v for k, v in {**SIZES, **TYPES[name]}.items() if v is not None})
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_config(config).double().eval()
    family, targets = FAMILIES[name], lora_names(FAMILIES[name])
    lora = LoraConfig(r=2, target_modules=targets, init_lora_weights=False, fan_in_fan_out=name == "gpt2")
    model = get_peft_model(base, lora, autocast_adapter_dtype=False).eval()
    units = find_units(base, family)
    beside = Beside(model, units, tuple(part for part in ALL if parts_of(model, units)[part] or part == "gains"))
    plain = logits(model)
    scatter(beside)
    gains = {path: p for path, p in beside.parameters.items() if beside.kinds[path] == "gains"}
    assert {len(p) for p in gains.values()} == {pool.size for pool in units.pools}
    applied = logits(model)
    assert (applied - plain).abs().max() > 0.1
    keep = {pool.name: torch.ones(pool.size, dtype=torch.bool) for pool in units.pools}
    stock = AutoModelForCausalLM.from_config(config).double().eval()
    stock.load_state_dict(dict(merged_and_sliced(model, units, keep)))
    torch.testing.assert_close(logits(stock), applied, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("also", [("weights",), ALL])
def test_masked_is_sliced_with_what_is_trained_beside_lora(also) -> None:
    """Six steps with three cuts and a restart: the same checkpoint."""
    found = []
    for shrink in (True, False):
        model = adapted(rank=4, bias=True)
        beside = Beside(model, units_of(model), also, restarts=True)
        before = sum(beside.counts().values())
        pruner = Pruner(
            model, sparsity=0.4, total_steps=6, prune_start=1, prune_end=4, frequency=1, criterion="gate", shrink=shrink
        )
        optimizer = optimizer_of(model)
        for number in range(6):
            causal_lm_loss(model(input_ids=IDS, use_cache=False), IDS).backward()
            pruner.observe()
            optimizer.step()
            pruner.step(optimizer)
            optimizer.zero_grad()
            if number == 3:
                left = columns_left(pruner.units, pruner.keep) if shrink else {}
                restart_lora_(model, optimizer, seed=2, columns=left)
        assert beside.parameters.keys() == beside.kinds.keys()
        moments = {len(p): optimizer.state[p]["exp_avg"].shape for p in beside.parameters.values() if len(p.shape) == 1}
        assert all(shape == (length,) for length, shape in moments.items())
        assert bool(sum(beside.counts().values()) < before) == shrink
        found.append(dict(merged_and_sliced(model, pruner.live, pruner.live_keep)))
    assert found[0].keys() == found[1].keys()
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], rtol=1e-8, atol=1e-11)


def test_when_lora_begins_anew() -> None:
    cubic, one_shot = Schedule("cubic", 10, 40, 10), Schedule("one-shot", 10, 10)
    for given, schedule, wanted in (
        ("cuts", cubic, (20, 30, 40)),
        (15, cubic, (55, 70)),
        ("cuts,15", cubic, (20, 30, 40, 55, 70)),
        ("30", one_shot, (30, 60)),
    ):
        assert restart_steps(RecoveryOptions(restart_lora=given), schedule, 80) == wanted


def test_rates_follow_the_last_cut_and_new_beginnings() -> None:
    rates = Rates({LORA: 1e-3, "weights": 1e-4}, after=0.5, since=40, restarts=(20, 60), end=100)
    assert [rates.factor(LORA, update) for update in (0, 19, 20, 27, 28, 39, 40)] == [
        1, 1, 1 / 9, 8 / 9, 1, 1, 0.5,
    ]  # fmt: skip
    assert rates.factor(LORA, 60) == 0.5 / 9
    assert rates.factor("weights", 20) == 1
    assert rates.factor("weights", 60) == 0.5
    plus = Rates(lora_rates(LoraOptions(lora_plus=8.0), 1e-3) | {"norms": 1e-3}, restarts=(20,), end=70)
    assert [plus.factor(part, 20) for part in plus.peaks] == [1 / 11, 1 / 11, 1]
    assert RecoveryOptions(lr_after="0.5x").rate_after(2e-3) == 0.5
    assert RecoveryOptions(lr_after=1e-3).rate_after(2e-3) == 0.5


def test_each_part_has_its_rate() -> None:
    model = adapted(bias=True)
    beside = Beside(model, units_of(model), ALL)
    rates = Rates(
        lora_rates(LoraOptions(lora_plus=16.0), 1e-3) | {part: 1e-4 * 2**number for number, part in enumerate(ALL)},
        beside.kinds,
    )
    optimizer = torch.optim.AdamW(rates.groups(model), lr=1e-3)
    given = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(given) == len(trained) == sum(len(group["params"]) for group in optimizer.param_groups)
    for name, wanted in (
        ("layers.0.self_attn.q_proj.lora_A.default.weight", 1e-3),
        ("layers.0.self_attn.q_proj.lora_B.default.weight", 16e-3),
        ("layers.1.input_layernorm.weight", 1e-4),
        ("norm.weight", 1e-4),
        ("layers.1.mlp.down_proj.unit_gain", 2e-4),
        ("layers.1.self_attn.o_proj.unit_gain", 2e-4),
        ("layers.0.mlp.up_proj.base_layer.bias", 4e-4),
        ("layers.0.mlp.up_proj.base_layer.weight", 8e-4),
    ):
        assert given[id(trained[f"base_model.model.model.{name}"])] == pytest.approx(wanted), name


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recovery")
    save_tiny(folder / "model", layers=2, dtype=torch.bfloat16)
    (folder / "text.txt").write_text(WORDS * 60)
    return folder


def run(place, output, **more):
    given = {
        "model": str(place / "model"), "data": (str(place / "text.txt"),), "output": str(output), "sparsity": 0.3,
        "steps": 12, "batch_size": 2, "seq_len": 32, "frequency": 2, "prune_start": 0.2, "prune_end": 6, "lr": 4e-3,
        "lr_warmup": 2, "criterion": "gate",
    }  # fmt: skip
    job = prepare(build(PruneConfig, given | more))
    return prune(job, Progress(job.total_steps, stream=StringIO()))


def test_a_run_with_all_of_it(place, tmp_path) -> None:
    """From a bfloat16 checkpoint: rates as asked, records that say so, and a result that is what was trained."""
    also = ("norms,gains", "weights")
    result = run(place, tmp_path / "out", train_also=also, lora_plus=4.0, restart_lora="cuts,3", lr_after="1e-3")
    trained = result["recovery"]["trained_also"]["weights"]
    assert trained["lr"] == pytest.approx(4e-4)
    assert result["recovery"]["lora_restarts"] == [4, 6, 9]
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line.get("lora_restarted")] == [4, 6, 9]
    assert lines[5]["learning_rate"] == 4e-3
    assert lines[6]["learning_rate"] == pytest.approx(1e-3)
    assert lines[7]["learning_rate"] < 1e-3
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    kept = {name: tensor for name, tensor in weights.items() if "proj.weight" in name}
    norms = load_file(place / "model" / "model.safetensors")
    assert not any(torch.equal(weights[name], norms[name]) for name in weights if "norm" in name)
    assert trained["parameters"] == sum(tensor.numel() for tensor in kept.values())
