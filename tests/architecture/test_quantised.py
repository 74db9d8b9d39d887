"""A base in 8 or 4 bits: scores read what its codes stand for, and the result is made from the original weights."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import save_tiny
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPT2Config, GPT2LMHeadModel
from zygote import launch

pytest.importorskip("bitsandbytes")

from tiny import tiny_tokenizer

from secateur import Pruner
from secateur.architecture import quantised
from secateur.architecture.discovery import find_units
from secateur.architecture.families import family_of
from secateur.architecture.quantised import DequantisedRows, dequantised, loading_options, quantised_linears, settle_
from secateur.architecture.units import base_linear, weight_of
from secateur.checkpoint import export
from secateur.checkpoint.verify import Verified
from secateur.cli import main
from secateur.criteria import CRITERIA, Evidence, Scoring
from secateur.models import loading as models
from secateur.models import original
from secateur.models.benchmark import parameter_count
from secateur.models.devices import widened
from secateur.models.loading import load_model
from secateur.models.source import ModelSource
from secateur.models.surgery import shrink_
from secateur.pruning.masks import Masks
from secateur.system.errors import InputError, VerificationError
from secateur.training.callback import PruningCallback
from secateur.training.checkpoints import find_latest

IDS = torch.arange(3, 60)[None]
WORDS = "the quick brown fox jumps over the lazy dog while seven wizards box and quarrel about nothing at all. "
# The 16 quantiles of QLoRA, appendix E.
NF4 = torch.tensor(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantised")
    save_tiny(folder / "model", layers=2, ffn=128)
    save_tiny(folder / "half", layers=2, ffn=128, tied=True, dtype=torch.bfloat16, max_shard_size="60kB")
    (folder / "text.txt").write_text(WORDS * 60)
    return folder


def held_in(folder: Path, load_in: str):
    cpu = torch.device("cpu")
    model = load_model(
        ModelSource("m", str(folder)), dtype="float32", quantising=loading_options(load_in, torch.float32, cpu)
    )
    settle_(model)
    return model


def adapted(folder: Path, load_in: str):
    torch.manual_seed(0)
    model = get_peft_model(held_in(folder, load_in), LoraConfig(r=4, lora_alpha=12, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def by_hand(linear) -> torch.Tensor:
    """(out, in) from the codes: int8 by row scale, or two NF4 codes a byte (the first in the high half) by block."""
    weight = linear.weight
    if weight.dtype == torch.int8:
        scales = weight.SCB if weight.SCB is not None else linear.state.SCB
        return weight.data.double() * scales.double()[:, None] / 127
    codes = torch.stack([weight.data.flatten() >> 4, weight.data.flatten() & 15], 1).flatten().long()
    scales = weight.quant_state.absmax.double().repeat_interleave(64)[: len(codes)]
    return (NF4.double()[codes] * scales).view(linear.out_features, linear.in_features)


def ids():
    return torch.randint(3, 99, (2, 20), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("load_in", ["8bit", "4bit"])
def test_scores_are_those_of_the_dequantised_weight(place, load_in) -> None:
    model = adapted(place / "model", load_in)
    model(ids(), labels=ids()).loss.backward()
    base = model.get_base_model()
    units = find_units(base, family_of("llama"))
    modules = {path: base.get_submodule(path) for path in units.linears}
    scoring = Scoring(linears="all")
    for pool in units.pools:
        lora, size = torch.zeros(pool.size).double(), torch.zeros(pool.size).double()
        for member in pool.members:
            layer = modules[member.linear]
            weight = by_hand(layer.get_base_layer())
            torch.testing.assert_close(weight_of(base_linear(layer)).double(), weight, rtol=1e-5, atol=1e-7)
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            da, db = a.grad.double(), b.grad.double()
            a, b = a.detach().double(), b.detach().double()
            merged = weight + 3 * b @ a
            for total, term in ((lora, (db @ a + b @ da - db @ da) * merged), (size, merged)):
                total += (term**2).sum(1 - member.dim)[member.index].sum(1)
        for name, expected in (("lora", lora), ("magnitude", size)):
            found = CRITERIA[name].score(pool, Evidence(modules), scoring)
            torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("load_in", ["8bit", "4bit"])
def test_some_rows_are_those_of_the_whole(place, load_in, monkeypatch) -> None:
    for _, linear in quantised_linears(held_in(place / "model", load_in)):
        whole = dequantised(linear)
        rows = DequantisedRows(linear)
        for part in (slice(3, 17), slice(len(whole) - 5, len(whole) + 40), slice(0, len(whole))):
            torch.testing.assert_close(rows[part], whole[part], rtol=0, atol=0)
        with monkeypatch.context() as patch:  # rows across blocks: taken from the whole
            patch.setattr(quantised, "whole_blocks", lambda linear: False)
            torch.testing.assert_close(DequantisedRows(linear)[3:17], whole[3:17], rtol=0, atol=0)


@pytest.mark.parametrize("criterion", ["taylor", "taylor-accumulated", "gate", "wanda", "flap", "obs"])
def test_every_criterion_is_that_of_the_dequantised_model(place, criterion) -> None:
    """In training 8-bit products on the CPU are those of the dequantised weight, so a plain model must agree."""
    scores = []
    for plain in (False, True):
        model = adapted(place / "model", "8bit")
        base = model.get_base_model()
        for path, linear in list(quantised_linears(base)) if plain else ():
            base.set_submodule(path, exact := nn.Linear(linear.in_features, linear.out_features, bias=False))
            exact.weight.data = by_hand(linear).float()
        pruner = Pruner(model, sparsity=0.3, total_steps=4, prune_start=1, frequency=1, criterion=criterion)
        model.train()
        model(ids(), labels=ids()).loss.backward()
        pruner.steps_done = pruner.schedule.cuts()[0] - 1  # some criteria score at cuts only
        pruner.observe()
        scores.append(pruner.scores)
    for name, found in scores[0].items():
        assert found.any()
        torch.testing.assert_close(found, scores[1][name], rtol=2e-3, atol=1e-6, msg=name)


def test_sliced_8_bit_is_masked_8_bit(place) -> None:
    model = adapted(place / "model", "8bit")
    base = model.get_base_model()
    units = find_units(base, family_of("llama"))
    generator = torch.Generator().manual_seed(2)
    keep = {pool.name: torch.ones(pool.size, dtype=torch.bool) for pool in units.pools}
    for pool in units.pools:
        keep[pool.name][torch.randperm(pool.size, generator=generator)[: pool.size // 2]] = False
    dense = model(ids()).logits
    modules = {path: base.get_submodule(path) for path in units.linears}
    masks = Masks(units, modules, {})
    masks.update(keep)
    found = {}
    for way in ("masked", "sliced"):
        for mode in (True, False):  # in training with whole activations, in evaluation with int8 ones
            model.train(mode)
            found[way, mode] = model(ids()).logits.detach()
        if way == "masked":
            masks.remove()
            shrink_(model, units, keep)
    for mode in (True, False):
        scale = found["masked", mode].abs().max()
        assert (found["masked", mode] - found["sliced", mode]).abs().max() < 1e-5 * scale
        assert (found["masked", mode] - dense).abs().max() > 0.1 * scale
    model.train()
    model(ids(), labels=ids()).loss.backward()


@pytest.mark.parametrize("load_in", ["8bit", "4bit"])
def test_sizes(place, load_in) -> None:
    """Parameters are counted as what they stand for, and the plan has the bytes that are there."""
    model = held_in(place / "model", load_in)
    model(ids())
    assert parameter_count(model) == parameter_count(AutoModelForCausalLM.from_pretrained(place / "model"))
    there = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    for _, linear in quantised_linears(model):
        there += 4 * (linear.out_features if load_in == "8bit" else linear.weight.quant_state.absmax.numel())
    path = place / f"{load_in}.json"
    options = ["--model", str(place / "model"), "--seq-len", "32", "--batch-size", "2", "--load-in", load_in]
    assert main(["plan", *options, "--dtype", "float32", "--json", str(path)]) == 0
    plan = json.loads(path.read_text())
    rotary = sum(4 * buffer.numel() for buffer in model.buffers())
    assert plan["memory"]["weights"] == there + rotary
    assert plan["memory"]["unpacked"] == 4 * 64 * 128
    assert ("slice it" if load_in == "8bit" else "mask it") in plan["held"]


def command(place, output, *more, name="prune", model="model") -> list[str]:
    return [
        name, "--model", str(place / model), "--data", str(place / "text.txt"), "--output", str(output),
        "--steps", "12", "--batch-size", "2", "--seq-len", "32", "--frequency", "2", "--lr", "5e-3", *more,
    ]  # fmt: skip


def merged_by_hand(place: Path, output: Path, model: str, work: Path) -> dict[str, torch.Tensor]:
    """Original weights sliced as units.json says, plus s·B·A of the last training checkpoint, rounded."""
    read = {}
    for file in (place / model).glob("*.safetensors"):
        read |= load_file(file)
    lora = load_file(work / "adapter_model.safetensors")
    pools = json.loads((output / "units.json").read_text())["pools"]
    expected = {}
    for name, value in read.items():
        keep = torch.tensor(pools[f"layer.{name.split('.')[2]}.ffn"]["kept"]) if ".mlp." in name else None
        path, dim = name.removesuffix(".weight"), int("down_proj" in name)
        total = value if keep is None else value.index_select(dim, keep)
        if f"base_model.model.{path}.lora_A.weight" in lora:
            a, b = (lora[f"base_model.model.{path}.lora_{factor}.weight"] for factor in "AB")
            if keep is not None and (a if dim else b).shape[1 if dim else 0] != len(keep):  # masked until the end
                a, b = (a[:, keep], b) if dim else (a, b[keep])
            total = torch.add(total.float(), b.float() @ a.float(), alpha=2)
        expected[name] = total.to(value.dtype)
    return expected


@pytest.mark.parametrize(("load_in", "model", "dtype"), [("8bit", "half", "bfloat16"), ("4bit", "model", "float32")])
def test_the_checkpoint_is_made_of_the_original_weights(place, tmp_path, capsys, load_in, model, dtype) -> None:
    out = tmp_path / "out"
    more = ("--load-in", load_in, "--sparsity", "0.3", "--dtype", dtype, "--save-steps", "12", "--eval-data")
    more = (*more, str(place / "text.txt"), "--eval-steps", "3", "--eval-tokens", "200", "--attention", "none")
    assert main(command(place, out, *more, model=model)) == 0, capsys.readouterr().err
    printed = capsys.readouterr()
    assert ("cuts slice it" if load_in == "8bit" else "cuts mask it") in printed.err + printed.out
    work = tmp_path / "out.run" / "checkpoint-12"
    expected, found = merged_by_hand(place, out, model, work), load_file(out / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    result = json.loads((out / "result.json").read_text())
    assert result["sparsity"]["reached"] == pytest.approx(0.3, abs=0.005)
    assert result["dense"]["parameters"] - result["pruned"]["parameters"] == result["sparsity"]["removed_parameters"]
    had = result["quantised"]["perplexity"]["perplexity"], result["dense"]["perplexity"]["perplexity"]
    assert 0.001 < abs(had[0] / had[1] - 1) < 0.3
    if load_in == "4bit":  # its factors are whole: the original model with adapter and masks is a plain PEFT model
        base = AutoModelForCausalLM.from_pretrained(place / model)
        whole = PeftModel.from_pretrained(base, work).eval()
        pools = json.loads((out / "units.json").read_text())["pools"]
        for number, layer in enumerate(base.model.layers):
            mask = torch.zeros(128)
            mask[pools[f"layer.{number}.ffn"]["kept"]] = 1
            layer.mlp.down_proj.register_forward_pre_hook(lambda module, args, mask=mask: (args[0] * mask,))
        masked = whole(ids()).logits
        written = AutoModelForCausalLM.from_pretrained(out)(ids()).logits
        torch.testing.assert_close(written, masked, rtol=0, atol=1e-5 * float(masked.abs().max()))


class Died(Exception):
    pass


@pytest.fixture
def unverified(monkeypatch):
    """Without the fresh process, which takes seconds."""
    monkeypatch.setattr(export, "verify", lambda checks: [Verified("Stub", 0.0, 0.0)] * len(checks))


@pytest.mark.parametrize("load_in", ["8bit", "4bit"])
def test_resumed_is_uninterrupted(place, tmp_path, monkeypatch, unverified, load_in) -> None:
    more = ("--load-in", load_in, "--dtype", "float32", "--save-steps", "2", "--dropout", "0.2", "--sparsity", "0.3")
    more = (*more, "--eval-data", str(place / "text.txt"), "--eval-steps", "1", "--eval-tokens", "100")
    assert main(command(place, tmp_path / "whole", *more)) == 0
    real = PruningCallback.on_optimizer_step

    def dying(self, args, state, control, **kwargs):
        if state.global_step == 7:
            raise Died
        real(self, args, state, control, **kwargs)

    monkeypatch.setattr(PruningCallback, "on_optimizer_step", dying)
    with pytest.raises(Died):
        main(command(place, tmp_path / "out", *more))
    monkeypatch.setattr(PruningCallback, "on_optimizer_step", real)
    assert find_latest(tmp_path / "out.run")[0].name == "checkpoint-6"
    assert main(command(place, tmp_path / "out", *more, "--resume")) == 0
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_transposed_linears_under_other_names(place, tmp_path, unverified) -> None:
    """GPT-2's `Conv1D` become linears when they are quantised, and are `Conv1D` again in the checkpoint."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=128, n_positions=64, n_embd=64, n_layer=2, n_head=4, n_inner=96, initializer_range=0.2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    file = tmp_path / "gpt2" / "model.safetensors"  # as the hub's: transformers adds the prefix when it loads
    stripped = {name.removeprefix("transformer."): value for name, value in load_file(file).items()}
    save_file(stripped, file, metadata={"format": "pt"})
    tiny_tokenizer().save_pretrained(tmp_path / "gpt2")
    more = ("--load-in", "8bit", "--dtype", "float32", "--sparsity", "0.2", "--criterion", "taylor")
    assert main(command(place, tmp_path / "out", *more, "--lr", "1e-9", model=tmp_path / "gpt2")) == 0
    kept = json.loads((tmp_path / "out" / "units.json").read_text())["pools"]["layer.1.ffn"]["kept"]
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("gpt2", "out"))
    assert 0 < len(kept) < 96
    for leaf, dim in (("c_fc.weight", 1), ("c_fc.bias", 0), ("c_proj.weight", 0)):
        name = f"h.1.mlp.{leaf}"
        expected = before[name].index_select(dim, torch.tensor(kept))
        torch.testing.assert_close(after[f"transformer.{name}"], expected, rtol=0, atol=1e-6)
    assert torch.equal(after["transformer.wte.weight"], before["wte.weight"])


