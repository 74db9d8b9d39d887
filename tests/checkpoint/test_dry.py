"""What would make the end of a run fail is found before its first step."""

import copy
import os
from dataclasses import replace
from functools import partial

import pytest
import torch
from tiny import save_tiny
from transformers import AutoConfig, AutoModelForCausalLM

from secateur import Pruner
from secateur.architecture.discovery import find_units
from secateur.architecture.experts import unstack_experts
from secateur.architecture.families import FAMILIES, Family
from secateur.architecture.stock import accepts
from secateur.checkpoint.dry import check_export
from secateur.checkpoint.export import build_small
from secateur.cli import main
from secateur.config.prune import PruneConfig
from secateur.models.benchmark import parameter_count
from secateur.models.surgery import merged_and_sliced
from secateur.pruning.allocation import make_budget
from secateur.pruning.budget import budget_goal
from secateur.system.errors import InputError
from secateur.training.prepare import plan_budget
from tests.architecture.test_families import CASES, SIZES, tiny

ALLOCATIONS = ("uniform", "protected", "global")


def without_weights(name):
    base = tiny(name)
    with torch.device("meta"):
        empty = type(base)(copy.deepcopy(base.config))
    unstack_experts(empty)
    return base, empty


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_a_dry_export_agrees_with_the_end_of_a_run(name, attention) -> None:
    """For every family, unit, allocation and class: the one passes where the other makes a model of the right size."""
    family = FAMILIES[name.split("/")[0]]
    base, empty = without_weights(name)
    units = find_units(base, family, attention)
    agreed = []
    for allocation in ALLOCATIONS[: 1 if family.alike_only else 3]:
        for model_class in ("keep", *((family.twin,) if family.twin and allocation == "uniform" else ())):
            goal = budget_goal(PruneConfig(model="m", data=("d",), output="o", allocation=allocation), 0.3, "raw")
            legal = partial(accepts, base.config, family, model_class=model_class)
            try:
                budget = make_budget(units, goal, legal)
            except InputError:
                continue  # refused before anything else
            generator = torch.Generator().manual_seed(0)
            everything = {pool.name: torch.ones(pool.size, dtype=torch.bool) for pool in units.pools}
            scores = {pool: torch.rand(len(mask), generator=generator) for pool, mask in everything.items()}
            keep = budget.select(scores, everything, 1.0)
            dry = outcome(check_export, empty, units, budget.example(), model_class)
            tensors = merged_and_sliced(base, units, keep)
            shapes = units.shapes_after(keep)
            small = outcome(build_small, base.config, units.family, shapes, tensors, torch.float32, model_class)
            assert isinstance(dry, InputError) == isinstance(small, InputError), (allocation, model_class, dry, small)
            if not isinstance(small, InputError):
                assert parameter_count(base) - parameter_count(small) == units.removed_params(keep)
            agreed.append(allocation)
    assert agreed


def outcome(act, *arguments):
    try:
        return act(*arguments)
    except InputError as error:
        return error


HELIUM = {"hidden_size": 96, "head_dim": 16}


def helium(**more):
    options = {k: v for k, v in {**SIZES, **HELIUM, **more}.items() if v is not None}
    return AutoConfig.for_model("helium", **options)


def test_a_registered_family_is_checked_as_a_named_one(monkeypatch) -> None:
    """Helium's `o_proj` is width x width whatever the heads."""
    monkeypatch.setitem(FAMILIES._entries, "helium", Family(name="helium"))
    model = AutoModelForCausalLM.from_config(helium())
    options = {"sparsity": 0.3, "attention_sparsity": 1 / 3, "criterion": "magnitude", "protect_first": 0}
    with pytest.raises(InputError, match="a helium is built as something else"):
        Pruner(model, allocation="uniform", protect_last=0, **options)
    config = PruneConfig(model="m", data=("d",), output="o", sparsity=0.3, attention_sparsity=1 / 3, criterion="gate")
    with pytest.raises(InputError, match=r"could not be written: the helium layout leaves"):
        plan_budget(config, model.config)
    plan_budget(replace(config, allocation="global"), model.config)  # its modelling file sets each layer's sizes
    Pruner(model, allocation="uniform", protect_last=0, **options | {"attention": "none", "attention_sparsity": None})


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["prune", "--allocation", "global"], "a layered LayeredLlamaForCausalLM of "),
        (["adapt", "--init-rank", "4", "--rank", "2"], "a LoRA adapter of rank 2, "),
        (["compare", "--criterion", "gate,lora", "--evaluate-on", "text.txt"], ": dry run: "),
    ],
)
def test_the_option(command, said, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "model", layers=2)
    (tmp_path / "text.txt").write_text("a quick brown fox jumps over the lazy dog. " * 60)
    before = sorted(os.listdir(tmp_path))
    common = ["--model", "model", "--data", "text.txt", "--steps", "4", "--batch-size", "2", "--seq-len", "32"]
    assert main([*command, *common, "--output", "new/out", "--dry-run"]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert said in out
    assert " would hold " in out
    assert "nothing was trained" in out
    assert sorted(os.listdir(tmp_path)) == before
