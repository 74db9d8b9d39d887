"""The examples in docs/ run as they are printed."""

import re
from pathlib import Path

import pytest
from test_pruner import STEPS, adapted, pruner_for, train_bare

from secateur.criteria import CRITERIA

DOCS = Path(__file__).parent.parent / "docs"


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
