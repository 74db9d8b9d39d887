"""The memory that a model's recipe says it takes, from `secateur plan`.

`PYTHONPATH=. python -m tests.recipes.memory` writes it into the recipes anew.

A GPU's share of a plan is meant: what it says without the allocator's part, which CPUs alone have.
"""

import json
import re
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from secateur.config.files.recipes import Recipe, recipes
from secateur.config.options import build
from secateur.config.speed import PlanConfig
from secateur.plan.command import plan
from secateur.system.errors import InputError

SHAPES = Path(__file__).parent / "shapes"
DEVICES = {"24 GB": 24e9, "80 GB": 80e9}
CHANGES = (
    {"gradient_checkpointing": True},
    {"gradient_checkpointing": True, "load_in": "8bit"},
    {"gradient_checkpointing": True, "load_in": "4bit"},
)
"""What to change where a recipe does not fit, the least first."""
ENTRY = re.compile(r"# memory: .*\n(?:#   .*\n)*")


@cache
def _planned(name: str, changes: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    options = dict(recipes()[name].options) | {"model": str(SHAPES / name), "dtype": "bfloat16", "device_tflops": 100}
    with tempfile.TemporaryDirectory() as folder:
        plan(build(PlanConfig, options | dict(changes) | {"json": f"{folder}/plan.json"}))
        return json.loads(Path(folder, "plan.json").read_text(encoding="utf-8"))


def planned(recipe: Recipe, **changes: Any) -> dict[str, Any]:
    """The record of a plan of the recipe with its model's shape."""
    return _planned(recipe.name, tuple(changes.items()))


def gpu_bytes(record: dict[str, Any]) -> int:
    """Memory at the peak of a training step on a GPU."""
    return record["memory"]["total"] - record["memory"]["allocator"]


def entry(recipe: Recipe) -> str:
    """The recipe's entry on memory, as lines of a comment."""
    needed = gpu_bytes(planned(recipe))
    lines = [f"# memory: {needed / 1e9:.1f} GB at the peak of a training step (secateur plan, bfloat16, one GPU)"]
    return (
        "\n".join([*lines, *(f"#   {size}: {_advice(recipe, needed, room)}" for size, room in DEVICES.items())]) + "\n"
    )


def _advice(recipe: Recipe, needed: int, room: float) -> str:
    if needed <= room:
        return "fits"
    for changes in CHANGES:
        new = {name: value for name, value in changes.items() if recipe.options.get(name) != value}
        try:
            changed = gpu_bytes(planned(recipe, **new))
        except InputError:
            continue
        if changed <= room:
            words = ", ".join(f"{name}: {str(value).lower()}" for name, value in new.items())
            return f"does not fit; with {words} it takes {changed / 1e9:.1f} GB"
    return "does not fit, and no option of one device makes it"


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "src/secateur/recipes/models")
    for recipe in recipes().values():
        if recipe.of_model:
            text, count = ENTRY.subn(lambda _, recipe=recipe: entry(recipe), recipe.text)  # type: ignore[misc]
            assert count == 1, recipe.name
            (folder / f"{recipe.name}.yaml").write_text(text, encoding="utf-8")
            print(recipe.name, entry(recipe).replace("\n#  ", ";"), end="", flush=True)
