"""A recipe in a run's records: its options as if they had been given, and its name, where there was one."""

import json
from dataclasses import asdict, fields

import pytest
from tiny import save_tiny

from secateur.cli import main
from secateur.config.files.recipes import build_values, read_with_recipe, recipes
from secateur.config.prune import PruneConfig
from secateur.system.errors import InputError
from secateur.training.checkpoints import check_same_run, write_run
from secateur.training.job import HARMLESS


def config_of(**given: object) -> PruneConfig:
    return build_values(
        PruneConfig, read_with_recipe({"model": "m", "data": "d", "output": "o", **given}, None, "prune")
    )


def test_a_run_has_the_recipes_options_and_name_in_its_record(tmp_path, capsys) -> None:
    save_tiny(tmp_path / "model", layers=3)
    (tmp_path / "text.txt").write_text("a quick brown fox jumps over the lazy dog. " * 60)
    given = ["prune", "--model", str(tmp_path / "model"), "--data", str(tmp_path / "text.txt"), "--seq-len", "32",
             "--steps", "10", "--batch-size", "2", "--accumulation", "1", "--frequency", "2", "--dtype", "float32",
             "--output", str(tmp_path / "out")]  # fmt: skip
    assert main([*given, "--recipe", "loraprune", "--eta", "0.5"]) == 0
    config = json.loads((tmp_path / "out" / "result.json").read_text())["config"]
    assert config["recipe"] == "loraprune"
    expected = asdict(config_of(recipe="loraprune", eta=0.5, batch_size=2, accumulation=1, frequency=2))
    assert all(config[name] == expected[name] for name in recipes()["loraprune"].options)
    assert (config["eta"], config["score_linears"], config["lr"]) == (0.5, "all", 1e-4)
    assert list(config)[:-1] == [f.name for f in fields(PruneConfig)]
    # The report's command says all options, so that a recipe that changes does not change what it runs.
    page = (tmp_path / "out" / "report.html").read_text()
    command = page[page.index("secateur prune") :].split("</", 1)[0]
    assert "--recipe" not in command
    assert "--score-linears all" in command


def test_without_a_recipe_a_record_is_what_it_was() -> None:
    assert list(asdict(config_of(criterion="lora"))) == [f.name for f in fields(PruneConfig)]


def test_a_run_goes_on_with_its_options_whether_a_recipe_or_flags_gave_them(tmp_path) -> None:
    by_recipe = config_of(recipe="best")
    by_flags = config_of(**recipes()["best"].options)
    for before, now in ((by_recipe, by_flags), (by_flags, by_recipe)):
        write_run(tmp_path, asdict(before), [])
        check_same_run(tmp_path, asdict(now), [], HARMLESS)
    with pytest.raises(InputError, match="criterion: gate -> lora"):
        write_run(tmp_path, asdict(by_recipe), [])
        check_same_run(tmp_path, asdict(config_of(recipe="loraprune")), [], HARMLESS)
