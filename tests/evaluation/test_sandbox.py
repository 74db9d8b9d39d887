"""Code that a model wrote cannot harm, and cannot pass by ending its process."""

import socket
from pathlib import Path

import pytest

from secateur.evaluation.sandbox import run_untrusted
from secateur.system.errors import InputError


def test_right_and_wrong_solutions() -> None:
    assert run_untrusted("from math import gcd\nassert gcd(4, 6) == 2").passed
    failed = run_untrusted("assert 1 + 1 == 3")
    assert (failed.passed, failed.reason) == (False, "AssertionError")
    assert run_untrusted("def f(:").reason == "SyntaxError"
    assert run_untrusted("print('noise')\nimport sys\nsys.stderr.write('more')").passed


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("while True: pass", "timed out"),
        ("import time\ntime.sleep(60)", "timed out"),
        ("x = bytearray(3 << 30)", "MemoryError"),
        ("exit()", "NameError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("import os\nos._exit(0)", "stopped"),
        ("import os\nos.write(1, b'isolated\\n\\n')\nos._exit(0)", "stopped"),
        ("import os\nos.kill(os.getpid(), 9)", "stopped"),
        ("import numpy", "ModuleNotFoundError"),
        ("input()", "EOFError"),
    ],
)
def test_what_does_not_pass(code: str, reason: str) -> None:
    outcome = run_untrusted(code, seconds=2)
    assert (outcome.passed, outcome.reason) == (False, reason)


def test_nothing_is_written_and_the_environment_stays_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "precious"
    target.write_text("precious")
    outcome = run_untrusted(f"f = open({str(target)!r}, 'r+')\nf.write('gone')\nf.flush()")
    assert not outcome.passed
    assert target.read_text() == "precious"
    outcome = run_untrusted(f"import os\nos.remove({str(target)!r})")
    if outcome.isolated:
        assert (outcome.passed, outcome.reason) == (False, "OSError")
        assert target.read_text() == "precious"
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    assert run_untrusted("import os\nassert 'SECRET_TOKEN' not in os.environ").passed


def test_limits_cannot_be_raised() -> None:
    outcome = run_untrusted(
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))"
    )
    if not outcome.isolated:
        pytest.skip("this platform has no namespaces")
    assert (outcome.passed, outcome.reason) == (False, "ValueError")


def test_the_network_is_cut() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        outcome = run_untrusted(f"import socket\nsocket.create_connection(('127.0.0.1', {server.getsockname()[1]}))")
    if not outcome.isolated:
        pytest.skip("this platform has no namespaces")
    assert (outcome.passed, outcome.reason) == (False, "OSError")


def test_what_it_started_ends_with_it(tmp_path: Path) -> None:
    import time

    code = "import os, time\nif os.fork() == 0:\n    time.sleep(30)"
    started = time.monotonic()
    run_untrusted(code, seconds=3)
    assert time.monotonic() - started < 20


def test_a_process_that_got_away_holds_up_nothing(tmp_path: Path) -> None:
    """It leaves the group and keeps the pipe: the verdict counts all the same."""
    import time

    script = "import os, time\ntry:\n    child = os.fork()\nexcept OSError:\n    child = 1\n"
    script += "if child == 0:\n    os.setsid()\n    time.sleep(4)\n    os._exit(0)"
    started = time.monotonic()
    assert run_untrusted(script, seconds=3).passed
    assert time.monotonic() - started < 3


def test_an_endless_verdict_is_none() -> None:
    outcome = run_untrusted("import os\nwhile True:\n    for n in range(3, 9):\n        try: os.write(n, b'x' * 9999)\n"
                            "        except OSError: pass", seconds=1)  # fmt: skip
    assert not outcome.passed


def test_nothing_further_is_started() -> None:
    import os

    if os.getuid() == 0:
        pytest.skip("the superuser's processes are not limited in number")
    assert run_untrusted("import os\nos.fork()").reason == "BlockingIOError"


def test_a_platform_without_limits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.evaluation.sandbox.find_spec", lambda name: None)
    with pytest.raises(InputError, match="no limits"):
        run_untrusted("pass")
