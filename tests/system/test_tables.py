"""Tables in pipes and in terminals of any width: all of every cell is there, as it is, and steers nothing."""

import os
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from terminals import screen_of, terminal

from secateur.cli import main
from secateur.config.files.recipes import recipes_text
from secateur.system.progress import phase
from secateur.system.terminal.streams import Escaping, Heard, on_one_line, safe
from secateur.system.terminal.tables import Table, Words, console_of, drawn, prose, tell

TABLE = Table(
    ("model", "parameters", "perplexity"),
    [("smollm2-135m-instruct", "134,515,008", "31.20 ± 0.22"), ("a/small/one", "115,000,000", "36.2 ± 0.3")],
)
PIECES = st.sampled_from(
    ["\x1b[31m", "\x1b]0;title\x07", "\x1b", "\x9b31m", "\u202e", "\u2066", "\u2028", "\n", "\t", "\r", "[red]", "[/]",
     "[bold", ":smile:", "\\", "name", "1,234", "模型", "\ud800", " ", "x" * 30]
)  # fmt: skip
CELLS = st.lists(PIECES, min_size=1, max_size=5).map("".join)


class Sent:
    """A terminal that remembers what it was sent."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        text.encode()  # as a stream does
        self.text += text

    def flush(self) -> None:
        pass


def shown(words: Words, columns: int) -> list[str]:
    """What a terminal of so many columns shows."""
    sent = Sent()
    console = console_of(sent, columns)
    for block in words.blocks:
        for part in drawn(block, columns) if isinstance(block, Table) else prose(block):
            console.print(part)
    return screen_of(sent.text.replace("\n", "\r\n").encode(), columns, sent.text.count("\n") + 1)


def test_a_pipe_gets_aligned_text() -> None:
    assert str(TABLE).split("\n") == [
        "model                   parameters    perplexity",
        "smollm2-135m-instruct  134,515,008  31.20 ± 0.22",
        "a/small/one            115,000,000    36.2 ± 0.3",
    ]
    assert Words("a", TABLE) == f"a\n{TABLE}"
    assert str(Table(("", ""), [("weights", "2 MB")])) == "weights  2 MB"  # no header that says nothing


@pytest.mark.parametrize(("columns", "lines"), [
    (80, ["model                   parameters    perplexity",
          "─" * 48,
          "smollm2-135m-instruct  134,515,008  31.20 ± 0.22",
          "a/small/one            115,000,000    36.2 ± 0.3"]),
    (44, ["model               parameters    perplexity",
              "─" * 44,
              "smollm2-135m-inst  134,515,008  31.20 ± 0.22", "ruct",
              "a/small/one        115,000,000    36.2 ± 0.3"]),
    (24, ["model:", "smollm2-135m-instruct", "  parameters:", "  134,515,008", "  perplexity: 31.20 ±", "  0.22",
          "model: a/small/one", "  parameters:", "  115,000,000", "  perplexity: 36.2 ± 0.3"]),
])  # fmt: skip
def test_words_fold_and_then_rows_become_blocks(columns, lines) -> None:
    assert shown(Words(TABLE), columns) == lines


def test_a_name_is_not_broken_while_there_are_words_to_fold() -> None:
    rows = [("gemma4_unified_text", "heads and channels", "no heads: " + "layers of several sizes, " * 9)] * 2
    lines = shown(Words(Table(("family", "units", "to know"), rows, "lll")), 60)
    assert [line.split()[0] for line in lines if line and not line.startswith((" ", "─"))] == [
        "family", "gemma4_unified_text", "gemma4_unified_text",
    ]  # fmt: skip


@settings(max_examples=int(os.environ.get("SECATEUR_FUZZ", "60")), deadline=None, derandomize=True, database=None)
@given(header=st.tuples(CELLS, CELLS), rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=3),
       columns=st.integers(2, 90), align=st.sampled_from(["", "ll"]))  # fmt: skip
def test_nothing_of_a_cell_is_lost_or_obeyed(header, rows, columns, align) -> None:
    """In a pipe a row is a line; in a terminal of any width each cell can be read, and no more than is in it."""
    table = Table(header, rows, align)
    plain = str(table)
    assert len(plain.split("\n")) == len(rows) + bool(table.head)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", plain)

    def bare(text: str) -> str:
        return re.sub(r"[\s─]", "", text)

    def kept(cell: str) -> str:
        return bare(on_one_line(cell))

    lines = shown(Words(table), columns)
    for first, second in rows:
        assert all(kept(cell) in bare(plain) for cell in (first, second))
    if sum(table.widths) + 2 <= columns:  # nothing is folded
        assert [bare(line) for line in lines if bare(line)] == [
            words for line in table.lines if (words := bare("".join(line)))
        ]
    letters = sorted(bare("".join(lines)))
    wanted = sorted("".join(kept(cell) for row in rows for cell in row))
    assert not [letter for letter in set(wanted) if letters.count(letter) < wanted.count(letter)]


def test_words_are_drawn_in_a_terminal_alone(monkeypatch, capsys) -> None:
    words = Words("Sizes:", "", TABLE, "warning: [red]that[/] is \x1b[31mso\u202e")
    tell(words)
    piped = capsys.readouterr().out
    with terminal(monkeypatch, 60) as stream:
        monkeypatch.setattr(sys, "stdout", Escaping(stream))
        tell(words)
        tell("plain words, however long they are, are left as they are: a command to copy must not be cut")
        sent = stream.sent()
    assert piped == f"{words}\n"
    lines = screen_of(sent, 60)
    assert lines[3].split() == ["smollm2-135m-instruct", "134,515,008", "31.20", "±", "0.22"]
    assert lines[5] == r"warning: [red]that[/] is so\u202e"
    assert b"\x1b[33mwarning" in sent
    assert re.search(rb"Sizes:\S*\r\n\r\n", sent)  # the empty line
    assert b"\x1b[31m" not in sent
    assert b"as they are: a command to copy must not be cut\r\n" in sent


def test_no_colour_where_none_is_wanted_and_none_in_a_dumb_terminal(monkeypatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    with terminal(monkeypatch, 60) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        tell(Words("warning: a", TABLE))
        sent = stream.sent()
    assert b"warning" in sent
    assert not re.search(rb"\x1b\[[0-9;]*3[0-9]", sent)
    with terminal(monkeypatch, 60) as stream:
        monkeypatch.setenv("TERM", "dumb")
        monkeypatch.setattr(sys, "stdout", stream)
        tell(Words("warning: a", TABLE))
        assert b"\x1b" not in stream.sent()


def test_recipes_are_a_table_in_a_terminal_and_lines_in_a_pipe() -> None:
    words = recipes_text(())
    assert isinstance(words, Words)
    assert max(map(len, words.splitlines())) <= 110
    lines = shown(words, 100)
    assert " ".join(lines[0].split()) == "recipe what it is, and what was measured of it of loads"
    assert max(map(len, lines)) <= 100


def test_a_name_stays_on_its_line() -> None:
    assert on_one_line("a\nb\tc\u2028d\x1b[2J") == r"a\nb\tc\u2028d"
    assert safe("to \u202egpj.exe\u202c") == r"to \u202egpj.exe\u202c"
    with phase("loading a\nsecateur: error: no"):  # a live line would break, too
        pass


def test_what_a_stream_cannot_say_is_named(tmp_path) -> None:
    with (tmp_path / "log").open("w", encoding="ascii") as stream:
        assert Heard(stream).write("Σ \udcff") == 3
    assert (tmp_path / "log").read_text() == r"\u03a3 \udcff"


@pytest.mark.parametrize("command", ["recipes", "schema", "prune --help-all", "--print-completion bash"])
def test_a_reader_who_has_read_enough_is_no_error(command) -> None:
    """`| head -1`; and a disk that is full is one, in words of ours."""
    line = f"{sys.executable} -m secateur {command}"
    script = f"{line} | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}; {line} >/dev/full; echo $?; {line} >&-; echo $?"
    ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert ran.stdout.split() == ["0", "2", "0"]
    assert ran.stderr == (
        "secateur: error: standard output: No space left on device: what was to be printed is lost. Check what it is "
        "sent to.\n"
    )


def test_an_error_that_cannot_be_said_has_its_exit_code(monkeypatch) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert main(["prnue"]) == 2
    monkeypatch.setattr(sys, "stderr", None)  # pythonw, and 2>&-
    assert main(["prnue"]) == 2
