"""Cells of `sparsify` in a comparison: one that fails, the options that they feel, a dry run."""

import json
from dataclasses import asdict

import pytest
from tiny import save_tiny

from secateur.comparison import command as compare_module
from secateur.comparison import rehearsal
from secateur.comparison.command import compare
from secateur.comparison.grid import build_comparison, zeros_config
from secateur.comparison.recorded import recorded
from secateur.system.errors import InputError, NumericsError

WORDS = "the quick brown fox jumps over the lazy dog while seven wizards box and quarrel about nothing at all. "
CELLS = ("wanda: method=wanda pattern=2:4 steps=0", "tuned: method=sparsegpt pattern=2:4", "pst: method=pst pattern=.5",
         "own: method=magnitude pattern=2:4 lr=3e-3", "gate: criterion=gate")  # fmt: skip
SHARED = {"model": "m", "data": ("d",), "evaluate_on": ("t",), "criterion": "gate", "sparsity": "0.5", "steps": "8",
          "lr": "1e-3,2e-3", "cells": CELLS, "baselines": ()}  # fmt: skip


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    monkeypatch.setattr("secateur.comparison.tables.plot_perplexity", lambda rows, path: None)
    save_tiny(tmp_path / "model", layers=1)
    (tmp_path / "text.txt").write_text(WORDS * 20)
    (tmp_path / "other.txt").write_text(WORDS[::-1] * 20)
    return {"model": str(tmp_path / "model"), "data": (str(tmp_path / "text.txt"),), "output": str(tmp_path / "grid"),
            "evaluate_on": (str(tmp_path / "other.txt"),), "sparsity": "0.5", "steps": "4", "batch_size": "2",
            "seq_len": "32", "frequency": "2", "dtype": "float32", "baselines": (), "eval_tokens": "64"}  # fmt: skip


def test_one_that_fails_leaves_the_others(inputs, monkeypatch) -> None:
    real, ran = compare_module.run_cell, []

    def failing(cell, job, comparison):
        ran.append(cell.name)
        if cell.zeros:
            raise NumericsError("the Hessian is not finite")
        return real(cell, job, comparison)

    monkeypatch.setattr(compare_module, "run_cell", failing)
    given = inputs | {"cells": (CELLS[0], "magnitude: criterion=magnitude")}
    table = compare(build_comparison(given))
    assert "failed: the Hessian is not finite" in table
    assert ran == ["wanda", "magnitude"]
    assert compare(build_comparison(given)) == table
    assert ran == ["wanda", "magnitude"]
    compare(build_comparison(given | {"overwrite": True}))
    assert ran == ["wanda", "magnitude", "wanda"], "it alone is run again"


@pytest.mark.parametrize(
    ("change", "felt"),
    [
        ({"lr": "5e-4,1e-3,2e-3"}, {}),
        ({"prune_end": "0.8"}, {"gate"}),
        ({"schedule": "linear"}, {"gate"}),
        ({"lr_decay": "cosine"}, {"gate"}),
        ({"frequency": "3"}, {"gate"}),
        ({"rank": "4", "gradient_checkpointing": "true"}, {"gate", "tuned", "own", "pst"}),
        ({"alpha": "4", "lora_init": "gaussian"}, {"gate", "tuned", "own"}),
        ({"batch_size": "4"}, {"gate", "tuned", "own", "pst", "wanda"}),
        ({"seed": "3"}, {"gate", "tuned", "own", "pst", "wanda"}),
        ({"save_steps": "2", "report_to": ("tensorboard",)}, {}),
        ({"cells": (*CELLS[:3], CELLS[3].replace("lr=3e-3", "lr=4e-3"), CELLS[4])}, {"own"}),
    ],
)
def test_recorded_ones_are_compared_by_what_they_feel(tmp_path, change, felt) -> None:
    given = SHARED | {"output": str(tmp_path)}
    for cell in build_comparison(given).cells:
        (tmp_path / cell.name).mkdir()
        record = {"name": cell.name, "kind": cell.kind, "status": "failed", "config": asdict(cell.config)}
        (tmp_path / cell.name / "result.json").write_text(json.dumps(record | {"zeros": dict(cell.zeros)}))
    refused = set()
    cells = build_comparison(given | change).cells
    assert {"wanda", "own", "pst_lr1e-3", "tuned_lr2e-3", "gate_lr2e-3"} <= {cell.name for cell in cells}
    for cell in cells:
        try:
            found = recorded(tmp_path, cell)
        except InputError as error:
            assert "with other options" in str(error)
            refused.add(cell.name.split("_")[0])
        else:
            assert (found is None) == ("lr5e-4" in cell.name)
    assert refused == set(felt)


def test_shared_options_go_to_those_that_feel_them(tmp_path) -> None:
    lora = {"alpha": "5", "dropout": "0.1", "rslora": "true", "lora_plus": "4", "lora_init": "gaussian"}
    more = {"save_steps": "2", "targets": ("q_proj", "o_proj", "v_proj"), "eval_steps": "4", "eval_data": "e"}
    cells = {cell.name: cell for cell in build_comparison(SHARED | lora | more | {"output": "o", "lr": "1e-3"}).cells}
    wanda, tuned, pst = (zeros_config(n, cells[n].config, dict(cells[n].zeros)) for n in ("wanda", "tuned", "pst"))

    def seen(config):
        return config.alpha, config.dropout, config.rslora, config.lora_plus, config.lora_init, config.targets

    default, given = (None, 0.0, False, None, "default", ()), (5, 0.1, True, 4.0, "gaussian", more["targets"])
    assert seen(cells["gate"].config) == seen(tuned) == given
    assert seen(wanda) == seen(pst) == default
    assert [(c.save_steps, c.eval_steps) for c in (wanda, tuned, pst)] == [(0, 0), (2, 4), (2, 4)]
    for change, message in {
        ("cells", ("x: method=pst pattern=.5 alpha=3",)): "cell 'x.*--alpha does not go with --method pst",
        ("cells", ("x: method=wanda steps=0 alpha=3",)): "cell 'x'.*--alpha goes with training",
        ("load_in", "8bit"): "--load-in 8bit rounds the base",
        ("init_rank", "16"): "sparsify prunes no ranks",
    }.items():
        with pytest.raises(InputError, match=message):
            build_comparison(SHARED | {"output": "o"} | dict([change]))


def test_a_dry_run_rehearses_them(inputs, tmp_path, monkeypatch) -> None:
    """By what `sparsify --dry-run` does, which has tests of its own."""
    monkeypatch.setattr(
        rehearsal, "dry_sparsify", lambda job, _: f"zeros {job.config.pattern}, {len(job.layers)} layer"
    )
    monkeypatch.setattr(rehearsal, "dry_prune", lambda job, _: f"cut {job.budget.sparsity:.2f}")
    given = inputs | {"dry_run": True, "cells": (CELLS[0], CELLS[4]), "baselines": ("dense",)}
    assert compare(build_comparison(given)) == "== wanda: zeros 2:4, 1 layer\n== gate: cut 0.50"
    assert not list((tmp_path / "grid").glob("*/result.json"))
    with pytest.raises(InputError, match="5:7"):
        compare(build_comparison(given | {"cells": ("odd: method=wanda pattern=5:7 steps=0",)}))
