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


@pytest.mark.parametrize("point", list(suite().POINTS))
def test_every_patched_function_resolves(point) -> None:
    where, name, call = suite().POINTS[point]
    assert callable(getattr(suite().resolve(where), name))
    assert call >= 1
