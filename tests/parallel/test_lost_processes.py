"""Two processes of which one hangs, or is told to stop: the other does not wait for ever (gloo)."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from tiny import save_tiny
from zygote import launch, run, runner_process

from secateur.cli import main
from secateur.system.errors import LostProcessError
from secateur.training.checkpoints import fault_of
from tests.parallel.test_distributed import WORDS
from tests.parallel.test_several_processes import children, command


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lost")
    save_tiny(folder / "model", layers=2)
    (folder / "text.txt").write_text(WORDS * 60)
    return folder


class Run:
    """A run of 400 steps on two processes, which has a checkpoint when this is made."""

    def __init__(self, place, output, *more: str) -> None:
        arguments = command(place, output, batch=2, more=("--process-timeout", "3", *more))
        arguments[arguments.index("--steps") + 1] = "400"
        self.thread = threading.Thread(target=self._launch, args=("-m", "secateur", *arguments))
        self.thread.start()
        deadline = time.monotonic() + 120
        while not list(output.with_name(output.name + ".run").glob("checkpoint-*/secateur-manifest.json")):
            assert self.thread.is_alive(), self.done.stderr[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        self.ranks = sorted(children(runner_process()))

    def _launch(self, *arguments: str) -> None:
        self.done = launch(2, *arguments)

    def ended(self):
        """What it printed, and its exit code."""
        self.thread.join(60)
        return self.done


def test_a_hanging_process_is_given_up(place, tmp_path) -> None:
    started = Run(place, tmp_path / "out")
    waiting, hanging = started.ranks
    os.kill(hanging, signal.SIGSTOP)
    try:
        deadline = time.monotonic() + 60
        while Path(f"/proc/{waiting}").exists():
            assert time.monotonic() < deadline, "it waits for ever"
            time.sleep(0.05)
    finally:
        os.kill(hanging, signal.SIGKILL)  # it was there until now
    said = started.ended().stderr
    assert "process 0 of 2 stops" in said
    assert "did not answer for --process-timeout 3 s" in said
    assert "--resume goes on from checkpoint-" in said
    assert started.done.returncode == LostProcessError.exit_code


def test_a_signal_to_one_process_stops_all_after_the_same_step(place, tmp_path) -> None:
    started = Run(place, tmp_path / "out")
    os.kill(started.ranks[1], signal.SIGTERM)
    said = started.ended().stderr
    assert started.done.returncode != 0
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
    done = run(source=program)
    assert done.stdout.split("\n") == ["spoke after LostProcessError", ""]
    assert done.returncode == -signal.SIGTERM, "any other error leaves the signal to end the process"
