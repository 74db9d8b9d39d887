"""The live view fits the terminal it is written to, and nothing in a text can steer that terminal."""

import os
import pty
import re
import subprocess
import sys
import time

import pytest
from terminals import screen_of, terminal
from tqdm import tqdm

from secateur.system.progress import Progress, human_bytes, human_count, human_seconds, phase
from secateur.system.terminal.screen import Above
from secateur.system.terminal.streams import Barless, safe


def update(progress: Progress, step: int, **changed: float) -> None:
    figures = {"seconds_left": 130.0, "loss": 3.2} | changed
    progress.update(
        step, lr=5e-4, state="sparsity 12.4% of 20.0%  121.3M params", tokens_per_s=512.4, **figures
    )  # fmt: skip


@pytest.mark.parametrize(("columns", "lines"), [
    (20, ["step   2/100", "loss 3.200"]),
    (30, ["15━  step   2/100", "loss 3.200"]),
    (60, ["22━  step   2/100  2m10s left  512 tok/s", "loss 3.200  sparsity 12.4% of 20.0%  121.3M params"]),
    (80, ["40━  step   2/100  lr 5.0e-04",
          "loss 3.200  sparsity 12.4% of 20.0%  121.3M params  2m10s left  512 tok/s"]),
    (140, ["38━  step   2/100  loss 3.200  sparsity 12.4% of 20.0%  121.3M params  2m10s left  512 tok/s  lr 5.0e-04"]),
])  # fmt: skip
def test_what_matters_least_goes_where_a_terminal_is_narrow(monkeypatch, columns, lines) -> None:
    """The width is the stream's, not stdout's; what is said stands above the view, no line of which is ever broken."""
    with terminal(monkeypatch, columns) as stream:
        progress = Progress(100, stream=stream)
        update(progress, 1)
        progress.message("cut \x1b]0;title\x07[bold]")
        update(progress, 2)
        progress.close()
        sent = stream.sent()
    assert progress.live
    assert b"\x1b]0" not in sent
    said, *view = screen_of(sent, columns)
    assert said == "cut [bold]"  # no markup either
    assert [re.sub("[━╸╺]+", lambda bar: f"{len(bar[0])}━", line) for line in view] == lines
    assert sent.count(b"\x1b[?25l") == sent.count(b"\x1b[?25h")  # the cursor is back


