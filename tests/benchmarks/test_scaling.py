"""The cost of a step against its size: the line is the one that the figures lie on."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "cost"))
import scaling

SIZES = ((1e9, 3e7), (4e9, 5e7), (9e9, 2e8), (3e10, 3e8), (8e10, 4e8))


def rows_of(seconds) -> dict:
    return {
        str(flops): {"flops": flops, "bytes": held, "seconds": {"lora": seconds(flops, held)}} for flops, held in SIZES
    }


def test_the_line_is_that_of_the_figures() -> None:
    fit = scaling.line(rows_of(lambda flops, held: 2e-12 * flops + 1e-10 * held + 0.003), "lora")
    assert fit == pytest.approx({"seconds_per_flop": 2e-12, "seconds_per_byte": 1e-10, "seconds": 0.003}, rel=1e-6)


def test_no_term_is_negative() -> None:
    fit = scaling.line(rows_of(lambda flops, held: 2e-12 * flops - 1e-12 * held), "lora")
    assert fit["seconds_per_byte"] == 0
    assert fit["seconds_per_flop"] == pytest.approx(2e-12, rel=0.05)


def test_it_runs(tmp_path, capsys) -> None:
    scaling.main(["--rounds", "1", "--shapes", "1", "--lengths", "64", "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert list(found["rows"]) == ["2 x 128, 256 tokens", "2 x 128, 64 tokens"]
    assert all(row["seconds"]["lora"] > 0 for row in found["rows"].values())
    short, long = (found["rows"][f"2 x 128, {length} tokens"]["flops"] for length in (64, 256))
    width, layers, tokens = 128, 2, 1024
    # The same tokens in longer sequences: attention's products alone are more, 2 forward and at most 4 backward.
    assert long - short == pytest.approx(2 * tokens * 192 * width * layers * 6, rel=1e-6)
    assert "| 2 x 128, 64 tokens |" in capsys.readouterr().out
