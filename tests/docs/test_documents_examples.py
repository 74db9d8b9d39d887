"""The examples in docs/ run as they are printed."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from secateur import Pruner
from secateur.architecture.families import FAMILIES
from secateur.criteria import CRITERIA
from tests.architecture.test_families import IDS, SIZES
from tests.pruning.test_pruner import STEPS, adapted, pruner_for, train_bare

DOCS = Path(__file__).parents[2] / "docs"


def example(name: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(encoding="utf-8"), re.DOTALL)
    return code


def test_add_a_criterion() -> None:
    exec(compile(example("add-a-criterion.md"), "add-a-criterion.md", "exec"), {})
    pruner = pruner_for(adapted(layers=2), criterion="activity", total_steps=STEPS)
    train_bare(pruner.model, pruner)
    assert pruner.sparsity == pytest.approx(0.4, abs=0.01)
    assert all(pool.name in pruner.scores_before_cuts for pool in pruner.units.pools)
    gone = pruner.cuts[0]
    for name, units in gone.removed.items():
        kept = pruner.scores_before_cuts[name].clone()
        kept[units] = float("inf")
        assert max(gone.scores[name]) <= kept.min()
    assert "activity" in dict(CRITERIA.items())


def test_add_a_family(tmp_path, monkeypatch) -> None:
    entries = dict(FAMILIES)
    monkeypatch.setattr(FAMILIES, "_entries", entries)  # what the example registers goes again
    exec(compile(example("add-a-family.md"), "add-a-family.md", "exec"), {})
    assert "starcoder2" in FAMILIES
    torch.manual_seed(0)
    options = {key: value for key, value in SIZES.items() if value is not None and key != "rms_norm_eps"}
    config = AutoConfig.for_model("starcoder2", **options, initializer_range=0.2)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    pruner = Pruner(
        model, sparsity=0.5, total_steps=2, prune_start=0, prune_end=1, frequency=1, criterion="taylor", shrink=False,
        allocation="protected", protect_first=0, protect_last=0,
    )  # fmt: skip
    dense = model(IDS).logits
    model(IDS, labels=IDS).loss.backward()
    pruner.observe()
    pruner.step()
    model.zero_grad()
    masked = model(IDS).logits
    pruner.export(tmp_path / "out")  # which compares with the masked model, and reads back in a fresh process
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(small) is type(model)
    assert small.config.num_key_value_heads < model.config.num_key_value_heads
    torch.testing.assert_close(small(IDS).logits, masked, rtol=0.0, atol=float(2e-5 * dense.abs().max()))
    assert (masked - dense).abs().max() > 2e-3 * dense.abs().max()
