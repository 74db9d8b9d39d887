"""The contract of the imports (pyproject.toml, `make lint`) holds, and it is seen to fail on what it forbids."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINTER = "from importlinter.cli import lint_imports_command; lint_imports_command()"


@pytest.fixture
def copied(tmp_path) -> Path:
    """The package and the contract in a folder of their own, to spoil."""
    shutil.copytree(ROOT / "src" / "secateur", tmp_path / "secateur", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(folder: Path) -> tuple[int, str]:
    """Exit code and words of `lint-imports` where the package is the one in `folder`."""
    command = [sys.executable, "-c", LINTER, "--no-logo", "--no-cache"]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return found.returncode, " ".join((found.stdout + found.stderr).split())


def append(path: Path, line: str) -> int:
    """Number of the line that `line` now is, after all others of the file."""
    text = path.read_text(encoding="utf-8")
    path.write_text(f"{text}{line}\n", encoding="utf-8")
    return text.count("\n") + 1


def test_the_contract_has_no_exceptions() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers, circles = settings["contracts"]
    assert set(layers) == {"name", "type", "containers", "layers", "exhaustive", "exhaustive_ignores"}
    assert layers["exhaustive_ignores"] == ["__main__"]
    assert set(circles) == {"name", "type", "ancestors"}
    packages = {path.parent.name for path in (ROOT / "src" / "secateur").glob("*/__init__.py")}
    assert len(layers["layers"]) == len(packages)
    assert set(layers["layers"]) == packages, "one package a layer, none beside another"


def test_it_holds(copied) -> None:
    code, said = lint(copied)
    assert code == 0, said
    assert "2 kept, 0 broken" in said


def test_a_turned_import_is_named(copied) -> None:
    line = append(copied / "secateur" / "system" / "locks.py", "from ..cli import entry")
    code, said = lint(copied)
    assert code == 1
    assert "secateur.system is not allowed to import secateur.cli" in said
    assert f"secateur.system.locks -> secateur.cli.entry (l.{line})" in said


def test_so_is_one_within_a_function(copied) -> None:
    append(copied / "secateur" / "pruning" / "schedule.py", "def late():\n    from ..training import trainer")
    code, said = lint(copied)
    assert code == 1
    assert "secateur.pruning.schedule -> secateur.training.trainer" in said


def test_a_circle_of_two_modules_is_named(copied) -> None:
    assert "from .locks import" in (copied / "secateur" / "system" / "output.py").read_text(encoding="utf-8")
    append(copied / "secateur" / "system" / "locks.py", "from . import output")
    code, said = lint(copied)
    assert code == 1
    assert "1 kept, 1 broken" in said
    assert "No cycles are allowed in secateur.system." in said
    assert ".output -> .locks" in said or ".locks -> .output" in said  # whichever it would rather have removed


@pytest.mark.parametrize("place", ["loose.py", "novel/__init__.py"])
def test_what_is_outside_the_packages_is_named(copied, place) -> None:
    """A module beside them, a package that is not in the list."""
    path = copied / "secateur" / place
    path.parent.mkdir(exist_ok=True)
    path.touch()
    code, said = lint(copied)
    assert code == 1
    assert f"secateur.{path.parent.name if path.stem == '__init__' else path.stem} (Since this contract" in said