@pytest.mark.parametrize(("load_in", "merge"), [("8bit", False), ("4bit", True)])
def test_adapt(place, tmp_path, capsys, load_in, merge) -> None:
    out = tmp_path / "out"
    more = ["--load-in", load_in, "--rank", "3", "--init-rank", "8", "--save-steps", "12", *(["--merge"] * merge)]
    assert main(command(place, out, *more, "--dtype", "bfloat16", name="adapt", model="half")) == 0
    capsys.readouterr()
    base = AutoModelForCausalLM.from_pretrained(place / "half", dtype=torch.bfloat16)
    plain = base(ids()).logits
    adapted = PeftModel.from_pretrained(base, tmp_path / "out.run" / "checkpoint-12")
    if not merge:
        config = json.loads((out / "adapter_config.json").read_text())
        assert (config["r"], config["peft_type"]) == (3, "LORA")
        saved, trained = (load_file(f / "adapter_model.safetensors") for f in (out, tmp_path / "out.run/checkpoint-12"))
        assert saved.keys() == trained.keys()
        assert all(torch.equal(saved[name], value) for name, value in trained.items())
        assert json.loads((out / "result.json").read_text())["export"]["max_logit_difference"] == 0
        return
    merged = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert (merged(ids()).logits - plain).abs().max() > 0.2
    for path, layer in adapted.get_base_model().named_modules():
        if hasattr(layer, "lora_A"):
            a, b = layer.lora_A["default"].weight.float(), layer.lora_B["default"].weight.float()
            expected = (layer.get_base_layer().weight.float() + layer.scaling["default"] * b @ a).bfloat16()
            assert torch.equal(merged.get_submodule(path).weight, expected), path


