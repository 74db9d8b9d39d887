"""The long suite's points of attack exist: a renamed function must not turn it into a test of nothing."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "reliability" / "reliability.py"


def suite():
    spec = importlib.util.spec_from_file_location("reliability", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SUITE = suite()


@pytest.mark.parametrize("point", list(SUITE.KILLED))
def test_every_patched_function_resolves(point) -> None:
    for where, name, call in SUITE.KILLED[point]:
        assert callable(getattr(SUITE.resolve(where), name))
        assert call >= 1


def test_every_way_is_killed_at_points_that_there_are() -> None:
    assert SUITE.PLAN.keys() == SUITE.WAYS.keys()
    planned = {point.removesuffix(", twice") for points in SUITE.PLAN.values() for point in points}
    assert planned == {*SUITE.KILLED, SUITE.MOMENT, SUITE.CTRL_C}


def test_records_are_compared_without_times_and_places(tmp_path) -> None:
    found = []
    for name, seconds, loss in (("a", 1, 2.0), ("b", 2, 2.0), ("c", 1, 2.5)):
        output = tmp_path / name / "out"
        output.mkdir(parents=True)
        (output / "result.json").write_text(f'{{"total_seconds": {seconds}, "folder": "{output}"}}')
        (output / "metrics.jsonl").write_text(f'{{"seconds": {seconds}, "loss": {loss}}}\n')
        (output / "model.safetensors").write_bytes(b"weights")
        found.append(SUITE.records(output))
    assert found[0] == found[1] != found[2]
