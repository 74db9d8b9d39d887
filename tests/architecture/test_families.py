"""Every registered model type, from its real config class: masked = sliced = shrunk = padded, the budget's count, and a
checkpoint that a process without secateur reads the same.

A row of `tests.architecture.rows` alone: `pytest tests/architecture/test_families.py -k olmo3`.
"""

import os
from dataclasses import dataclass

import pytest
import torch
from peft import LoraConfig, get_peft_model
from product import some_of
from torch import Tensor

from secateur import Pruner
from secateur.architecture.config_faults import size_faults
from secateur.architecture.discovery import find_units
from secateur.architecture.families import FAMILIES, Family
from secateur.architecture.layered import LAYERS_KEY
from secateur.checkpoint.comparing import logits_of
from secateur.checkpoint.export import build_small, save_model
from secateur.checkpoint.padding import padded_shape, padded_state
from secateur.checkpoint.verify import Check, verify, weights_checksum
from secateur.models.benchmark import parameter_count
from secateur.models.coverage import tell_transposed_
from secateur.models.surgery import merged_and_sliced
from secateur.pruning.masks import Masks
from secateur.training.prepare import lora_names
from tests.architecture.rows import IDS, T5S, TYPES, basic, tiny

ALL = os.environ.get("SECATEUR_FAMILIES") == "all"
"""Every kind of unit of every row (`make families-test`); else of each row what no other test of it shows."""
LAYERS = 2
"""Of rows that do not say how many."""
GROUPED = ("llama", "phi3", "falcon", "qwen2_moe")
"""Rows that lose single query heads too: one for each way in which heads lie in their linears."""


def cases_of(name: str) -> list[str]:
    """The heads that a row loses beside channels, `none` among them: those after which it is written otherwise."""
    family = family_of(name)
    kinds = [kind for kind in family.kinds if kind != "ffn"]
    if ALL or not kinds:
        return ["none", *kinds]
    alone = ["none"] if family.formats["ffn"] != family.formats[kinds[0]] else []
    return alone + kinds[: 2 if name in GROUPED else 1]


def family_of(name: str) -> Family:
    return FAMILIES[name.split("/")[0]]


CASES = [(name, attention) for name in TYPES for attention in cases_of(name)]
EACH = list({name.split("/")[0]: (name, attention) for name, attention in reversed(CASES)}.values())[::-1]
EACH += [("llama", "query_head"), ("phi3", "query_head"), ("gpt2", "kv_group")]
"""The first case of each type, and what that leaves out of llama, gpt2 and phi3."""
SOME = CASES if ALL else some_of(CASES, EACH)
FEW = CASES if ALL else some_of(CASES, [case for case in EACH if case[0] in basic.TYPES] + EACH[::3])
"""The rows that others are like, and a third of the rest."""
MORE_THAN_STOCK = [("phi/qk_layernorm", "kv_group"), ("phi/qk_layernorm", "query_head")]
"""What the stock class of a family cannot hold in one variant."""


def dtype_of(name: str) -> torch.dtype:
    """T5 does not scale attention scores: in float32 a few steps make 2e-4 of the logits out of rounding. Zamba 2's
    states make 4e-5."""
    return torch.float64 if name.split("/")[0] in (*T5S, "zamba2") else torch.float32


def share_of(family: Family, attention: str) -> float | None:
    """Of the attention's parameters that go: with one of three groups, or one of two query heads of each."""
    gated = family.query_rows > 1 or any(path.endswith("gate_proj") for path in family.by_head)
    single = 3 / 8 if gated else 0.3 if family.shared else 1 / 3  # Zamba's queries read twice the width
    return None if attention == "none" else single if attention == "query_head" else 1 / 3


