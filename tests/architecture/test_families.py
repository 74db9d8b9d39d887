"""Every registered model type, from its real config class: masked = sliced = shrunk = padded, the budget's count, and a
checkpoint that a process without secateur reads the same (one process for all)."""

import copy
import functools
import re
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_llama, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM

from secateur import Pruner
from secateur.architecture.discovery import find_units
from secateur.architecture.families import FAMILIES, Family
from secateur.architecture.layered import LAYERS_KEY
from secateur.architecture.layout import LayerShape
from secateur.architecture.stock import FAMILY_KEY
from secateur.checkpoint.comparing import logits_of
from secateur.checkpoint.convert import export_config
from secateur.checkpoint.export import build_small, save_model
from secateur.checkpoint.padding import padded_shape, padded_state
from secateur.checkpoint.verify import Check, verify, weights_checksum
from secateur.config.prune import ExportConfig, PruneConfig
from secateur.models.benchmark import parameter_count
from secateur.models.coverage import tell_transposed_
from secateur.models.surgery import merged_and_sliced
from secateur.pruning.masks import Masks
from secateur.system.errors import InputError
from secateur.training.prepare import plan_budget, prepare
from tests.architecture.rows import IDS, SIZES, SOFT_CAPS, TYPES, tiny

CASES = [
    (name, attention)
    for name in TYPES
    for attention in ("none", *(kind for kind in FAMILIES[name.split("/")[0]].kinds if kind != "ffn"))
]
MORE_THAN_STOCK = [("phi/qk_layernorm", "kv_group"), ("phi/qk_layernorm", "query_head")]
"""What the stock class of a family cannot hold in one variant."""


def pruned(name: str, attention: str, *, shrink: bool, dtype: torch.dtype = torch.float32):
    """A LoRA model trained for four steps in which half of it goes, and its pruner."""
    torch.manual_seed(0)
    base = tiny(name).to(dtype)
    resolved = find_units(base, FAMILIES[name.split("/")[0]], "none").family  # T5's FFN is gated or plain
    linears = {path.rsplit(".", 1)[-1] for path in resolved.linears}
    lora = LoraConfig(r=4, target_modules=sorted(linears), init_lora_weights=False)
    tell_transposed_(lora, base)
    model = get_peft_model(base, lora).eval()
    pruner = Pruner(
        model, sparsity=0.3, total_steps=4, prune_start=1, prune_end=3, frequency=1, attention=attention,
        shrink=shrink, allocation="uniform" if FAMILIES[name.split("/")[0]].alike_only else "protected",
        protect_first=0, protect_last=0,
        attention_sparsity=None if attention == "none" else 1 / 3, criterion="taylor",
    )  # fmt: skip
    # The large eps keeps AdamW from making steps of what is rounding in gradients that are zero.
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, eps=1e-3)
    for _ in range(4):
        model(input_ids=IDS, labels=IDS).loss.backward()
        pruner.observe()
        optimizer.step()
        pruner.step(optimizer)
        optimizer.zero_grad()
    return model, pruner


