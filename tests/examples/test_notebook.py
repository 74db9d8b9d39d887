"""The notebook: kept with its outputs, which are small and name no one's folders; `make examples` runs it again."""

import json
import os
import re
import sys
import tempfile
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"
COMMANDS = ("plan", "prune", "eval", "sample", "report")


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def printed(cell: dict) -> str:
    return "".join("".join(output.get("text", "")) for output in cell["outputs"])


def check_outputs(notebook: dict) -> None:
    """Every command ran in order and printed what it is about; the pruned model is smaller."""
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell["outputs"] for cell in cells)
    assert not any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
    sources = ["".join(cell["source"]) for cell in cells]
    found = [name for source in sources for name in re.findall(r"^secateur (\w+)", source, re.MULTILINE)]
    assert tuple(found) == COMMANDS
    (loaded,) = [printed(cell) for cell, source in zip(cells, sources, strict=True) if "from_pretrained" in source]
    assert loaded.startswith("LlamaForCausalLM 113,260,608 parameters")


def test_it_is_kept_with_its_outputs() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    check_outputs(json.loads(text))
    assert len(text) < 100_000
    for private in (str(Path.home()), tempfile.gettempdir(), str(NOTEBOOK.parents[1])):
        assert private not in text


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("SECATEUR_EXAMPLES"), reason="takes minutes: make examples runs it")
def test_it_runs(tmp_path, monkeypatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=where).execute()
    check_outputs(notebook)
    assert (tmp_path / "runs" / "quickstart" / "report.html").stat().st_size > 10_000
