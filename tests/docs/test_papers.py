"""docs/papers.md maps equations to functions: every function, module and flag that it names is there."""

import importlib
import re
from pathlib import Path

import pytest

from secateur.config.adapt import AdaptConfig
from secateur.config.options import known_options
from secateur.config.prune import PruneConfig

ROOT = Path(__file__).parents[2]
ROWS = [
    line for line in (ROOT / "docs" / "papers.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")
][1:]
FLAGS = {"--" + name.replace("_", "-") for cls in (PruneConfig, AdaptConfig) for name in known_options(cls)}


def places(row: str) -> list[str]:
    """What the third column names, and whatever any column names as `file.py` or `file.py: function`."""
    columns = [column.strip() for column in row.strip("|").split(" | ")]
    third = re.findall(r"`([^`]+)`", columns[2])
    return [*third, *(found for found in re.findall(r"`([^`]+)`", row) if ".py" in found and found not in third)]


def resolves(place: str) -> bool:
    if place.startswith("--"):
        return place.split()[0] in FLAGS
    path, _, names = place.partition(": ")
    if path.startswith("tests/"):
        text = (ROOT / path).read_text(encoding="utf-8")
        return not names or f"def {names}(" in text
    if not (ROOT / "src" / "secateur" / path).is_file():
        return False
    found = importlib.import_module("secateur." + path.removesuffix(".py").replace("/", "."))
    for name in filter(None, names.split(".")):
        found = getattr(found, name, None)
    return found is not None


@pytest.mark.parametrize("row", ROWS, ids=[row.strip("| ")[:30] for row in ROWS])
def test_what_a_row_names_is_there(row) -> None:
    assert places(row)
    assert [place for place in places(row) if not resolves(place)] == []


def test_what_is_not_there_is_noticed() -> None:
    assert len(ROWS) > 20
    for wrong in (
        "architecture/units.py: _kv_groups",
        "nowhere.py",
        "--no-such-flag",
        "tests/pruning/test_pruner.py: test_nothing",
        "_bare",
    ):
        assert not resolves(wrong)
    assert resolves("pruning/pruner.py: Pruner.observe")