@functools.cache
def masked_run(name: str, attention: str):
    """The same for two tests, which leave both as they are: nothing is cut out of the model."""
    return pruned(name, attention, shrink=False)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(Type, kind) -> logits with masks and without, planned parameters, what the one fresh process read back."""
    masked, checks = {}, {}
    for number, (name, attention) in enumerate(CASES):
        folder = tmp_path_factory.mktemp("families") / str(number)
        model, pruner = masked_run(name, attention)
        family, config = pruner.units.family, model.get_base_model().config
        tensors = merged_and_sliced(model, pruner.units, pruner.keep)
        shapes = pruner.units.shapes_after(pruner.keep)
        small = build_small(config, family, shapes, tensors, torch.float32, "keep")
        layered = LAYERS_KEY in small.config.to_dict()
        save_model(small, folder, family if layered else None)
        with pruner.masks.off():
            unmasked = logits_of(model, IDS)
        masked[name, attention] = logits_of(model, IDS), unmasked, pruner.budget.removed_params
        checks[name, attention] = Check(
            folder, IDS, logits_of(small, IDS), parameter_count(small), layered, checksum=weights_checksum(small)
        )
    verified = verify(list(checks.values()))
    return {case: (*masked[case], checks[case], found) for case, found in zip(checks, verified, strict=True)}


def test_every_family_has_a_row() -> None:
    assert {name.split("/")[0] for name in TYPES} == set(FAMILIES)


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_a_fresh_process_computes_the_masked_model(written, name, attention) -> None:
    masked, unmasked, planned, check, found = written[name, attention]
    base = tiny(name)
    family = FAMILIES[name.split("/")[0]]
    stock = "stock" in family.formats["ffn" if attention == "none" else attention]
    assert check.remote_code == (not stock or (name, attention) in MORE_THAN_STOCK)
    if not check.remote_code:
        assert found.class_name == type(base).__name__
    scale = masked.abs().max()
    assert found.difference <= 1e-5 * scale  # from the sliced model in memory, which must be the masked one:
    torch.testing.assert_close(check.logits, masked, rtol=0.0, atol=float(2e-5 * scale))
    assert (masked - unmasked).abs().max() > 2e-3 * scale, "the masks change less than the tolerance would hide"
    assert parameter_count(base) - check.parameters == planned


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_shrinking_is_masking_and_training_goes_on(name, attention) -> None:
    # T5 does not scale attention scores, so in float32 four steps make 2e-4 of the logits out of rounding (1e-12 here).
    dtype = torch.float64 if name.startswith("t5") else torch.float32
    once = dtype == torch.float32
    masked, pruner = masked_run(name, attention) if once else pruned(name, attention, shrink=False, dtype=dtype)
    shrunk, other = pruned(name, attention, shrink=True, dtype=dtype)
    assert {n: k.tolist() for n, k in pruner.keep.items()} == {n: k.tolist() for n, k in other.keep.items()}
    if attention != "none":
        assert all(not pruner.keep[pool.name].all() for pool in pruner.units.of_kind(attention))
    before = parameter_count(masked) - parameter_count(shrunk)
    assert before > pruner.removed_params  # LoRA's rows and columns go too
    expected = logits_of(masked, IDS)
    torch.testing.assert_close(logits_of(shrunk, IDS), expected, rtol=0.0, atol=float(1e-4 * expected.abs().max()))
    shrunk(input_ids=IDS, labels=IDS).loss.backward()


@pytest.mark.parametrize(
    ("name", "attention"), [case for case in CASES if not FAMILIES[case[0].split("/")[0]].alike_only]
)
def test_layers_that_differ_and_their_padded_form(name, attention) -> None:
    base = tiny(name)
    family = FAMILIES[name.split("/")[0]]
    units = find_units(base, family, attention)
    dense = logits_of(base, IDS)
    generator = torch.Generator().manual_seed(1)
    keep = {}
    for pool in units.pools:
        per_set = pool.size // pool.sets
        stay = max(1, round(per_set * (0.5 + 0.2 * pool.layer)))
        scores = torch.rand(pool.sets, per_set, generator=generator)
        keep[pool.name] = (scores.argsort(1).argsort(1) < stay).flatten()
    masks = Masks(units, {path: base.get_submodule(path) for path in units.linears}, {})
    masks.update(keep)
    expected = logits_of(base, IDS)
    scale = expected.abs().max()
    masks.remove()
    shapes = units.shapes_after(keep)
    tensors = list(merged_and_sliced(base, units, keep))
    small = build_small(base.config, family, shapes, tensors, torch.float32, "keep")
    wide = padded_shape(base.config, family, shapes, "keep")
    state = padded_state(dict(small.state_dict()), family, shapes, (wide,) * len(shapes))
    padded = build_small(base.config, family, (wide,) * 3, state, torch.float32, "keep")
    assert LAYERS_KEY in small.config.to_dict()
    assert type(padded) is type(base)
    for other in (small, padded):
        torch.testing.assert_close(logits_of(other, IDS), expected, rtol=0.0, atol=float(2e-5 * scale))
    assert (expected - dense).abs().max() > 2e-3 * scale


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


INTERLEAVED = {"gpt_neox": (6, 16), "bloom": (6, 16), "falcon": (3, 16), "falcon/multi_query": (1, 16)}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set")  # by PEFT, anew at each linear of a GPT-2 of both kinds
@pytest.mark.parametrize("name", ["phi3", "gpt2", *INTERLEAVED])
@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "wanda", "flap", "lora"])
def test_scores_on_fused_projections_are_those_of_linears_in_their_place(name, criterion) -> None:
    """Also of heads that cannot go (BLOOM, Falcon): what is scored is the layout."""
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


def test_what_an_architecture_cannot_do_is_refused_with_the_reason() -> None:
    with pytest.raises(InputError, match="olmo2 cannot lose heads: its query and key norms run over the whole width"):
        find_units(tiny("olmo2"), FAMILIES["olmo2"], "kv_group")
    with pytest.raises(InputError, match="each of gpt2's query heads has a KV head of its own"):
        find_units(tiny("gpt2"), FAMILIES["gpt2"], "query_head")
    for name, reason in (
        ("bloom", "each head's slope"),
        ("falcon", "the size of a head from the width over the heads"),
    ):
        with pytest.raises(
            InputError, match=f'attention="kv_group": {name} cannot lose heads: .*{reason}.*the FFN takes'
        ):
            Pruner(tiny(name), sparsity=0.2, criterion="magnitude", attention="kv_group")
    with pytest.raises(InputError, match="as many KV heads as query heads .*kv_group"):
        Pruner(tiny_llama(heads=4, kv_heads=4), sparsity=0.2, criterion="magnitude", attention="query_head")
    with pytest.raises(
        InputError, match=r"can have 6 heads and an FFN of .*FFN of 4 times its width.*use .*allocation"
    ):
        Pruner(tiny("bloom"), sparsity=0.2, criterion="magnitude")
    for name in ("mistral", "llama"):  # this llama has biases at q, k, v and o only
        with pytest.raises(InputError, match=r"(o|down)_proj has no bias to hold the constant.*compensate..?lstsq"):
            Pruner(tiny(name), sparsity=0.2, criterion="flap", compensate="bias")
    Pruner(tiny("opt"), sparsity=0.2, criterion="flap", compensate="bias")
    with pytest.raises(InputError, match="does not follow the phi3 layout"):
        broken = tiny("phi3")
        broken.model.layers[1].mlp.down_proj = torch.nn.Linear(79, 48)
        find_units(broken, FAMILIES["phi3"])


DERIVED = ["gpt2", "gpt_neox", "opt", "gptj", "phi/qk_layernorm"]
"""Head counts that a stock checkpoint cannot say, as a layered one can."""


@pytest.mark.parametrize("name", DERIVED)
def test_heads_that_a_stock_checkpoint_cannot_lose_are_refused_with_the_reason(name) -> None:
    model, options = tiny(name), {"sparsity": 0.4, "criterion": "magnitude"}
    reason = "takes the size of a head from the width over the heads.*use .*protected.? or .?global"
    with pytest.raises(InputError, match=f'attention="kv_group": .*{reason}'):
        Pruner(model, attention="kv_group", **options)
    with pytest.raises(InputError, match=f"attention.sparsity.0.5: .*Reachable: 0.000. .*{reason}"):
        Pruner(model, attention_sparsity=0.5, **options)
    assert re.search(reason, Pruner(model, **options).budget.heads_stay)
    protected = Pruner(model, attention="kv_group", allocation="protected", protect_first=0, protect_last=0, **options)
    assert all(protected.budget.quota[pool.name] for pool in protected.units.of_kind("kv_group"))
    assert protected.budget.heads_stay == ""


def test_a_run_says_why_its_heads_stay(tmp_path) -> None:
    tiny("gpt2").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("a quick brown fox jumps over the lazy dog. " * 40)
    settings = PruneConfig(
        model=str(tmp_path / "model"), data=(str(tmp_path / "text.txt"),), output=str(tmp_path / "out"), sparsity=0.3,
        steps=4, batch_size=2, seq_len=32,
    )  # fmt: skip
    (note,) = (note for note in prepare(settings).notes if "heads" in note)
    assert re.fullmatch("attention heads stay: a stock gpt2 .*the width over the heads.*: use --allocation .*", note)
    assert not prepare(replace(settings, allocation="global")).notes
    assert not prepare(replace(settings, attention="none")).notes


ROUNDED = {"qwen2_moe", "qwen3_moe"}  # small widths in steps of 8


@pytest.mark.parametrize(
    "name",
    [name for name in TYPES if FAMILIES[name.split("/")[0]].formats["ffn"][0] == "stock" and name not in ROUNDED],
)
def test_uniform_keeps_what_stock_cannot_lose(name) -> None:
    pruner = Pruner(tiny(name), sparsity=0.3, criterion="magnitude")
    assert isinstance(pruner.units.family, Family)
    assert pruner.budget.sparsity == pytest.approx(0.3, abs=0.005)


def test_the_variants_are_what_they_say() -> None:
    for name in ("qwen2/layer_types", "qwen3/layer_types", "gemma3_text"):
        assert len(set(tiny(name).config.layer_types)) == 2, "full attention and sliding windows"
    for name, keys in {"llama/rope": ("rope_parameters",), "gemma2": SOFT_CAPS, "gemma3_text": SOFT_CAPS}.items():
        model = tiny(name)
        plain = AutoConfig.for_model(model.config.model_type).to_dict()
        values = {**model.config.to_dict(), **{key: plain[key] for key in keys}}
        if "rope_parameters" in keys:
            values["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4}
        other = type(model)(type(model.config)(**values)).eval()
        other.load_state_dict(model.state_dict())
        expected = logits_of(model, IDS)
        assert (logits_of(other, IDS) - expected).abs().max() > 0.01 * expected.abs().max(), keys


def test_a_llama_with_scaled_frequencies_becomes_a_mistral() -> None:
    """Whose config takes the five query heads that Llama's refuses."""
    base = tiny("llama/rope")
    units = find_units(base, FAMILIES["llama"], "kv_group")
    keep = {pool.name: torch.arange(pool.size) > 0 for pool in units.pools}
    masks = Masks(units, {path: base.get_submodule(path) for path in units.linears}, {})
    masks.update(keep)
    expected = logits_of(base, IDS)
    shapes, tensors = units.shapes_after(keep), merged_and_sliced(base, units, keep)
    small = build_small(base.config, units.family, shapes, tensors, torch.float32, "mistral")
    assert type(small).__name__ == "MistralForCausalLM"
    assert small.config.rope_parameters == base.config.rope_parameters
    torch.testing.assert_close(logits_of(small, IDS), expected, rtol=0.0, atol=float(2e-5 * expected.abs().max()))


