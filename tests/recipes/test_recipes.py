"""Recipes: their options are good, their models' shapes are the published ones, their comments are what plan says."""

import re
from importlib.resources import files

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from secateur.cli import main
from secateur.config.adapt import AdaptConfig
from secateur.config.files.recipes import PruneFromRecipe, build_values, read_with_recipe, recipes
from secateur.config.options import build
from secateur.config.prune import PruneConfig
from secateur.models.benchmark import parameter_count
from secateur.models.loading import load_config
from secateur.models.source import resolve_model
from secateur.system.errors import InputError
from secateur.training.prepare import plan_budget
from tests.architecture.rows import tiny
from tests.recipes.memory import DEVICES, ENTRY, SHAPES, entry, gpu_bytes, planned

PUBLISHED = {
    "gemma-3-1b": 999_885_952,
    "gemma-3-4b": 4_300_079_472 - 416_866_032 - 2_950_272,  # the whole without its image tower and projector
    "granite-3.3-2b": 2_533_539_840,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b-v0.3": 7_248_023_552,
    "mixtral-8x7b": 46_702_792_704,
    "olmo-2-1b": 1_484_916_736,
    "phi-4-mini": 3_836_021_760,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "smollm2-1.7b": 1_711_376_384,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm3-3b": 3_075_098_624,
}
"""Parameters of each model, tied ones once, as the hub counts them in the model's safetensors files."""
OF_MODELS = [name for name, recipe in recipes().items() if recipe.of_model]
TOLERANCE = 0.02
"""Of memory: another version of transformers may keep a little more or less."""


@pytest.mark.parametrize("name", OF_MODELS)
def test_a_models_shape_is_the_published_one(name) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(load_config(resolve_model(str(SHAPES / name))))
    assert parameter_count(model) == PUBLISHED[name]


@pytest.mark.parametrize("name", OF_MODELS)
def test_a_models_recipe_can_be_reached_and_takes_what_it_says(name) -> None:
    recipe = recipes()[name]
    found = planned(recipe)
    step = recipe.options.get("round_to", 1) / 2
    ffn = found["units"]["ffn"]
    slack = 0.005 + step * ffn["layers"] * ffn["parameters_per_unit"] / found["prunable_parameters"]
    assert found["sparsity"] == pytest.approx(recipe.options["sparsity"], abs=slack)
    said = float(re.match(r"([\d.]+) GB at the peak", recipe.about["memory"])[1]) * 1e9
    needed = gpu_bytes(found)
    assert said == pytest.approx(needed, rel=TOLERANCE, abs=5e7)
    text = ENTRY.search(recipe.text)[0]
    for size, room in DEVICES.items():
        line = re.search(rf"#   {size}: (.*)\n", text)[1]
        assert (line == "fits") == (needed <= room)
        if changed := re.search(r"with (.*) it takes ([\d.]+) GB", line):
            again = gpu_bytes(planned(recipe, **yaml.safe_load(changed[1].replace(", ", "\n"))))
            assert float(changed[2]) * 1e9 == pytest.approx(again, rel=TOLERANCE, abs=5e7)
            assert again <= room


def test_what_to_change_comes_from_the_plan_too(monkeypatch) -> None:
    recipe = recipes()["smollm2-360m"]
    needed = gpu_bytes(planned(recipe))
    lighter = gpu_bytes(planned(recipe, gradient_checkpointing=True))
    monkeypatch.setattr("tests.recipes.memory.CHANGES", ({"gradient_checkpointing": True},))
    monkeypatch.setattr("tests.recipes.memory.DEVICES", {"6 GB": (needed + lighter) / 2, "0 GB": 1.0})
    assert f"#   6 GB: does not fit; with gradient_checkpointing: true it takes {lighter / 1e9:.1f} GB\n" in entry(
        recipe
    )
    assert "#   0 GB: does not fit, and no option of one device makes it\n" in entry(recipe)


@pytest.mark.parametrize("name", list(recipes()))
def test_a_recipe_has_no_faults_and_says_what_it_is(name) -> None:
    recipe = recipes()[name]
    values = {**recipe.options, "data": ["x.txt"], "output": "out"}
    build(AdaptConfig if recipe.commands == ("adapt",) else PruneConfig, {"model": "m", **values})
    assert recipe.about["what"]
    stock = recipe.options.get("allocation", "uniform") == "uniform"
    assert recipe.about["loads"] == ("stock" if stock else "trust_remote_code")
    assert max(map(len, recipe.text.splitlines())) <= 120
    if "measured" in recipe.about:
        assert "docs/results/" in recipe.about["measured"]


def test_recipes_are_listed_and_printed_as_they_are(capsys) -> None:
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    for name, recipe in recipes().items():
        assert re.search(rf"^{re.escape(name)} ", listed, re.MULTILINE)
        assert recipe.about.get("measured", "")[:40] in listed or "model" in recipe.options
    assert re.search(r"^mixtral-8x7b +mistralai/Mixtral-8x7B-v0.1 +20% +stock +no +no$", listed, re.MULTILINE)
    assert max(map(len, listed.splitlines())) <= 110
    assert main(["recipes", "best"]) == 0
    file = files("secateur") / "recipes" / "best.yaml"
    assert capsys.readouterr().out == file.read_text(encoding="utf-8")
    assert main(["recipes", "bset"]) == 2
    error = capsys.readouterr().err
    assert "--recipe bset: no such recipe. Did you mean 'best'? Known: best, default, " in error


def built(tmp_path, given: dict, file: str | None = None, command: str = "prune"):
    if file is not None:
        (tmp_path / "run.yaml").write_text(file)
        file = str(tmp_path / "run.yaml")
    given = {"model": "m", "data": ["d.txt"], "output": "out", **given}
    return build_values(PruneConfig, read_with_recipe(given, file, command))


