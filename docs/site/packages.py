"""The packages of secateur as a picture, drawn from the import contract in pyproject.toml.

A row is a package, the highest layer first, with what it knows (the first line of its docstring) and a dot under each
package that it really imports. The contract allows dots to the right of the diagonal only: imports point down.
"""

import ast
import re
import tomllib
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "secateur"
ROW, CELL, NAME, WORDS, TOP = 30, 20, 104, 560, 96


def layers() -> list[str]:
    """The packages in the contract's order, the highest first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (contract,) = [contract for contract in contracts if contract["type"] == "layers"]
    return contract["layers"]


def knows(package: str) -> str:
    """What a package says of itself: its docstring's first sentence."""
    tree = ast.parse((PACKAGE / package / "__init__.py").read_text(encoding="utf-8"))
    words = " ".join((ast.get_docstring(tree) or "").split("\n\n")[0].split())
    return re.split(r"(?<=[.;])\s", words)[0].rstrip(".;").replace("`", "")


def imported(package: str, known: list[str]) -> set[str]:
    """The other packages that a package's modules import, wherever the statement stands."""
    found = set()
    for path in (PACKAGE / package).rglob("*.py"):
        deep = len(path.relative_to(PACKAGE).parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == deep:
                found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("secateur."):
                found.add((node.module or "").split(".")[1])
    return (found & set(known)) - {package}


def picture() -> str:
    """The packages as SVG; its colours are the page's, so that it reads in the dark as well."""
    names = layers()
    left = NAME + WORDS
    width, height = left + CELL * len(names) + 8, TOP + ROW * len(names) + 4
    parts = [f'<svg class="packages" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(summary())}">']
    for column, name in enumerate(names):
        x = left + CELL * (column + 0.5)
        parts.append(
            f'<text class="faint" font-size="12" transform="translate({x + 4} {TOP - 8}) rotate(-60)">{name}</text>'
        )
    for number, name in enumerate(names):
        top = TOP + ROW * number
        middle = top + ROW / 2
        parts.append(f'<rect class="row" x="0" y="{top + 1}" width="{width}" height="{ROW - 3}" rx="3"/>')
        parts.append(f'<text class="name" font-size="14" x="10" y="{middle + 4}">{name}</text>')
        parts.append(f'<text font-size="13" x="{NAME}" y="{middle + 4}">{escape(shortened(knows(name)))}</text>')
        below = imported(name, names)
        for column, other in enumerate(names):
            x = left + CELL * (column + 0.5)
            if other == name:
                parts.append(f'<rect class="self" x="{x - 5}" y="{middle - 6}" width="10" height="10"/>')
            elif other in below:
                said = f"<title>{name} imports {other}</title>"
                parts.append(f'<circle class="dot" cx="{x}" cy="{middle - 1}" r="5">{said}</circle>')
    return "\n".join([*parts, "</svg>"])


def summary() -> str:
    return "The packages, the highest layer first: " + ", ".join(layers()) + ". Each imports only those after it."


def shortened(words: str, length: int = 84) -> str:
    return words if len(words) <= length else words[: words.rfind(" ", 0, length - 2)] + " …"


if __name__ == "__main__":
    print(picture())
