"""The house rules on size, and the face of each package: what it lists is there."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "secateur"
PACKAGES = sorted(path.parent for path in SOURCE.glob("*/__init__.py"))
MODULES = sorted(SOURCE.rglob("*.py"))
WIDEST = 16
LONGEST_MODULE, LONGEST_FUNCTION = 300, 60
LONGER = {
    "plan/footprint.py: training_footprint": (77, "sixteen arguments, each with its sentence, and twelve figures"),
    "checkpoint/streaming.py: export_streamed": (80, "fifteen options, most of which its docstring explains"),
    "plan/command.py: plan": (79, "one record, whose parts stand in the order in which they are printed"),
}
"""What is longer all the same -> its limit in lines, and why it is better in one piece."""


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name (with its class's) and lines of every function of a module, its docstring's and decorators' too."""

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, int]]:
        for child in ast.iter_child_nodes(node):
            name = prefix
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{prefix}{child.name}."
                if not isinstance(child, ast.ClassDef):
                    first = min([child.lineno, *(each.lineno for each in child.decorator_list)])
                    assert child.end_lineno is not None
                    yield name.removesuffix("."), child.end_lineno - first + 1
            yield from walk(child, name)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), "")


def sizes() -> dict[str, tuple[int, int]]:
    """`package/module.py` and `package/module.py: Class.function` -> lines, and the house's limit."""
    found = {}
    for path in MODULES:
        place = path.relative_to(SOURCE).as_posix()
        found[place] = len(path.read_text(encoding="utf-8").splitlines()), LONGEST_MODULE
        found |= {f"{place}: {name}": (lines, LONGEST_FUNCTION) for name, lines in functions(path)}
    return found


def test_modules_and_functions_are_of_a_size_to_read() -> None:
    found = sizes()
    assert len(found) > 1000, "the house is larger than what was looked at"
    too_long = {place: lines for place, (lines, limit) in found.items() if lines > LONGER.get(place, (limit,))[0]}
    assert not too_long, "split it by what it knows, or say in LONGER why it is better in one piece"
    needless = [place for place in LONGER if place not in found or found[place][0] <= found[place][1]]
    assert not needless, "no exception any more"


def test_functions_are_found_wherever_they_are(tmp_path) -> None:
    path = tmp_path / "a.py"
    path.write_text("class A:\n  @property\n  def b(self):\n    def c():\n      pass\n\nif 1:\n  async def d(): ...\n")
    assert dict(functions(path)) == {"A.b": 4, "A.b.c": 2, "d": 1}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_packages(package) -> None:
    """No folder too wide to see, and a face: `__all__` lists what others may import, and it is there."""
    modules = [path for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    assert 2 < len(modules) <= WIDEST + 1  # `__init__` too
    face = importlib.import_module(f"secateur.{package.name}")
    assert face.__doc__
    assert isinstance(face.__all__, list)  # a package that only commands use has none
    assert len(set(face.__all__)) == len(face.__all__)
    for name in face.__all__:
        assert getattr(face, name) is not None
        assert not name.startswith("_")


def test_the_library_has_a_face_too() -> None:
    import secateur

    assert [name for name in secateur.__all__ if not hasattr(secateur, name)] == []


ACCELERATORS = r"torch\.(cuda|mps|xpu|accelerator)\b|\.is_cuda\b|\bget_device_module\b|\.backends\.(cuda|mps)\b"


def test_one_module_asks_for_accelerators() -> None:
    """All others are told a device, or follow the tensors that they have: what works on one kind works on any."""
    home = SOURCE / "system" / "machine" / "devices.py"
    assert re.search(ACCELERATORS, home.read_text(encoding="utf-8"))
    asking = [path for path in MODULES if path != home and re.search(ACCELERATORS, path.read_text(encoding="utf-8"))]
    assert asking == []