def test_two_processes(place, tmp_path) -> None:
    more = ("--load-in", "8bit", "--dtype", "float32", "--sparsity", "0.3", "--stream-export")
    done = launch(2, "-m", "secateur", *command(place, tmp_path / "out", *more))
    assert done.returncode == 0, done.stderr[-2000:]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.intermediate_size < 128


def test_bad_input_ends_before_any_work(place, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(models, "load_model", None)
    (tmp_path / "rounded").mkdir()
    config = json.loads((place / "model" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (tmp_path / "rounded" / "config.json").write_text(json.dumps(config))
    (tmp_path / "experts").mkdir()
    (tmp_path / "experts" / "config.json").write_text('{"model_type": "mixtral", "num_hidden_layers": 1}')
    save_tiny(tmp_path / "odd", layers=1, ffn=96)
    for name, more, told in (
        ("prune", ("--load-in", "3bit"), "Choose from: 8bit, 4bit"),
        ("prune", ("--load-in", "8bit", "--lora-init", "pissa"), "moves a part of the base's weights into LoRA"),
        ("adapt", ("--load-in", "4bit", "--lora-init", "olora", "--merge"), "leave one out"),
        ("prune", ("--load-in", "8bit", "--compensate", "lstsq"), "--compensate lstsq rewrites the base"),
        ("prune", ("--load-in", "8bit", "--distill", "0.5"), "add --no-shrink"),
        ("prune", ("--model", str(tmp_path / "rounded")), "is quantised already"),
        ("adapt", ("--load-in", "8bit", "--model", str(tmp_path / "rounded")), "is quantised already"),
        ("prune", ("--load-in", "8bit", "--model", str(tmp_path / "experts")), "mixture of experts"),
        ("prune", ("--load-in", "4bit", "--model", str(tmp_path / "odd")), "down_proj has 96 inputs"),
        ("adapt", ("--load-in", "4bit", "--model", str(tmp_path / "odd")), "--load-in 8bit, or a GPU"),
    ):
        assert main(command(place, tmp_path / "out", *more, name=name)) == 2
        assert told in capsys.readouterr().err, more
    monkeypatch.setattr(original, "find_spec", lambda name: None)
    for name in ("prune", "adapt"):
        assert main(command(place, tmp_path / "out", "--load-in", "8bit", name=name)) == 2
        assert "pip install 'secateur[quant]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_from_python(place, tmp_path) -> None:
    with pytest.raises(InputError, match=r"shrink=False"):
        Pruner(adapted(place / "model", "4bit"), sparsity=0.3)
    with pytest.raises(InputError, match=r"compensate='none'"):
        Pruner(adapted(place / "model", "8bit"), sparsity=0.3, compensate="lstsq")
    model = adapted(place / "model", "8bit")
    pruner = Pruner(model, sparsity=0.3, total_steps=4, prune_start=1, prune_end=2, frequency=1, ema=0.0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(4):
        model.train()
        model(ids(), labels=ids()).loss.backward()
        pruner.observe()
        optimizer.step()
        pruner.step(optimizer)
        optimizer.zero_grad()
    with pytest.raises(InputError, match=r"pruner\.restore"):
        pruner.export(tmp_path / "out", probe_ids=ids()[:1])
    changed = {name: torch.randn_like(value) for name, value in load_file(place / "model/model.safetensors").items()}
    (tmp_path / "other").mkdir()
    save_file(changed, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "other" / "config.json").write_text((place / "model" / "config.json").read_text())
    with pytest.raises(VerificationError, match="not the one that was quantised"):
        pruner.restore(str(tmp_path / "other"))
    pruner.restore(str(place / "model"))
    assert not list(quantised_linears(model))
    assert model.get_base_model().dtype == torch.float32


@pytest.mark.parametrize("bits", [8, 4])
def test_a_checkpoint_that_was_saved_quantised_computes_in_float32(place, tmp_path, bits):
    how = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4, bnb_4bit_compute_dtype=torch.bfloat16)
    saved = AutoModelForCausalLM.from_pretrained(place / "model", quantization_config=how, device_map={"": "cpu"})
    saved.save_pretrained(tmp_path / "m")
    model = widened(load_model(ModelSource("m", str(tmp_path / "m"))), torch.float32)
    assert model.dtype == model.model.norm.weight.dtype == torch.float32
    with torch.inference_mode():
        logits = model(IDS).logits
        # As if the weights were what their codes stand for; 8 bits also round what they multiply.
        plain = AutoModelForCausalLM.from_pretrained(place / "model")
        for path, linear in quantised_linears(model):
            plain.get_submodule(path).weight.data = dequantised(linear)
        expected = plain(IDS).logits
    assert (logits - expected).norm() < (0.01 if bits == 4 else 0.1) * expected.norm()


def test_4_bit_rows_that_are_no_whole_blocks_are_one_line(tmp_path):
    how = BitsAndBytesConfig(load_in_4bit=True)
    saved = AutoModelForCausalLM.from_pretrained(
        save_tiny(tmp_path / "m", layers=1, ffn=96), quantization_config=how, device_map={"": "cpu"}
    )
    saved.save_pretrained(tmp_path / "q")
    with pytest.raises(InputError, match=r"down_proj is in 4 bits and has 96 inputs, .* multiple of 64 wrongly: give"):
        load_model(ModelSource("q", str(tmp_path / "q")))
