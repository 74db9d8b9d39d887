"""The process that makes its imports while the checkpoint is made which it will read."""

import json
import os
from pathlib import Path

import pytest

from secateur.checkpoint import verify

SHOWN = "import json, os, sys; print(json.dumps([os.getpid(), sys.argv[1], __name__, 'marker' in globals()]))"
START, RUN = verify.start_reader, verify.run_python


@pytest.fixture
def started(monkeypatch):
    """Processes that were started to wait, with other imports."""
    found = []

    def start(environment):
        found.append(START(environment))
        return found[-1]

    monkeypatch.setattr(verify, "IMPORTS", "marker = 1\n")
    monkeypatch.setattr(verify, "start_reader", start)
    return found


def test_it_is_asked_once_and_shares_no_names(started) -> None:
    with verify.reader_waits():
        answers = [json.loads(RUN(SHOWN, Path("task"), dict(os.environ)).stdout) for _ in range(2)]
    (waiting,) = started
    assert answers[0] == [waiting.pid, "task", "__main__", False]
    assert answers[1][0] != waiting.pid, "a second one starts from nothing"
    assert answers[1][1:] == ["task", "__main__", False]


def test_a_failure_in_it_is_told(started) -> None:
    with verify.reader_waits():
        done = RUN("raise MemoryError('too large')", Path("task"), {})
    assert done.returncode == 1
    assert done.stderr.strip().endswith("MemoryError: too large")


def test_it_ends_where_nobody_asks(started) -> None:
    with pytest.raises(KeyboardInterrupt), verify.reader_waits():
        raise KeyboardInterrupt
    assert started[0].returncode is not None
    with verify.reader_waits():
        started[1].stdin.close()  # as when this process is killed
        assert started[1].wait(20) == 0
        started[1].stdin = None
    assert not verify._waiting
