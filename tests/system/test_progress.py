"""The live view fits the terminal it is written to, and nothing in a text can steer that terminal."""

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

from secateur.system.progress import Progress, human_bytes, human_count, human_seconds, safe


def update(progress: Progress, step: int, **changed: float) -> None:
    figures = {"seconds_left": 130.0, "loss": 3.2} | changed
    progress.update(
        step, lr=5e-4, state="sparsity 12.4% of 20.0%  121.3M params", tokens_per_s=512.4, **figures
    )  # fmt: skip


def read_all(reader: int) -> str:
    """Everything a closed terminal was sent; it arrives in pieces, some of them late."""
    pieces = []
    with contextlib.suppress(OSError):  # EIO: the other end is closed and nothing is left
        while piece := os.read(reader, 65536):
            pieces.append(piece)
    os.close(reader)
    return b"".join(pieces).decode()


def test_the_width_is_that_of_the_stream_not_of_stdout(monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("COLUMNS", raising=False)
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 30, 0, 0))
    with os.fdopen(writer, "w") as terminal:
        progress = Progress(100, stream=terminal)
        update(progress, 1)
        progress.event("cut")
        update(progress, 2)
        progress.close()
    text = read_all(reader)
    assert progress.live
    lines = [line for line in text.replace("\r\x1b[K", "\n").split("\n") if line.strip()]
    assert [line.strip()[:12] for line in lines] == ["step   1/100", "cut", "step   1/100", "step   2/100"]
    assert max(len(line.rstrip("\r")) for line in lines) == 29


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
                progress.event("cut after step 8")
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
    monkeypatch.setenv("TERM", "xterm")
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as terminal:
        progress = Progress(100, stream=terminal)
        update(progress, 1)
        told = progress.measuring()
        told(1, 2)
        told(2, 2)
        progress.close()
    lines = [line.strip()[:12] for line in read_all(reader).replace("\r\x1b[K", "\n").split("\n") if line.strip()]
    assert lines == ["step   1/100", "measuring pe", "step   1/100"]


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