def test_an_unknown_type_of_a_known_layout_is_told_so(tmp_path) -> None:
    options = {key: value for key, value in SIZES.items() if value is not None} | {"hidden_size": 96}
    del options["head_dim"], options["rms_norm_eps"]
    config = AutoConfig.for_model("stablelm", **options)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(InputError, match="'stablelm', whose modules look like the llama layout: pass family=.llama"):
        Pruner(model, sparsity=0.2, criterion="magnitude")
    assert Pruner(model, sparsity=0.2, criterion="magnitude", family="llama").units.shapes[0].key() == (6, 3, 240)
    settings = PruneConfig(model="m", data=("d",), output="o", family="llama", sparsity=0.5)
    # It takes the size of a head from the width over the heads.
    built = r"llama layout leaves .*q_proj.weight with .*64, 96|built as 4 .* of 24 and .*attention=.none"
    with pytest.raises(InputError, match=built):
        plan_budget(settings, config)
    with pytest.raises(InputError, match=built):
        Pruner(model, sparsity=0.5, criterion="magnitude", family="llama")
    plan_budget(replace(settings, attention="none", sparsity=0.3), config)


def test_norms_over_all_heads_are_not_taken_for_another_layout() -> None:
    options = {key: value for key, value in SIZES.items() if value is not None} | {"hidden_size": 96}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("olmo3", **options))
    with pytest.raises(InputError, match="'olmo3', whose modules look like the olmo2 layout: pass family=.olmo2"):
        Pruner(model, sparsity=0.2, criterion="magnitude")
    with pytest.raises(InputError, match="its query and key norms run over the whole width"):
        Pruner(model, sparsity=0.2, criterion="magnitude", family="olmo2", attention="kv_group")
    Pruner(model, sparsity=0.2, criterion="magnitude", family="olmo2")


