"""Help, suggestions, completion and the schema: what people meet before a command runs."""

import json

import jsonschema
import pytest
import yaml

from secateur.cli import main
from secateur.cli.parsing import make_parser, parse
from secateur.config.files.rerun import rerun_text


def test_help_shows_what_most_runs_need_and_names_the_rest(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["prune", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--sparsity" in text
    assert "--model" in text
    assert "--ema-relative" not in text
    assert "more options: secateur prune --help-all" in text


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
        "odd",
    ]
    assert main(given) == 2
    said = capsys.readouterr().err
    assert "3 faults in the options:" in said
    assert "unknown option --step. Did you mean '--steps'? See secateur prune --help-all." in said
    assert "--rank is 'x': expected a whole number." in said
    assert "--seed is 'y': expected a whole number." in said
    assert main(["criteria", "lora"]) == 2
    assert "unexpected 'lora'. See secateur criteria --help." in capsys.readouterr().err
    assert main(["--verbose"]) == 2
    assert "give a command: quickstart, prune" in capsys.readouterr().err


def test_singular_and_plural_are_one_option() -> None:
    one = parse(["sample", "--model", "m", "--prompt", "a b"])[1]
    assert one.prompts == parse(["sample", "--model", "m", "--prompts", "a b"])[1].prompts == ("a b",)


@pytest.mark.parametrize(("line", "expected"), [
    ("secateur pru", {"prune"}),
    ("secateur prune --sparsi", {"--sparsity"}),
    ("secateur prune --allocation prot", {"protected"}),
])  # fmt: skip
def test_shells_complete_commands_options_and_values(line, expected) -> None:
    from argcomplete.completers import SuppressCompleter
    from argcomplete.finders import CompletionFinder

    finder = CompletionFinder(make_parser(), default_completer=SuppressCompleter())
    words = line.split()
    found = finder._get_completions(words[:-1], words[-1], "", None)
    assert {word.strip() for word in found} == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell, capsys) -> None:
    assert main(["--print-completion", shell]) == 0
    assert "secateur" in capsys.readouterr().out
    assert main(["--print-completion", "fisch"]) == 2
    assert "Did you mean 'fish'?" in capsys.readouterr().err


def test_the_schema_takes_what_the_command_takes(tmp_path, capsys) -> None:
    """A run's own YAML is right by it, and a wrong key, type or word is not."""
    assert main(["schema", "--of", "prune"]) == 0
    known = jsonschema.Draft202012Validator(json.loads(capsys.readouterr().out))
    config = parse(["prune", "--model", "m", "--data", "a", "b", "--output", "o", "--recipe", "best"])[1]
    text = rerun_text("prune", config)
    values = yaml.safe_load(text)
    known.validate(values)
    for wrong in ({"sparsty": 0.5}, {"rank": "x"}, {"allocation": "globe"}, {"options_format": 2}):
        assert not known.is_valid(values | wrong)
    (tmp_path / "new.yaml").write_text(text.replace("options_format: 1", "options_format: 2"))
    assert main(["prune", "--config", str(tmp_path / "new.yaml"), "--output", "o"]) == 2
    assert "options_format is 2, this version knows 1: update secateur." in capsys.readouterr().err
    (tmp_path / "tab.yaml").write_text("model:\tm\n\tdata: x\n")
    assert main(["prune", "--config", str(tmp_path / "tab.yaml"), "--output", "o"]) == 2
    assert "tab.yaml: line 1 has a tab, which YAML does not take" in capsys.readouterr().err
