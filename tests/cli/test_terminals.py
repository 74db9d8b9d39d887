"""Every command that prints tables: to a terminal of 20 columns, to a pipe that no one reads any more, any name."""

import json
import os
import re
import sys

import pytest
from terminals import screen_of, terminal
from tiny import save_tiny
from zygote import read_back

from secateur.cli import main
from tests.cli.test_faults import command

WORDS = "the quick brown fox jumps over the lazy dog while seven wizards box and quarrel about nothing at all. "
NAME = "[red]a[/] \u202emodel\x1b[31m"
"""Of a folder: markup, writing from the right, a control sequence."""
SHOWN = r"[red]a[/] \u202emodel"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("terminals")
    save_tiny(folder / NAME, layers=2)
    save_tiny(folder / "model", layers=2)
    (folder / "text.txt").write_text(WORDS * 60)
    return folder


def commands(place, output):
    one, other, text = str(place / NAME), str(place / "model"), str(place / "text.txt")
    short = ["--seq-len", "16", "--dtype", "float32"]
    return {
        "families": ["families"],
        "criteria": ["criteria"],
        "recipes": ["recipes"],
        "plan": ["plan", "--model", one, "--sparsity", "0.2", "--device-tflops", "1"],
        "eval": ["eval", "--model", one, "--against", other, "--data", text, *short],
        "bench": ["bench", "--model", one, "--against", other, "--no-memory", "--repeats", "1", "--batch-sizes", "1",
                  "--decode-tokens", "1", *short],
        "compare": ["compare", "--model", one, "--data", text, "--evaluate-on", text, "--criterion", "gate",
                    "--sparsity", "0.3", "--steps", "2", "--batch-size", "2", "--frequency", "1", "--rank", "2",
                    "--output", str(output), *short],
    }  # fmt: skip


NAMES = ["families", "criteria", "recipes", "plan", "eval", "bench", "compare"]


@pytest.mark.parametrize("name", NAMES)
def test_everywhere(place, tmp_path, monkeypatch, capsys, name) -> None:
    """The same words in a pipe and in 20 columns, where nothing is lost; a pipe that is closed ends no command."""
    arguments = commands(place, tmp_path / "out")[name]
    if name == "compare":
        assert main(arguments) == 0  # then it is done, and says the same each time
    capsys.readouterr()
    assert main(arguments) == 0
    piped = capsys.readouterr().out
    with terminal(monkeypatch, 20) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(arguments) == 0
        sent = stream.sent()
    narrow = "".join(screen_of(sent, 20, 2000)).replace(" ", "")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as closed:  # at its end it writes what is left, as Python does
        monkeypatch.setattr(sys, "stdout", closed)
        assert main(arguments) == 0
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", piped)
    assert b"\x1b[31m" not in sent
    if name in ("plan", "eval", "bench"):
        assert SHOWN in piped
        assert SHOWN.replace(" ", "") in narrow
    if name not in ("recipes", "bench"):  # the one says it otherwise, the other has measured anew
        assert not [word for word in piped.split() if word not in narrow]


def test_a_run_says_what_it_is_at_and_goes_on_when_no_one_reads_any_more(place, tmp_path, monkeypatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as closed, terminal(monkeypatch, 100) as stream:
        monkeypatch.setattr(sys, "stdout", closed)
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr("secateur.checkpoint.verify.run_python", read_back)
        short = ["--steps", "2", "--frequency", "1", "--save-steps", "0", "--eval-data", str(place / "text.txt")]
        assert main(command(place, tmp_path / "out", *short)) == 0
        monkeypatch.undo()
        sent = stream.sent().decode()
    assert json.loads((tmp_path / "out" / "result.json").read_text())["status"] == "done"
    seen = [sent.find(words) for words in (
        "starting ...", "checking the run ...", "reading and tokenising the training data ...", "loading ",
        "measuring perplexity", "adding LoRA ...", "step 0/2", "cutting ...", "step 2/2",
        "merging, slicing and writing the result ...", "reading the result back in a fresh process ...",
        "timing a forward pass ...", "hashing the weights ...", "drawing the report ...",
    )]  # fmt: skip
    assert -1 not in seen
    assert seen == sorted(seen)
    assert sent.count("\x1b[?25l") == sent.count("\x1b[?25h")


def test_an_error_in_a_terminal(monkeypatch, tmp_path) -> None:
    """Its first words stand out; a name in it is written as it is, and makes no line that looks like ours."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "[red]x\\u001b[31m\\nsecateur: error: of a name"}')
    with terminal(monkeypatch, 80) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        assert main(["plan", "--model", str(tmp_path / "model"), "--sparsity", "0.2"]) == 2
        sent = stream.sent()
    assert b"\x1b[1;31msecateur: error:\x1b[0m" in sent
    lines = screen_of(sent)
    assert "[red]x" in "".join(lines)
    assert [line.startswith("secateur: error:") for line in lines].count(True) == 1