def test_a_layered_result_of_a_named_family_can_be_padded(tmp_path) -> None:
    options = {key: value for key, value in SIZES.items() if value is not None} | {"hidden_size": 96}
    del options["head_dim"], options["rms_norm_eps"]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("stablelm", **options)).eval()
    units = find_units(model, FAMILIES["llama"], "none")
    keep = {pool.name: torch.arange(pool.size) >= 20 * (pool.layer + 1) for pool in units.pools}
    shapes, tensors = units.shapes_after(keep), merged_and_sliced(model, units, keep)
    small = build_small(model.config, units.family, shapes, tensors, torch.float32, "keep")
    save_model(small, tmp_path / "layered", units.family)
    tiny_tokenizer().save_pretrained(tmp_path / "layered")
    report = export_config(ExportConfig(model=str(tmp_path / "layered"), output=str(tmp_path / "padded")))
    assert (report.format, report.model_class) == ("padded", "StableLmForCausalLM")
    padded = AutoModelForCausalLM.from_pretrained(tmp_path / "padded")
    assert padded.config.intermediate_size == 220
    assert not {LAYERS_KEY, FAMILY_KEY} & padded.config.to_dict().keys()
    settings = tmp_path / "layered" / "config.json"
    settings.write_text(settings.read_text().replace('"secateur_family": "llama"', '"secateur_family": "mine"'))
    with pytest.raises(InputError, match="written with the layout 'mine', which is not known here: register it"):
        export_config(ExportConfig(model=str(tmp_path / "layered"), output=str(tmp_path / "other")))
    expected = logits_of(small, IDS)
    torch.testing.assert_close(logits_of(padded, IDS), expected, rtol=0.0, atol=float(2e-5 * expected.abs().max()))


