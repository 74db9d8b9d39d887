"""The notebook: kept with its outputs, which are small and name no one's folders; `make examples` runs it again."""

import json
import os
import re
import sys
import tempfile
from pathlib import Path

import pytest
from tiny import save_tiny

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


CELLS = (
    """import secateur
result = secateur.prune(model="model", data="text.txt", eval_data="text.txt", output="small", sparsity=0.4, steps=4,
                        batch_size=2, seq_len=32, frequency=1, dtype="float32")""",
    "result",
    "result.plot()",
    """secateur.eval(model="small", against="model", data="text.txt", seq_len=32, dtype="float32")""",
)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("SECATEUR_EXAMPLES"), reason="needs Jupyter: make examples runs it")
def test_results_show_themselves(tmp_path) -> None:
    """A run's steps are lines, no deprecations of others among them; a result is a table, its plot a picture."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    save_tiny(tmp_path / "model", layers=2)
    (tmp_path / "text.txt").write_text("The gardener prunes the tree, and the tree grows back. " * 60, encoding="utf-8")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
    run, shown, plot, found = (cell["outputs"] for cell in notebook["cells"])
    said = "".join(output["text"] for output in run).splitlines()
    assert [line.split("  ")[0] for line in said if line.startswith("step")] in (
        ["step 1/4", "step 4/4"], [f"step {n}/4" for n in range(1, 5)]
    )  # fmt: skip
    assert not [line for line in said if "deprecated" in line]
    assert not re.search("[\x1b\r]", "".join(said))
    (table,) = (output["data"]["text/html"] for output in shown)
    assert [word for word in ("<table>", "Parameters", "Perplexity") if word not in table] == []
    assert [output["data"]["image/png"][:5] for output in plot] == ["iVBOR"]
    (table,) = (output["data"]["text/html"] for output in found if "data" in output)
    assert "<th>small</th><th>model</th>" in table
