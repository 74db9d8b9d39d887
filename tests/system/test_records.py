"""Records are written whole or not at all, and read by any JSON reader."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from secateur.system import records
from secateur.system.finished import results
from secateur.system.progress import Progress, human_bytes, human_count, human_seconds
from secateur.system.records import MetricsLog, environment, markdown_table, write_json
from secateur.system.terminal.streams import safe


def shown(stream, steps=(1, 2, 50), **options):
    progress = Progress(50, stream=stream, **options)
    for step in steps:
        progress.update(
            step, loss=3.2, lr=5e-4, state="sparsity 12.4% of 20.0%  121.3M params", tokens_per_s=512.4,
            seconds_left=130,
        )  # fmt: skip
    return stream.getvalue()


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})

    def fails(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records.os, "fsync", fails)
    with pytest.raises(OSError, match="No space"):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_strict(tmp_path) -> None:
    write_json(tmp_path / "x.json", {"nan": float("nan"), "path": tmp_path, "pair": (1, 2)})
    strict = json.loads((tmp_path / "x.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert strict == {"nan": None, "path": str(tmp_path), "pair": [1, 2]}


def test_metrics_are_on_disk_at_once(tmp_path) -> None:
    log = MetricsLog(tmp_path / "m.jsonl")
    log.append({"step": 1, "loss": float("inf")})
    assert [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()] == [{"step": 1, "loss": None}]
    log.close()


def test_environment_names_versions_and_hardware() -> None:
    found = environment()
    assert found["versions"]["torch"].startswith("2.")
    assert found["memory_bytes"] > 1e9
    assert found["cpu"]


def test_plain_lines_outside_a_terminal() -> None:
    text = shown(io.StringIO(), every_seconds=1e9)
    assert text.count("\n") == 2  # the first step and the last
    assert "step  1/50  loss 3.200  sparsity 12.4% of 20.0%  121.3M params  512 tok/s  2m10s left" in text
    assert "\x1b" not in text


def test_control_sequences_in_text_are_taken_out() -> None:
    assert safe("a\x1b[31mb\x1b]0;title\x07c\x00d\r") == "abcd"


def test_human_units() -> None:
    assert human_count(134_515_008) == "134.5M"
    assert human_bytes(269_060_552) == "269.1 MB"
    assert [human_seconds(s) for s in (5, 130, 7300)] == ["5s", "2m10s", "2h01m"]


def test_a_value_that_json_lacks_leaves_the_old_file(tmp_path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(path, {"a": 2, "b": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_the_metrics_file_is_closed_after_a_failure(tmp_path) -> None:
    log = MetricsLog(tmp_path / "m.jsonl")
    with pytest.raises(TypeError, match="not JSON serializable"), log:
        log.append({"step": object()})
    with pytest.raises(ValueError, match="closed file"):
        log.append({"step": 2})


def test_markdown_table_survives_a_bar_in_a_cell() -> None:
    table = markdown_table([("a|b", "1"), ("c\nd", "2")], header=("name", "n"))
    assert table == "| name | n |\n|---|---:|\n| a\\|b | 1 |\n| c d | 2 |"


@pytest.mark.parametrize(("place", "found"), [("src/secateur", True), (".venv/site-packages/secateur", False)])
def test_the_commit_is_that_of_our_own_checkout(tmp_path, place, found) -> None:
    """A user's project that holds a virtual environment is a checkout too, but not one of secateur."""
    folder = tmp_path / place
    shutil.copytree(Path(records.__file__).parents[1], folder)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    code = "from secateur.system.records import commit; print(commit())"
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path,
        env={"PYTHONPATH": str(folder.parent), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    # The copied sources are not in that commit, which the plus sign says.
    assert child.stdout.strip() == (head + "+" if found else "None")


def test_what_a_killed_writer_of_a_result_left_goes(tmp_path) -> None:
    for name in (".out.json.a1b2_c3d", ".out.json.lock", ".other.json.a1b2_c3d"):
        (tmp_path / name).write_text("half")
    write_json(tmp_path / "out.json", {"a": 1}, result=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.json.a1b2_c3d", "out.json"]
    assert results()[-1] == tmp_path / "out.json"
    (tmp_path / "out.json").unlink()
    assert tmp_path / "out.json" not in results()
