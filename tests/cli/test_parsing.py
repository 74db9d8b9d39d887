"""Help, suggestions, completion and the schema: what people meet before a command runs."""

import json
import os
import re
import subprocess
import sys
import warnings

import jsonschema
import pytest
import yaml

from secateur.cli import main
from secateur.cli.commands import COMMANDS
from secateur.cli.parsing import parse
from secateur.config import pruning
from secateur.config.evaluation import TASKS
from secateur.config.files.recipes import PRUNING, recipes
from secateur.config.files.rerun import rerun_text
from secateur.config.files.schema import options_schema
from secateur.config.options import known_options
from secateur.system.quiet import deprecations_unheard
from secateur.system.registry import OTHER_NAMES


@pytest.mark.parametrize(("command", "first", "hidden"), [
    ("prune", "--model --data --eval-data --output", "--ema-relative"),
    ("adapt", "--model --data --eval-data --output", "--k1"),
    ("eval", "--model --against --data --preset", "--num-fewshot"),
    ("plan", "--model --load-in --json", "--output"),
])  # fmt: skip
def test_help_shows_what_most_runs_need_and_names_the_rest(command, first, hidden, capsys) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    listed = [line.split()[0].rstrip(",") for line in text.splitlines() if line.startswith("  --")]
    options = [name for name in listed if name not in ("--debug", "--help-all", "--recipe", "--config")]
    assert options[: len(first.split())] == first.split()
    assert 10 <= len(options) <= 13
    assert hidden not in text
    more = re.search(r"(\d+) more\s+options:\s+secateur", text)
    with pytest.raises(SystemExit):
        main([command, "--help-all"])
    everything = capsys.readouterr().out
    assert f"  {hidden}" in everything
    assert int(more[1]) + len(options) == len(set(known_options(COMMANDS[command].options[0])))


def test_a_flag_that_is_nearly_right_is_suggested_among_all_other_faults(capsys) -> None:
    given = [
        "prune",
        "--model",
        "m",
        "--data",
        "d",
        "--output",
        "o",
        "--step",
        "4",
        "--rank",
        "x",
        "--seed",
        "y",
        "--sparsity",
        "2",
        "odd",
    ]
    assert main(given) == 2
    said = capsys.readouterr().err
    assert "4 faults in the options:" in said
    assert "--sparsity is 2.0: " in said
    assert "unknown option --step. Did you mean '--steps'? See secateur prune --help-all." in said
    assert "--rank is 'x': expected a whole number." in said
    assert "--seed is 'y': expected a whole number." in said
    assert main(["criteria", "lora"]) == 2
    assert "unexpected 'lora'. See secateur criteria --help." in capsys.readouterr().err
    assert main(["--verbose"]) == 2
    assert "give a command: quickstart, prune" in capsys.readouterr().err


def test_what_depends_on_a_value_that_is_wrong_is_not_said(capsys) -> None:
    """A length or a target that is no number is one fault: not, too, that it does not fit, or that there is none."""
    given = ["prune", "--model", "m", "--data", "d", "--output", "o", "--sparsity", "half", "--steps", "many"]
    assert main([*given, "--prune-start", "500", "--lr", "-1"]) == 2
    said = capsys.readouterr().err
    assert "3 faults in the options:" in said, said
    assert "--lr is -1.0" in said
    assert main(["prune"]) == 2
    said = capsys.readouterr().err
    assert [words.split()[1] for words in said.splitlines()[1:4]] == ["--model", "--data", "--output"], said


GIVEN = ["prune", "--model", "m", "--data", "d", "--output", "o"]
MEANT = {
    "--learning-rate 1": "'--lr'", "--max_seq_length 9": "'--seq-len'", "--seq_len 9": "'--seq-len'", 
    "-model m": "'--model'",
    "-o o": "'--output'", "--Sparsity 1": "'--sparsity'", "--no-resum": "'--no-resume'", "--help-al": "'--help-all'",
    "--load-in-8bit": "'--load-in'", "--search-eval 3": "'--search-evaluations'", "--criteria x": "'--criterion'",
    "--conf x": "'--config'",
}  # fmt: skip


@pytest.mark.parametrize("given", MEANT)
def test_the_flag_that_was_meant(given, capsys) -> None:
    assert main([*GIVEN, *given.split()]) == 2
    word = given.split()[0]
    assert f"error: unknown option {word}. Did you mean {MEANT[given]}? See" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["--prompt x", "--version", "--zzz", "--lr-zzz"])
def test_no_flag_is_suggested_where_none_is_near(given, capsys) -> None:
    assert main([*GIVEN, *given.split()]) == 2
    said = capsys.readouterr().err
    assert "Did you mean" not in said
    assert ("It goes without a command: secateur --version." in said) == (given == "--version")


def test_the_names_of_other_tools_are_options_here() -> None:
    known = {
        name.replace("_", "-")
        for command in COMMANDS.values()
        for cls in command.options
        for name in known_options(cls)
    }
    assert set(OTHER_NAMES.values()) <= known


