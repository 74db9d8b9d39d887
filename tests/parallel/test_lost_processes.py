"""Two processes of which one hangs, or is told to stop: the other does not wait for ever (gloo)."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from tiny import save_tiny

from secateur.cli import main
from secateur.system.errors import LostProcessError
from secateur.training.checkpoints import fault_of
from tests.parallel.test_distributed import ENVIRONMENT, WORDS
from tests.parallel.test_several_processes import children, command


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lost")
    save_tiny(folder / "model", layers=2)
    (folder / "text.txt").write_text(WORDS * 60)
    return folder


def started(place, output, *more: str) -> subprocess.Popen[str]:
    """A run of 400 steps on two processes, given back once it has a checkpoint."""
    arguments = command(place, output, batch=2, more=("--process-timeout", "3", *more))
    arguments[arguments.index("--steps") + 1] = "400"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = subprocess.Popen(
        [*launcher, "-m", "secateur", *arguments], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not list(output.with_name(output.name + ".run").glob("checkpoint-*/secateur-manifest.json")):
        assert run.poll() is None, run.communicate()[1][-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return run


def test_a_hanging_process_is_given_up(place, tmp_path) -> None:
    run = started(place, tmp_path / "out")
    hanging = max(children(run.pid))
    os.kill(hanging, signal.SIGSTOP)
    patience = threading.Timer(60, os.kill, (hanging, signal.SIGKILL))
    patience.start()
    try:
        said = ""
        assert run.stderr is not None
        while "process 0 of 2 stops" not in said:
            said = run.stderr.readline()
            assert said, "the run ended without a word on it"
        assert patience.is_alive(), "only its death was noticed"
        assert "did not answer for --process-timeout 3 s" in said
        assert "--resume goes on from checkpoint-" in said
    finally:
        patience.cancel()
        os.kill(hanging, signal.SIGKILL)
        run.communicate(timeout=60)
    assert run.returncode != 0


def test_a_signal_to_one_process_stops_all_after_the_same_step(place, tmp_path) -> None:
    run = started(place, tmp_path / "out")
    os.kill(max(children(run.pid)), signal.SIGTERM)
    _, said = run.communicate(timeout=60)
    assert run.returncode != 0
    steps = {
        line.split("stopped after step ")[1].split(",")[0] for line in said.splitlines() if "stopped after" in line
    }
    assert len(steps) == 1, said[-2000:]
    assert fault_of(tmp_path / "out.run" / f"checkpoint-{steps.pop()}") is None


def test_a_process_lost_while_one_shot_scores_is_named(place, tmp_path, monkeypatch, capsys) -> None:
    """Scoring comes before Trainer, which is watched already."""

    def lost(*args: object) -> None:
        raise RuntimeError("Connection closed by peer [127.0.0.1]")

    monkeypatch.setattr("secateur.training.contact.processes", lambda: 2)
    monkeypatch.setattr("secateur.runs.prune.score_and_cut", lost)
    code = main(command(place, tmp_path / "out", batch=2, more=("--schedule", "one-shot")))
    assert code == LostProcessError.exit_code
    assert "process 0 of 2 stops: another one ended, or did not answer" in capsys.readouterr().err


def test_a_launchers_signal_does_not_cut_short_what_a_survivor_says(tmp_path) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from secateur.system.errors import LostProcessError, SecateurError
from secateur.training.saving import Interruption

for error in (LostProcessError, SecateurError):
    try:
        with Interruption(Path("out")):
            raise error("lost")
    except SecateurError:
        os.kill(os.getpid(), signal.SIGTERM)
        print(f"spoke after {error.__name__}", flush=True)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
"""
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.stdout.split("\n") == ["spoke after LostProcessError", ""]
    assert done.returncode == -signal.SIGTERM, "any other error leaves the signal to end the process"