def test_no_colour_where_the_user_wants_none(monkeypatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    with terminal(monkeypatch, 140) as stream:
        progress = Progress(2, stream=stream)
        update(progress, 1)
        update(progress, 2)
        assert not re.search(rb"\x1b\[[0-9;]*3[0-9]", stream.sent())


def test_a_dumb_terminal_gets_plain_lines(monkeypatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as terminal:
        assert not Progress(10, stream=terminal).live
    os.close(reader)


def test_plain_lines_keep_their_distance_and_cuts_are_always_shown(monkeypatch, tmp_path) -> None:
    now = 0.0
    monkeypatch.setattr("secateur.system.progress.time.monotonic", lambda: now)
    with (tmp_path / "log").open("w+") as stream:
        progress = Progress(100, stream=stream, every_seconds=5.0)
        for step in range(1, 101):
            now = step * 1.0
            update(progress, step)
            if step == 8:
                progress.message("cut after step 8")
        stream.seek(0)
        lines = stream.read().splitlines()
    steps = [int(line.split()[1].split("/")[0]) for line in lines if line.startswith("step")]
    assert steps == [*range(1, 101, 5), 100]
    assert lines[2] == "cut after step 8"


def test_a_long_measurement_says_once_a_minute_how_far_it_is(monkeypatch, tmp_path) -> None:
    """A short one says nothing."""
    now = 0.0
    monkeypatch.setattr("secateur.system.progress.time.monotonic", lambda: now)
    with (tmp_path / "log").open("w+") as stream:
        progress = Progress(10, stream=stream)
        for seconds in (1.0, 25.0):  # a segment
            told = progress.measuring()
            for done in range(1, 9):
                now += seconds
                told(done, 8)
        stream.seek(0)
        lines = stream.read().splitlines()
    assert lines == [
        "measuring perplexity: 3 of 8 segments, 2m05s left",
        "measuring perplexity: 6 of 8 segments, 50s left",
    ]


def test_a_measurement_within_a_run_gives_the_live_line_back(monkeypatch) -> None:
    with terminal(monkeypatch) as stream:
        progress = Progress(100, stream=stream)
        update(progress, 1)
        told = progress.measuring()
        told(1, 2)
        told(2, 2)
        progress.close()
        sent = stream.sent()
    assert b"measuring perplexity  1 of 2 segments" in sent
    assert [line.rpartition("━  ")[2][:12] for line in screen_of(sent)] == ["step   1/100", "loss 3.200  "]


def test_a_phase_is_seen_while_it_lasts(monkeypatch) -> None:
    with terminal(monkeypatch) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with phase("loading"):
            with phase("unpacking"):
                pass
            print("a warning of others", file=sys.stderr)
        sent = stream.sent()
    assert b"loading ..." in sent
    assert b"unpacking ..." in sent
    assert screen_of(sent) == ["a warning of others"]


def test_a_measurement_is_seen_before_its_first_piece(monkeypatch) -> None:
    with terminal(monkeypatch, 100) as stream:
        told = Progress(0, stream=stream).counting("drafting", "prompts")
        told(0, 2)
        time.sleep(0.3)
        told(1, 2)
        told(2, 2)
        sent = stream.sent().decode()
    assert sent.index("0 of 2 prompts") < sent.index("? left") < sent.index("1 of 2 prompts")


def test_what_is_printed_stands_above_the_line_that_lives(monkeypatch) -> None:
    """In one terminal; in a file it is what it would be without."""
    with terminal(monkeypatch, 60) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        out = Above(stream)
        with phase("loading"):
            print("first [red]line[/] \x1b[31mred", file=out)
            print("begun ", end="", file=out)
            out.flush()
            print("and ended\n\nlast", file=out)
        print("after", file=out)
        sent = stream.sent()
    assert screen_of(sent, 60) == ["first [red]line[/] red", "begun and ended", "last", "after"]
    assert b"\x1b[31m" not in sent


def test_bars_of_others_are_left_out(capsys) -> None:
    out = Barless(sys.stderr)
    for _ in tqdm(range(3), file=out, desc="their bar"):
        print("an error of theirs", file=out)
    assert capsys.readouterr().err == "an error of theirs\n" * 3


def test_a_phase_in_a_pipe_says_its_name_once_it_lasts(monkeypatch, capsys) -> None:
    monkeypatch.setattr("secateur.system.progress.SILENT_SECONDS", 0.05)
    with phase("loading"):
        time.sleep(0.2)
    with phase("quick"):
        pass
    monkeypatch.setenv("RANK", "1")
    with phase("of another process"):
        time.sleep(0.2)
    assert capsys.readouterr().err == "loading ...\n"


def test_eight_bit_control_sequences_are_taken_out() -> None:
    assert "\x9b" not in safe("a\x9b31mb")
    assert safe("tab\tand\nline, déjà vu") == "tab\tand\nline, déjà vu"


def test_rounding_reaches_the_next_unit() -> None:
    assert [human_count(n) for n in (999, 999_949, 999_950, 999_999_999)] == ["999", "999.9k", "1.0M", "1.0B"]
    assert [human_bytes(n) for n in (999.7, 999_999_999)] == ["1.0 kB", "1.0 GB"]
    assert human_seconds(59.6) == "1m00s"


def test_an_unknown_time_left_is_shown_as_such(tmp_path) -> None:
    with (tmp_path / "log").open("w+") as stream:
        update(Progress(10, stream=stream), 1, seconds_left=float("inf"), loss=float("nan"))
        stream.seek(0)
        assert "loss nan" in (line := stream.read())
        assert "? left" in line


def test_progress_and_records_load_no_torch() -> None:
    code = "import sys, secateur.system.progress, secateur.system.records; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