@pytest.mark.parametrize(("given", "words"), [
    ("--resume yes", "--resume takes no value, and is given 'yes': --resume is yes and --no-resume is no."),
    ("--resume=true", "--resume takes no value, and is given 'true': --resume is yes and --no-resume is no."),
    ("--seed 7 --no-shrink 7", "--no-shrink takes no value, and is given '7': --shrink is yes and --no-shrink is no."),
])  # fmt: skip
def test_a_switch_with_a_value(given, words, capsys) -> None:
    assert main([*GIVEN, *given.split()]) == 2
    assert words in capsys.readouterr().err


def test_before_a_command(capsys) -> None:
    assert main(["--hepl"]) == 2
    assert "unknown option --hepl. Did you mean '--help'? give a command: quickstart" in capsys.readouterr().err
    assert main(["--debug", *GIVEN, "--sparsity", "3"]) == 2
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "error: --sparsity is 3.0" in said


def test_singular_and_plural_are_one_option() -> None:
    one = parse(["sample", "--model", "m", "--prompt", "a b"])[1]
    assert one.prompts == parse(["sample", "--model", "m", "--prompts", "a b"])[1].prompts == ("a b",)
    assert parse([*GIVEN, "--unit", "layers"])[1].units == "layers"


@pytest.mark.parametrize(("line", "expected"), [
    ("secateur pru", {"prune"}),
    ("secateur prune --sparsi", {"--sparsity"}),
    ("secateur prune --search-ev", {"--search-evaluations"}),
    ("secateur prune --allocation prot", {"protected"}),
    ("secateur prune --recipe llama-3.2", {"llama-3.2-1b", "llama-3.2-3b"}),
    ("secateur recipes trai", {"training-free"}),
    ("secateur prune --criterion tay", {"taylor", "taylor-accumulated"}),
])  # fmt: skip
def test_shells_complete_commands_options_and_values(line, expected, tmp_path) -> None:
    """As the shells' scripts ask for it; options that `--help` does not show, too."""
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    command = f"{sys.executable} -m secateur 8>{tmp_path / 'answer'} 9>/dev/null"
    subprocess.run(["bash", "-c", command], env=os.environ | asked, check=True)
    assert set((tmp_path / "answer").read_text().split()) == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell, capsys) -> None:
    assert main(["--print-completion", shell]) == 0
    assert "secateur" in capsys.readouterr().out
    assert main(["--print-completion", "fisch"]) == 2
    assert "Did you mean 'fish'?" in capsys.readouterr().err


def test_what_is_offered_is_what_there_is() -> None:
    """The lists that stand in `config`, where no torch is loaded."""
    from secateur.criteria import CRITERIA
    from secateur.evaluation.local_tasks import definitions

    assert set(pruning.CRITERIA) == set(CRITERIA)
    assert set(TASKS) == set(definitions())


@pytest.mark.parametrize("command", PRUNING)
def test_the_schema_takes_recipes_as_they_are_read(command) -> None:
    """YAML 1.1, which PyYAML reads, takes 1e-3 for text; the schema says so of no other text."""
    known = jsonschema.Draft202012Validator(options_schema(command, COMMANDS[command].options))
    for recipe in recipes().values():
        if command in recipe.commands:
            known.validate(yaml.safe_load(recipe.text) | {"recipe": None, "seq-len": 16})
    for wrong in ({"lr": "fast"}, {"lr": "1e-3x"}, {"lr": True}, {"rank": "8.5"}, {"seq-len": []}, {"seq--len": 16}):
        assert command == "compare" or not known.is_valid(wrong), wrong


def test_the_schema_takes_what_the_command_takes(tmp_path, capsys) -> None:
    """A run's own YAML is right by it, and a wrong key, type or word is not."""
    assert main(["schema", "--of", "prune"]) == 0
    known = jsonschema.Draft202012Validator(json.loads(capsys.readouterr().out))
    config = parse(["prune", "--model", "m", "--data", "a", "b", "--output", "o", "--recipe", "best"])[1]
    text = rerun_text("prune", config)
    values = yaml.safe_load(text)
    known.validate(values)
    for wrong in ({"sparsty": 0.5}, {"rank": "x"}, {"allocation": "globe"}, {"options_format": 2}, {"recipe": "beste"}):
        assert not known.is_valid(values | wrong)
    assert main(["schema", "--of", "eval"]) == 0
    assert "recipe" not in json.loads(capsys.readouterr().out)["properties"]  # as the command itself
    (tmp_path / "new.yaml").write_text(text.replace("options_format: 1", "options_format: 2"))
    assert main(["prune", "--config", str(tmp_path / "new.yaml"), "--output", "o"]) == 2
    assert "options_format is 2, this version knows 1: update secateur." in capsys.readouterr().err
    (tmp_path / "tab.yaml").write_text("model:\tm\n\tdata: x\n")
    assert main(["prune", "--config", str(tmp_path / "tab.yaml"), "--output", "o"]) == 2
    assert "tab.yaml: line 1 has a tab, which YAML does not take" in capsys.readouterr().err


def test_deprecations_between_others_are_not_said() -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with deprecations_unheard():
            for module in ("transformers.modeling_utils", "secateur.runs"):
                warnings.warn_explicit(module, FutureWarning, "file.py", 1, module=module)
        warnings.warn_explicit("afterwards", FutureWarning, "file.py", 1, module="transformers.modeling_utils")
    assert [str(warning.message) for warning in heard] == ["secateur.runs", "afterwards"]
