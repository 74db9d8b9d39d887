"""The packages of secateur as a picture, drawn from the import contract in pyproject.toml.

A row is a package, the highest layer first, with a dot under each package that it really imports. The contract allows
dots to the right of the diagonal only: imports point down.
"""

import ast
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "secateur"
ROW, CELL, NAME, TOP, MARGIN = 24, 24, 116, 84, 44


def layers() -> list[str]:
    """The packages in the contract's order, the highest first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (contract,) = [contract for contract in settings["contracts"] if contract["type"] == "layers"]
    names: list[str] = contract["layers"]
    return names


def imported(package: str, known: list[str]) -> set[str]:
    """The other packages that a package's modules import, wherever the statement stands."""
    found = set()
    for path in (PACKAGE / package).rglob("*.py"):
        deep = len(path.relative_to(PACKAGE).parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom):
                continue
            module = node.module or ""
            if node.level == deep:
                found |= {module.split(".")[0]} if module else {alias.name for alias in node.names}
            elif module.startswith("secateur."):
                found.add(module.split(".")[1])
    return (found & set(known)) - {package}


def picture() -> str:
    """The packages as SVG; its colours are the page's, so that it reads in the dark as well."""
    names = layers()
    wide, high = NAME + CELL * len(names), TOP + ROW * len(names)
    said = f"Each package imports only those after it: {', '.join(names)}."
    parts = [f'<svg class="packages" viewBox="0 0 {wide + MARGIN} {high}" role="img" aria-label="{said}">']
    for column, name in enumerate(names):
        place = f"translate({NAME + CELL * (column + 0.5) + 4} {TOP - 6}) rotate(-50)"
        parts.append(f'<text class="faint" font-size="12" transform="{place}">{name}</text>')
    for number, name in enumerate(names):
        top, middle = TOP + ROW * number, TOP + ROW * (number + 0.5) - 1
        parts.append(f'<rect class="row" x="0" y="{top}" width="{wide}" height="{ROW - 3}" rx="3"/>')
        parts.append(f'<text class="name" font-size="13" x="8" y="{middle + 4}">{name}</text>')
        below = imported(name, names)
        for column, other in enumerate(names):
            x = NAME + CELL * (column + 0.5)
            if other == name:
                parts.append(f'<rect class="self" x="{x - 5}" y="{middle - 5}" width="10" height="10"/>')
            elif other in below:
                title = f"<title>{name} imports {other}</title>"
                parts.append(f'<circle class="dot" cx="{x}" cy="{middle}" r="5">{title}</circle>')
    return "\n".join([*parts, "</svg>"])


if __name__ == "__main__":
    print(picture())
