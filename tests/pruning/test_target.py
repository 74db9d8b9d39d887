"""A size in parameters or bytes is reached like a sparsity, or refused with what can be reached."""

import json
import re

import pytest
from safetensors import safe_open
from tiny import save_tiny

from secateur.cli import main
from secateur.comparison.grid import build_comparison
from secateur.config.options import build
from secateur.config.prune import PruneConfig
from secateur.config.sizes import parse_bytes, parse_count
from secateur.system.errors import InputError

WORDS = "the quick brown fox jumps over the lazy dog while seven wizards box and quarrel about nothing at all. "
GIVEN = {"model": "m", "data": ("d",), "output": "o"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("target")
    save_tiny(folder / "model", layers=3, heads=8, kv_heads=4, ffn=256, tied=True)
    (folder / "text.txt").write_text(WORDS * 60)
    return folder


def options(place, *more):
    return [
        "--model", str(place / "model"), "--seq-len", "32", "--batch-size", "2", "--dtype", "float32", *more,
    ]  # fmt: skip


def planned(place, tmp_path, *more):
    assert main(["plan", *options(place, *more), "--json", str(tmp_path / "plan.json")]) == 0
    return json.loads((tmp_path / "plan.json").read_text())


@pytest.mark.parametrize("allocation", ["uniform", "protected", "global"])
@pytest.mark.parametrize(
    ("target", "wanted"), [(("--target-params", "150k"), 150_000), (("--target-bytes", "0.56MB"), 140_000)]
)
def test_the_written_checkpoint_has_the_size(place, tmp_path, capsys, allocation, target, wanted) -> None:
    more = [*target, "--allocation", allocation]
    plan = planned(place, tmp_path, *more)
    run = ["prune", *options(place, *more), "--data", str(place / "text.txt"), "--output", str(tmp_path / "out")]
    assert main([*run, "--steps", "6", "--frequency", "2"]) == 0
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        written = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    tolerance = max(0.005 * plan["prunable_parameters"], 3 * 192)  # a channel of each of the three layers
    assert abs(written - wanted) <= tolerance
    assert abs(plan["after"]["parameters"] - written) <= (192 * 3 if allocation == "global" else 0)
    printed = capsys.readouterr()
    assert f"({target[0]} {target[1]}: " in printed.err
    assert f"asked for {target[0]} {target[1]}: {written:,} parameters" in printed.out
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["target"]["parameters"] == wanted
    assert result["config"]["sparsity"] is None


def test_a_target_of_a_size_is_the_same_run_as_its_sparsity(place, tmp_path) -> None:
    by_size = planned(place, tmp_path, "--target-params", "120000")
    by_sparsity = planned(
        place, tmp_path, "--sparsity", str((by_size["before"]["parameters"] - 120_000) / by_size["prunable_parameters"])
    )
    assert by_size["after"] == by_sparsity["after"]


@pytest.mark.parametrize(
    ("more", "wording"),
    [
        (("--target-params", "10k"), r"-params 10k is not reachable with --allocation uniform: at least (\d+) param"),
        (("--target-bytes", "50kB"), r"-bytes 50kB is not reachable with --allocation uniform: at least (\d+B) \("),
        (("--target-params", "10k", "--round-to", "64"), r"-params 10k is not reachable .*: at least (\d+) param"),
        (("--target-params", "10k", "--allocation", "global", "--floor", "0.1"), r"floor of 0.1: at least (\d+) param"),
        (("--target-params", "1M"), r"1M is not below the dense model's own size, \d+ parameters .*: give less"),
    ],
)  # fmt: skip
def test_unreachable_sizes_name_what_is_reachable(place, tmp_path, capsys, more, wording) -> None:
    assert main(["plan", *options(place, *more)]) == 2
    found = re.search(wording, capsys.readouterr().err)
    assert found
    if found.groups():
        reached = planned(place, tmp_path, more[0], found[1], *more[2:])["after"]
        assert str(reached["parameters"]) == found[1] or f"{reached['bytes']}B" == found[1]


def test_coarse_units_name_both_neighbours(tmp_path, capsys) -> None:
    save_tiny(tmp_path / "model", layers=2, ffn=24)
    more = ["--attention", "none", "--target-params", "44160"]
    assert main(["plan", *options(tmp_path, *more)]) == 2
    found = re.search(r"uniform: (\d+) param.* and (\d+) param.* are the nearest", capsys.readouterr().err)
    assert found
    assert int(found[1]) < 44_160 < int(found[2])
    for size in found.groups():
        more[-1] = size
        assert str(planned(tmp_path, tmp_path, *more)["after"]["parameters"]) == size


def test_one_target_only() -> None:
    assert build(PruneConfig, GIVEN).sparsity == 0.2
    assert build(PruneConfig, {**GIVEN, "target_params": "80M"}).sparsity is None
    with pytest.raises(InputError, match=r"--sparsity 0.2 and --target-params 80M each say how small .* leave all but"):
        build(PruneConfig, {**GIVEN, "sparsity": 0.2, "target_params": "80M"})
    with pytest.raises(InputError, match="--target-params 80M and --target-bytes 1GB each say"):
        build(PruneConfig, {**GIVEN, "target_bytes": "1GB", "target_params": "80M"})
    with pytest.raises(InputError, match=r"(?s)--target-params is 'few': give a number.*--target-bytes is '7': give a"):
        build(PruneConfig, {**GIVEN, "target_bytes": "7", "target_params": "few"})


def test_a_cell_of_a_comparison_may_have_another_kind_of_target() -> None:
    given = {**GIVEN, "evaluate_on": ("e",), "sparsity": "0.2,0.5", "cells": ("small: target_params=80M",)}
    cells = build_comparison(given).cells
    assert cells[-1].config.target_params == "80M"
    assert cells[-1].config.sparsity is None


def test_sizes_in_words(tmp_path) -> None:
    assert parse_bytes("24GB", "--x") == 24_000_000_000
    assert parse_bytes("1.5 GiB", "--x") == 3 * 2**29
    assert parse_bytes("80KiB", "--x") == parse_bytes("80kiB", "--x") == 80 * 2**10
    with pytest.raises(InputError, match="--x is 'much': give a number with a unit"):
        parse_bytes("much", "--x")
    assert [parse_count(words, "--x") for words in ("80M", "1.3B", "70k", "123", 123)] == [
        80_000_000, 1_300_000_000, 70_000, 123, 123,
    ]  # fmt: skip
    with pytest.raises(InputError, match="--x is '80MB': give a number, such as 80M"):
        parse_count("80MB", "--x")
    (tmp_path / "run.yaml").write_text("target_params: 80000000\n")
    assert build(PruneConfig, GIVEN, str(tmp_path / "run.yaml")).target_params == 80_000_000
