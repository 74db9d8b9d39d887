"""Scores equal their formulas written out naively."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from tiny import tiny_llama

from secateur.architecture.discovery import find_units
from secateur.architecture.families import family_of
from secateur.criteria import CRITERIA, Evidence, Scoring
from secateur.criteria import lora as lora_module
from secateur.criteria.lora import entry_sums, projected
from secateur.system.errors import InputError


def score_of(name, pool, modules, **options):
    criterion = CRITERIA[name]
    return criterion.score(pool, Evidence(modules), criterion.options(name, Scoring(**options)))


@pytest.fixture
def adapted():
    """A tiny GQA model (6 query heads on 2 KV heads) with LoRA, non-zero B and real gradients."""
    torch.manual_seed(0)
    model = get_peft_model(
        tiny_llama(layers=2, hidden=96, heads=6, kv_heads=2),
        LoraConfig(r=4, lora_alpha=12, target_modules="all-linear"),
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.randint(3, 128, (2, 16))
    model(ids, labels=ids).loss.backward()
    base = model.get_base_model()
    units = find_units(base, family_of("llama"))
    return units, {path: base.get_submodule(path) for path in units.linears}


def naive_importance(layer: LoraLayer, eta: float, reduce: str) -> torch.Tensor:
    """Paper Eq. 10, dense and in float64."""
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    da, db = a.grad.double(), b.grad.double()
    a, b, s = a.detach().double(), b.detach().double(), layer.scaling["default"]
    gradient = db @ a + b @ da - eta * db @ da
    term = gradient * (layer.get_base_layer().weight.detach().double() + s * b @ a)
    return term**2 if reduce == "squared" else term.abs()


@pytest.mark.parametrize("reduce", ["squared", "abs"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("linears", ["all", "rows"])
@pytest.mark.parametrize("block", [1 << 18, 500])  # one block; blocks of a few rows, the last one short
def test_lora_score_is_the_dense_formula(adapted, reduce, eta, linears, block, monkeypatch) -> None:
    monkeypatch.setattr(lora_module, "BLOCK_ENTRIES", block)
    units, modules = adapted
    for pool in units.pools:
        expected = torch.zeros(pool.size, dtype=torch.float64)
        for member in pool.members:
            if linears == "rows" and member.dim == 1:
                continue
            importance = naive_importance(modules[member.linear], eta, reduce)
            for unit in range(pool.size):  # entry by entry, no vectorised shortcut shared with the code
                for entry in member.index[unit].tolist():
                    row = importance[entry] if member.dim == 0 else importance[:, entry]
                    expected[unit] += row.sum()
        score = score_of("lora", pool, modules, reduce=reduce, eta=eta, linears=linears)
        assert expected.std() > 0
        torch.testing.assert_close(score.double(), expected, rtol=1e-4, atol=0.0)  # float32 sums of ~5,000 terms


def test_a_query_heads_score_goes_to_its_kv_head(adapted) -> None:
    units, modules = adapted
    pool = units.of_kind("kv_group")[0]
    quiet = {m.linear: modules[m.linear] for m in pool.members}
    before = score_of("lora", pool, quiet)
    q = modules["model.layers.0.self_attn.q_proj"]
    head, head_dim, n_rep = 4, 16, 3
    q.lora_B["default"].weight.grad[head * head_dim : (head + 1) * head_dim] *= 100  # head 4 -> KV head 1
    after = score_of("lora", pool, quiet)
    assert after[head // n_rep] > 2 * before[head // n_rep]
    assert after[0] == before[0]


def test_linear_normalisation_gives_each_linear_the_same_weight(adapted) -> None:
    units, modules = adapted
    pool = units.of_kind("ffn")[0]
    score = score_of("lora", pool, modules, normalize="linear", linears="all")
    expected = torch.zeros(pool.size)
    for member in pool.members:
        single = naive_importance(modules[member.linear], 1.0, "squared").sum(1 - member.dim)
        expected += (single / single.norm()).float()
    torch.testing.assert_close(score, expected, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("reduce", ["squared", "abs"])
def test_scale_normalisation_cancels_rank_and_scaling(reduce: str) -> None:
    """At B = 0 the stand-in gradient is s·G·AᵀA: E[AᵀA] = r/(3·in)·I for PEFT's A, so s·r/in is the scale."""
    torch.manual_seed(0)
    o, i = 64, 256
    g, w = torch.randn(o, i), torch.randn(o, i)
    sums = {}
    for r, s in ((16, 0.5), (128, 4.0)):
        a = (torch.rand(r, i) * 2 - 1) / i**0.5
        raw = entry_sums(w, a, torch.zeros(o, r), torch.zeros(r, i), s * g @ a.T, scaling=s, reduce="abs").mean()
        sums[r] = raw / (s * r / i)
    assert sums[16] / sums[128] == pytest.approx(1.0, rel=1.5)  # unscaled the ratio would be 1/64
    assert sums[16] / sums[128] > 0.4