def pruned(name: str, attention: str, *, shrink: bool):
    """A LoRA model trained for four steps in which half of it goes, and its pruner."""
    torch.manual_seed(0)
    base = tiny(name, LAYERS).to(dtype_of(name))
    resolved = find_units(base, family_of(name), "none").family  # T5's FFN is gated or plain
    lora = LoraConfig(r=4, target_modules=sorted(set(lora_names(resolved))), init_lora_weights=False)
    tell_transposed_(lora, base)
    model = get_peft_model(base, lora).eval()
    pruner = Pruner(
        model, sparsity=0.3, total_steps=4, prune_start=1, prune_end=3, frequency=1, attention=attention,
        shrink=shrink, allocation="uniform" if family_of(name).alike_only else "protected",
        protect_first=0, protect_last=0,
        attention_sparsity=share_of(family_of(name), attention), criterion="taylor",
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


@dataclass(frozen=True, eq=False)
class Masked:
    """A row whose cuts mask: nothing is cut out of the model."""

    name: str
    attention: str
    model: torch.nn.Module
    pruner: Pruner
    logits: Tensor

    @property
    def family(self) -> Family:
        return family_of(self.name)


@pytest.fixture(scope="module", params=SOME, ids="-".join)
def masked(request) -> Masked:
    """One for the tests of a row, which follow each other."""
    name, attention = request.param
    model, pruner = pruned(name, attention, shrink=False)
    return Masked(name, attention, model, pruner, logits_of(model, IDS))


def test_every_family_has_a_row() -> None:
    assert {name.split("/")[0] for name in TYPES} == set(FAMILIES)


def test_a_fresh_process_computes_the_masked_model(masked, tmp_path) -> None:
    name, attention, pruner, family = masked.name, masked.attention, masked.pruner, masked.family
    base = tiny(name, LAYERS)
    assert not size_faults(base.config), "the commands would refuse its config.json"
    tensors = merged_and_sliced(masked.model, pruner.units, pruner.keep)
    shapes = pruner.units.shapes_after(pruner.keep)
    small = build_small(base.config, pruner.units.family, shapes, tensors, dtype_of(name), "keep")
    layered = LAYERS_KEY in small.config.to_dict()
    stock = "stock" in family.formats["ffn" if attention == "none" else attention]
    assert layered == (not stock or (name, attention) in MORE_THAN_STOCK)
    save_model(small, tmp_path / "out", pruner.units.family if layered else None)
    written = logits_of(small, IDS)
    count = parameter_count(small)
    (found,) = verify([Check(tmp_path / "out", IDS, written, count, layered, checksum=weights_checksum(small))])
    if not layered:
        assert found.class_name == type(base).__name__
    scale = masked.logits.abs().max()
    assert found.difference <= 1e-5 * scale  # from the sliced model in memory, which must be the masked one:
    torch.testing.assert_close(written, masked.logits, rtol=0.0, atol=float(2e-5 * scale))
    with pruner.masks.off():
        unmasked = logits_of(masked.model, IDS)
    assert (masked.logits - unmasked).abs().max() > 2e-3 * scale, "the masks change less than the tolerance would hide"
    assert parameter_count(base) - count == pruner.budget.removed_params


@pytest.mark.parametrize("masked", FEW, indirect=True, ids="-".join)
def test_shrinking_is_masking_and_training_goes_on(masked) -> None:
    pruner = masked.pruner
    shrunk, other = pruned(masked.name, masked.attention, shrink=True)
    assert {n: k.tolist() for n, k in pruner.keep.items()} == {n: k.tolist() for n, k in other.keep.items()}
    if masked.attention != "none":
        assert all(not pruner.keep[pool.name].all() for pool in pruner.units.of_kind(masked.attention))
    before = parameter_count(masked.model) - parameter_count(shrunk)
    assert before > pruner.removed_params  # LoRA's rows and columns go too
    expected = masked.logits
    torch.testing.assert_close(logits_of(shrunk, IDS), expected, rtol=0.0, atol=float(1e-4 * expected.abs().max()))
    shrunk(input_ids=IDS, labels=IDS).loss.backward()


@pytest.mark.parametrize("masked", FEW, indirect=True, ids="-".join)
def test_layers_that_differ_and_their_padded_form(masked) -> None:
    name, attention, family = masked.name, masked.attention, masked.family
    if family.alike_only:
        return  # such layers cannot differ
    base = tiny(name, LAYERS)
    units = find_units(base, family, attention)
    family = units.family  # of several that the type may have
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
    if family.ffn_listed:  # its stock class takes them
        assert type(small) is type(base)
        torch.testing.assert_close(logits_of(small, IDS), expected, rtol=0.0, atol=float(2e-5 * scale))
        return
    wide = padded_shape(base.config, family, shapes, "keep")
    state = padded_state(dict(small.state_dict()), family, shapes, (wide,) * len(shapes))
    padded = build_small(base.config, family, (wide,) * len(shapes), state, torch.float32, "keep")
    assert LAYERS_KEY in small.config.to_dict()
    assert type(padded) is type(base)
    for other in (small, padded):
        torch.testing.assert_close(logits_of(other, IDS), expected, rtol=0.0, atol=float(2e-5 * scale))
    assert (expected - dense).abs().max() > 2e-3 * scale