def test_padding_finds_the_one_head_count_or_says_what_else() -> None:
    config, family = tiny("gpt2").config, FAMILIES["gpt2"]
    few = (LayerShape(2, 2, 100, 16), LayerShape(1, 1, 80, 16))
    assert padded_shape(config, family, few, "keep").key() == (6, 6, 100)  # the width over the size of a head
    odd = (LayerShape(2, 2, 100, 17),)
    with pytest.raises(InputError, match="gpt2's config class takes no head count from 2 to 5: keep the layered"):
        padded_shape(config, family, odd, "keep")
    one = tiny("llama/rope").config
    one.hidden_size = 47
    with pytest.raises(InputError, match="llama's config class takes no head .*: pass --model-class mistral"):
        padded_shape(one, FAMILIES["llama"], (LayerShape(4, 2, 100, 16),), "keep")


def test_a_shared_bias_that_is_trained_stays_so() -> None:
    model = tiny("t5").requires_grad_(True)
    pruner = Pruner(
        model, sparsity=0.3, total_steps=2, prune_start=0, prune_end=1, frequency=1, criterion="taylor",
        attention_sparsity=1 / 3,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(input_ids=IDS, labels=IDS).loss.backward()
    pruner.observe()
    optimizer.step()
    pruner.step(optimizer)
    bias = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    assert bias.requires_grad
    assert bias.shape[1] == 4
    assert any(bias is parameter for parameter in optimizer.param_groups[0]["params"])
    assert optimizer.state[bias]["exp_avg"].shape == bias.shape


def test_a_text_model_inside_another_is_saved_first(tmp_path) -> None:
    # transformers' class of the whole applies no cap to its logits (Gemma 3 has none), that of the text does.
    inner = tiny("gemma3_text").config.to_dict() | {"final_logit_softcapping": None}
    eyes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    config = AutoConfig.for_model("gemma3", text_config=inner, vision_config=eyes | {"patch_size": 14})
    model = AutoModelForImageTextToText.from_config(config).eval()
    with pytest.raises(
        InputError,
        match=r"a gemma3 holds its text model \(gemma3_text\) beside others.*"
        "secateur export --model FOLDER --format text --output TEXT",
    ):
        Pruner(model, sparsity=0.2, criterion="magnitude")
    for family in (None, "gemma3_text"):
        with pytest.raises(InputError, match="a gemma3 holds its text model"):
            plan_budget(PruneConfig(model="m", data=("d",), output="o", family=family, sparsity=0.5), config)
    model.save_pretrained(tmp_path / "whole")
    tiny_tokenizer().save_pretrained(tmp_path / "whole")
    export_config(ExportConfig(model=str(tmp_path / "whole"), output=str(tmp_path / "text"), format="text"))
    text = AutoModelForCausalLM.from_pretrained(tmp_path / "text")
    torch.testing.assert_close(logits_of(text, IDS), logits_of(model, IDS), rtol=0.0, atol=1e-6)
    assert Pruner(text, sparsity=0.2, criterion="magnitude").units.family is FAMILIES["gemma3_text"]


def test_an_encoder_decoder_is_pruned_and_written_from_python(tmp_path) -> None:
    model, pruner = pruned("t5", "kv_group", shrink=True)
    report = pruner.export(tmp_path / "out")
    assert report.format == "stock"
    assert "AutoModelForSeq2SeqLM.from_pretrained" in report.loads_with
    small = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    assert (small.config.num_heads, small.config.d_kv) == (4, 16)
    # The heads of all layers of a stack go together: they share the first layer's bias by distance.
    for stack in (small.encoder, small.decoder):
        assert stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight.shape[1] == 4
    gone = {tuple(pruner.keep[pool.name].tolist()) for pool in pruner.units.of_kind("kv_group")}
    assert len(pruner.units.of_kind("kv_group")) == 5  # encoder, decoder, and each of three layers of cross-attention
    assert len(gone) > 1
    expected = logits_of(model, IDS)
    torch.testing.assert_close(logits_of(small, IDS), expected, rtol=0.0, atol=float(2e-5 * expected.abs().max()))
