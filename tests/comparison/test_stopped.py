"""A comparison that is stopped says how far it came, and what a kill left behind goes."""

import json
import os
import signal

import pytest
from tiny import save_tiny

from secateur.cli import main
from secateur.comparison import cell, command
from secateur.training.checkpoints import find_latest

WORDS = "the quick brown fox jumps over the lazy dog while seven wizards box and quarrel about nothing at all. "


@pytest.fixture
def given(tmp_path, monkeypatch):
    monkeypatch.setattr("secateur.comparison.tables.plot_perplexity", lambda rows, path: None)  # it takes half a cell
    save_tiny(tmp_path / "model", layers=1)
    (tmp_path / "text.txt").write_text(WORDS * 20)
    (tmp_path / "other.txt").write_text(WORDS[::-1] * 20)
    return [
        "compare", "--model", str(tmp_path / "model"), "--data", str(tmp_path / "text.txt"), "--evaluate-on",
        str(tmp_path / "other.txt"), "--output", str(tmp_path / "grid"), "--criterion", "magnitude,gate", "--sparsity",
        "0.3", "--steps", "4", "--batch-size", "2", "--seq-len", "32", "--frequency", "2", "--dtype", "float32",
        "--eval-tokens", "64", "--save-steps", "2", "--baselines", "dense",
    ]  # fmt: skip


def test_what_is_recorded_is_said_and_what_is_left_goes(given, tmp_path, monkeypatch, capsys) -> None:
    real = cell.perplexity

    def dying(*args, **kwargs):
        if (tmp_path / "grid" / "magnitude" / "checkpoint.run").exists():  # all steps of the second cell are done
            raise RuntimeError("died")
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(cell, "perplexity", dying)
        with pytest.raises(RuntimeError, match="died"):
            main(given)
    assert find_latest(tmp_path / "grid" / "magnitude" / "checkpoint.run")[0].name == "checkpoint-4"

    def interrupted(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(command, "write_comparison", interrupted)
        assert main(given) == 143
    said = capsys.readouterr().err
    assert f"interrupted; 2 of 3 cells are recorded in {tmp_path / 'grid'}. The same command goes on from there" in said
    assert main(given) == 0
    with monkeypatch.context() as patch:
        patch.setattr(command, "write_comparison", interrupted)
        assert main(given) == 143
    assert "3 of 3 cells are recorded in" in capsys.readouterr().err
    left = tmp_path / "grid" / "magnitude" / "checkpoint.run"
    assert not left.exists()
    left.mkdir()  # as a kill just after the record would leave it
    assert main(given) == 0
    assert not left.exists()
    lines = (tmp_path / "grid" / "magnitude" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
