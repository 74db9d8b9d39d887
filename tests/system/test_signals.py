"""SIGTERM and SIGINT wherever they come: tidy, with the exit code that a shell expects."""

import os
import signal

import pytest
from tiny import save_tiny
from zygote import run

from secateur.cli import main
from secateur.evaluation import assess
from secateur.runs import prune
from secateur.training import saving, trainer
from secateur.training.checkpoints import find_latest
from tests.cli.test_faults import command

WORDS = "the quick brown fox jumps over the lazy dog while seven wizards box and quarrel about nothing at all. "


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signals")
    save_tiny(folder / "model", layers=1)
    (folder / "text.txt").write_text(WORDS * 60)
    return folder


def sending(owner, name, monkeypatch, *signals, at_call=1):
    """The function of that name first sends this process signals, at one of its calls."""
    real, calls = getattr(owner, name), 0

    def wrapped(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == at_call:
            for number in signals:
                os.kill(os.getpid(), number)
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_while_training_the_step_is_saved(place, tmp_path, capsys, monkeypatch, number, code) -> None:
    sending(trainer.AutocastTrainer, "training_step", monkeypatch, number, at_call=4)
    assert main(command(place, tmp_path / "out")) == code
    assert "stopped after step 4, which is saved. The same command with --resume" in capsys.readouterr().err
    assert find_latest(tmp_path / "out.run")[0].name == "checkpoint-4"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_one_stops_at_once_with_its_own_code(place, tmp_path, capsys, monkeypatch, number, code) -> None:
    sending(trainer.AutocastTrainer, "training_step", monkeypatch, number, number, at_call=3)
    assert main(command(place, tmp_path / "out")) == code
    assert "interrupted; nothing was written" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["load_base", "export_checkpoint"])
def test_outside_training(place, tmp_path, capsys, monkeypatch, name) -> None:
    before = signal.getsignal(signal.SIGTERM)
    sending(prune, name, monkeypatch, signal.SIGTERM)
    assert main(command(place, tmp_path / "out")) == 143
    said = capsys.readouterr().err
    assert "secateur: interrupted; nothing was written to the output folder." in said
    assert "Traceback" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.run"] * (name == "export_checkpoint")
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_handler_of_the_caller_stays(place, tmp_path) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with saving.Interruption(tmp_path):
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_IGN
        assert main(["families"]) == 0
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_record_that_is_written_is_named(place, tmp_path, capsys, monkeypatch, number) -> None:
    real = assess.write_told

    def written(*args):
        real(*args)
        os.kill(os.getpid(), number)

    given = ["eval", "--model", str(place / "model"), "--data", str(place / "text.txt"), "--seq-len", "32"]
    with monkeypatch.context() as patch:
        patch.setattr(assess, "write_told", written)
        assert main([*given, "--max-tokens", "64", "--output", str(tmp_path / "e.json")]) == 128 + number
    said = capsys.readouterr().err
    assert f"secateur: interrupted; the result is complete in {tmp_path / 'e.json'}." in said
    sending(assess, "segment_nlls", monkeypatch, number)
    assert main([*given, "--max-tokens", "64", "--output", str(tmp_path / "f.json")]) == 128 + number
    assert "interrupted; nothing was written" in capsys.readouterr().err


def test_a_hang_up_that_nohup_ignores_stays_ignored(tmp_path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with saving.Interruption(tmp_path):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert main(["families"]) == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


HANG_UP = """
import os, signal, sys
from secateur.cli import main
from secateur.training import saving
real = saving.SavingCallback.on_step_end
def on_step_end(self, args, state, control, **kwargs):
    if state.global_step == 3:
        os.close(ours)  # what the terminal's other end was
    real(self, args, state, control, **kwargs)
saving.SavingCallback.on_step_end = on_step_end
ours, theirs = os.openpty()
os.setsid()
import fcntl, termios
fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
for stream in (0, 1, 2):
    os.dup2(theirs, stream)
os.close(theirs)
sys.exit(main(sys.argv[1:]))
"""


def test_a_terminal_that_goes_away_ends_a_run_with_its_step_saved(place, tmp_path) -> None:
    done = run(*command(place, tmp_path / "out", "--save-steps", "0"), source=HANG_UP)
    assert done.returncode == 128 + signal.SIGHUP
    assert find_latest(tmp_path / "out.run")[0].name == "checkpoint-3"