def test_flags_win_over_a_file_and_that_over_the_recipe(tmp_path) -> None:
    config = built(tmp_path, {"recipe": "best", "lr": "3e-3"}, "lr: 4e-3\nfloor: 0.2\n")
    assert isinstance(config, PruneFromRecipe)
    assert (config.recipe, config.lr, config.floor, config.criterion) == ("best", 3e-3, 0.2, "gate")
    assert {"criterion", "floor", "lr"} <= config.given
    assert set(config.origins) == set(recipes()["best"].options) - {"lr", "floor"}
    assert built(tmp_path, {}, "recipe: best\n").criterion == "gate"


def test_a_run_that_says_nothing_of_how_takes_the_usual_recipe(tmp_path) -> None:
    mine = recipes()["default"].options
    for given in ({}, {"sparsity": "0.4", "round_to": "32", "seed": "3", "attention": "none", "lr": "1e-3"}):
        for command in ("prune", "plan"):
            config = built(tmp_path, given, command=command)
            assert config.recipe == "default"
            assert {name: getattr(config, name) for name in mine} == mine
    # Whatever is said of how, the paper's score without a refit stands below it, as it does in `compare`.
    for given in ({"criterion": "lora"}, {"allocation": "global"}, {"frequency": "5"}, {"protect_first": "1"}):
        config = built(tmp_path, given | ({"allocation": "protected"} if "protect_first" in given else {}))
        assert type(config) is PruneConfig
        assert (config.criterion, config.compensate) == ("lora", "none")
    assert type(built(tmp_path, {}, "floor: 0.2\nallocation: global\n")) is PruneConfig
    assert type(built(tmp_path, {}, command="compare")) is PruneConfig


def test_the_usual_recipe_refits_where_it_can_be_had_alone(tmp_path) -> None:
    for given in ({"load_in": "8bit"}, {"stream_export": True}):
        config = built(tmp_path, given)
        assert (config.recipe, config.criterion, config.compensate) == ("default", "gate", "none")
    with pytest.raises(InputError, match="--compensate is from --recipe stock"):
        built(tmp_path, {"recipe": "stock", "load_in": "8bit"})
    mixtral, llama = tiny("mixtral").config, tiny("llama").config
    planned = plan_budget(built(tmp_path, {"sparsity": "0.3", "load_in": "8bit"}), llama)
    assert "no refit at the cuts, which is usual: --load-in reads" in planned.no_refit
    assert planned.config.compensate == "none"
    planned = plan_budget(built(tmp_path, {"sparsity": "0.3"}), mixtral)
    assert planned.config.compensate == "none"
    assert "mixtral is a mixture" in planned.no_refit
    assert planned.config.given == built(tmp_path, {"sparsity": "0.3"}).given
    assert "compensate" not in planned.config.origins
    with pytest.raises(InputError, match="mixtral is a mixture"):
        plan_budget(built(tmp_path, {"recipe": "stock", "sparsity": "0.3"}), mixtral)
    planned = plan_budget(built(tmp_path, {"sparsity": "0.3"}), llama)
    assert (planned.config.compensate, planned.no_refit) == ("sequential", None)
    planned = plan_budget(built(tmp_path, {"sparsity": "0.3", "family": "llama"}), llama)
    assert "not tried with the layout of llama" in planned.no_refit


def test_a_size_takes_the_place_of_the_recipes_sparsity(tmp_path) -> None:
    config = built(tmp_path, {"recipe": "qwen3-8b", "target_params": "5B"})
    assert (config.sparsity, config.target_params) == (None, "5B")
    assert built(tmp_path, {"recipe": "qwen3-8b"}).model == "m"


def test_a_contradiction_names_where_a_value_came_from(tmp_path, capsys) -> None:
    with pytest.raises(InputError) as fault:
        built(tmp_path, {"recipe": "qwen3-8b", "batch_size": "4", "protect_first": "2"})
    lines = str(fault.value).split("\n")
    assert lines[1].endswith("choose a divisor. --accumulation is from --recipe qwen3-8b.")
    assert lines[2].endswith("use --allocation protected. --allocation is from --recipe qwen3-8b.")
    # One that is known only when the model is looked at.
    given = ["plan", "--recipe", "smollm2-360m", "--model", str(SHAPES / "smollm2-360m"), "--attention", "none"]
    assert main([*given, "--round-to", "2560"]) == 2
    error = capsys.readouterr().err.rstrip()
    assert "--sparsity 0.2" in error
    assert error.endswith("--sparsity and --allocation are from --recipe smollm2-360m.")


def test_a_recipe_of_another_command_is_refused(capsys) -> None:
    assert main(["adapt", "--recipe", "best", "--model", "m", "--data", "d", "--output", "o"]) == 2
    assert (
        "--recipe best is for prune, plan, compare, not for adapt: choose from prunedlora." in capsys.readouterr().err
    )
    assert main(["prune", "--recipe", "prunedlora", "--model", "m", "--data", "d", "--output", "o"]) == 2
    assert "--recipe prunedlora is for adapt, not for prune" in capsys.readouterr().err


def test_compare_takes_one_for_all_cells() -> None:
    from secateur.comparison.grid import build_comparison

    given = {"model": "m", "data": ["d.txt"], "evaluate_on": ["e.txt"], "output": "o", "recipe": "best",
             "criterion": "gate,lora", "cells": ["size: target_params=80M"]}  # fmt: skip
    cells = {cell.name: cell.config for cell in build_comparison(given).cells}
    assert {cells[name].criterion for name in ("gate", "lora")} == {"gate", "lora"}
    assert all(config.allocation == "global" and config.recipe == "best" for config in cells.values())
    assert {config.sparsity for name, config in cells.items() if name.startswith("size")} == {None}