@pytest.mark.parametrize("zero", [False, True])
def test_projected_gradient_is_what_lora_sees_whatever_its_scale(zero) -> None:
    """G less its part orthogonal to A's rows and B's columns, by orthonormal bases; ∂B = s·G·Aᵀ, ∂A = s·Bᵀ·G."""
    torch.manual_seed(0)
    o, i, r, s = 12, 20, 3, 1.7
    g, w, a = torch.randn(o, i).double(), torch.randn(o, i).double(), torch.randn(r, i).double()
    b = torch.zeros(o, r).double() if zero else torch.randn(o, r).double()
    on_a, on_b = torch.linalg.qr(a.T).Q, torch.linalg.qr(b).Q * (not zero)
    off_a, off_b = torch.eye(i).double() - on_a @ on_a.T, torch.eye(o).double() - on_b @ on_b.T
    expected = ((g - off_b @ g @ off_a) * (w + s * b @ a)).square()
    for c in (1.0, 1e3):
        factors = a * c, b / c, s * (b / c).T @ g, s * g @ (a * c).T
        left, right = projected(*factors, s)
        for dim in (0, 1):
            sums = entry_sums(w, *factors, scaling=s, dim=dim, stand_in=(left, right))
            torch.testing.assert_close(sums, expected.sum(1 - dim), rtol=1e-9, atol=1e-9)


def test_projected_scores_do_not_feel_the_factors_scale(adapted) -> None:
    units, modules = adapted
    before = {pool.name: score_of("lora", pool, modules, normalize="projected") for pool in units.pools}
    for module in modules.values():
        a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        for parameter, scale in ((a, 4.0), (b, 0.25)):  # B·A stays, and gradients scale the other way round
            parameter.data *= scale
            parameter.grad /= scale
    for pool in units.pools:
        torch.testing.assert_close(score_of("lora", pool, modules, normalize="projected"), before[pool.name], rtol=1e-4,
                                   atol=0.0)  # fmt: skip
        assert not torch.allclose(before[pool.name], score_of("lora", pool, modules), rtol=0.1)


def test_magnitude_is_the_merged_weight(adapted) -> None:
    units, modules = adapted
    pool = units.of_kind("ffn")[1]
    score = score_of("magnitude", pool, modules, reduce="abs", linears="all")
    expected = torch.zeros(pool.size)
    for member in pool.members:
        layer = modules[member.linear]
        weight = layer.get_base_layer().weight + layer.get_delta_weight("default")
        expected += weight.abs().sum(1 - member.dim)
    torch.testing.assert_close(score, expected)


def test_random_depends_on_seed_and_pool_only(adapted) -> None:
    units, modules = adapted
    first, second = units.of_kind("ffn")
    draw = lambda pool, seed: score_of("random", pool, modules, seed=seed)  # noqa: E731
    assert torch.equal(draw(first, 1), draw(first, 1))
    assert not torch.equal(draw(first, 1), draw(first, 2))
    assert not torch.equal(draw(first, 1), draw(second, 1))


def test_errors_name_the_remedy(adapted) -> None:
    units, modules = adapted
    with pytest.raises(InputError, match="unknown criterion 'magnitud'. Did you mean 'magnitude'"):
        CRITERIA["magnitud"]
    for normalize in ("scale", "projected"):
        with pytest.raises(InputError, match=f"--normalize {normalize} .*: magnitude takes none or linear"):
            score_of("magnitude", units.pools[0], modules, normalize=normalize)
    modules["model.layers.0.mlp.up_proj"].lora_A["default"].weight.grad = None
    with pytest.raises(InputError, match=r"model.layers.0.mlp.up_proj.*observe\(\) after backward"):
        score_of("lora", units.of_kind("ffn")[0], modules)
