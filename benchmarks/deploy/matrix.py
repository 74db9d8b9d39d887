"""Which readers take which results, and whether they compute the same: each cell is run, in the reader's own process.

    make deploy-test    # the environments, then all of it; an hour or two on one core
    python benchmarks/deploy/matrix.py --work DIR --readers {vllm,transformers-4,onnxruntime,llama-cpp}/bin/python

The results are made where DIR lacks them (a minute or two each for the real model). Compared are the largest 20
log-probabilities that the reader gives at each position of 4 x 96 tokens (`stdlib-docs:held-out`) with those of
secateur's own reading in float32 (of quantised ones that of transformers), and the likeliest token. int4 is read in
bfloat16. llama.cpp gets a
file by `secateur export --outtype f32` and `q8_0`, and its own quantiser makes the other forms of the first; compared
are all tokens of 1e-4 or more on a paragraph of English. The record,
`docs/results/deploy.json`, is a list of cells: result, reader, precision, loads, class or reason, largest difference,
top-1 agreement, positions. Cells of other readers stay, and those of other results.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from results import place, results
from transformers import AutoConfig, AutoModelForCausalLM

from secateur.architecture.config_faults import values_in
from secateur.architecture.stock import LAYERS_KEY, STOCK_TYPE_KEY
from secateur.checkpoint.comparing import logits_of
from secateur.checkpoint.convert import export_config
from secateur.checkpoint.probe import default_probe
from secateur.checkpoint.serving.engines import serving
from secateur.checkpoint.serving.gguf_file import read_back
from secateur.checkpoint.serving.llama_cpp import QUANTISE, run_engine
from secateur.config.formats import LAYERED, QUANTISATIONS, QUANTISED, STOCK, VLLM
from secateur.config.prune import ExportConfig
from secateur.data.tokens import evaluation_tokens
from secateur.models.loading import load_config, load_model
from secateur.models.source import ModelSource
from secateur.models.tokenizers import load_tokenizer
from secateur.system.errors import SecateurError
from secateur.system.records import write_json

RECORD = Path(__file__).parents[2] / "docs" / "results" / "deploy.json"
TEXTS, TOKENS = 4, 96
LLAMA_CPP = {"f32": None, "bf16": 32, "q8_0": None, "Q4_K_M": QUANTISATIONS["Q4_K_M"].ftype}
"""Its precisions -> what its quantiser calls them (llama.h); None: what `export --outtype` writes."""


def token_ids(folder: Path) -> list[list[int]]:
    """The same text for every result."""
    tokenizer = load_tokenizer(ModelSource(str(folder), str(folder)))
    ids = evaluation_tokens("stdlib-docs:held-out", tokenizer, max_tokens=TEXTS * TOKENS)[0].tolist()
    return [ids[start : start + TOKENS] for start in range(0, TEXTS * TOKENS, TOKENS)]


def expected(folder: Path, texts: list[list[int]]) -> list[torch.Tensor]:
    """(tokens, vocabulary) log-probabilities of each text, by secateur's own reading of a folder."""
    if values_in(folder).get("quantization_config"):
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    else:
        model = load_model(ModelSource(str(folder), str(folder)), dtype="float32").eval()
    with torch.inference_mode():
        return [model(torch.tensor([ids]), use_cache=False).logits[0].float().log_softmax(-1) for ids in texts]


def reader_of(python: Path) -> str:
    """The script for what an environment has installed; "" for llama.cpp, which `export` starts."""
    there = {path.name for path in python.parent.parent.glob("lib/*/site-packages/*")}
    engines = {"vllm": "read_vllm.py", "onnxruntime_genai": "read_onnxruntime.py", "cyllama": ""}
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


def in_llama_cpp(job: dict[str, Any], engine: str, work: Path) -> dict[str, dict[str, Any]]:
    """A result as a file of each form: what llama.cpp predicts, or why it was refused."""
    folder, whole = Path(job["folder"]), work / "made-f32.gguf"
    reports: dict[str, Any] = {}
    options: dict[str, Any] = {"model": str(folder), "format": "gguf", "engine": engine, "overwrite": True}
    try:
        for form in (form for form, ftype in LLAMA_CPP.items() if ftype is None):
            written = ExportConfig(output=str(work / f"made-{form}.gguf"), outtype=form, **options)
            reports[form] = export_config(written)
    except SecateurError as error:
        reason = str(error).replace(str(folder), folder.name)
        return {form: {"loads": False, "reason": reason} for form in LLAMA_CPP}
    source = ModelSource(str(folder), str(folder))
    tokenizer = load_tokenizer(source)
    ids = default_probe(tokenizer, load_config(source).vocab_size)
    wanted = logits_of(load_model(source, dtype="float32"), ids)
    cells, file = {}, work / "made.gguf"
    for form, ftype in LLAMA_CPP.items():
        report = reports.get(form, reports["f32"])
        found, size = report.agreement, report.bytes
        if ftype is not None:
            task = {"source": str(whole), "target": str(file), "ftype": ftype, "threads": 1}
            run_engine(engine, QUANTISE, task, work)
            found, size = read_back(engine, file, ids, wanted, tokenizer, work, folder.name)[0], file.stat().st_size
        cells[form] = {
            "loads": True, "class": report.architecture, "largest_difference": found.largest, "kl": found.kl,
            "top_1": found.top1, "positions": report.tokens, "bytes": size,
        }  # fmt: skip
    return cells


def in_process(job: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """What a reader's process said of a result, compared."""
    texts = found.pop("texts", None)
    if "reason" in found:  # whose words may name where the result lies
        found["reason"] = found["reason"].replace(job["folder"], Path(job["folder"]).name)
    kept = {key: job[key] for key in ("model_type", "format", "model_impl", "gone") if key in job}
    return kept | found | (compared(torch.load(job["whole"]), texts) if texts else {})


def cells_of(python: str, jobs: list[dict[str, Any]], dtype: str, timed: int, work: Path) -> Iterator[dict[str, Any]]:
    """A reader's cells, one after the other."""
    script = reader_of(Path(python))
    if script:
        wanted = [{"dtype": dtype, **job, "whole": None, "timed": timed} for job in jobs]
        with TemporaryDirectory(dir=work) as files:
            answer = run(python, script, wanted, Path(files))
        for job, found in zip(jobs, answer["found"], strict=False):  # fewer where it was killed
            base = {"result": job["name"], "reader": answer["reader"], "dtype": job.get("dtype", dtype)}
            yield base | in_process(job, found)
        return
    command = [python, "-c", "from importlib.metadata import version; print(version('cyllama'))"]
    reader = f"llama.cpp (cyllama {subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()})"
    for job in jobs:
        with TemporaryDirectory(dir=work) as files:
            found = in_llama_cpp(job, python, Path(files))
        for form, cell in found.items():
            yield {"result": job["name"], "reader": reader, "dtype": form, **in_process(job, cell)}


def kept(cells: list[dict[str, Any]], new: dict[str, Any]) -> list[dict[str, Any]]:
    """The record with a new cell, in the place of the one that it measures again."""
    keys = ("reader", "dtype", "result")
    stay = [cell for cell in cells if any(cell[key] != new[key] for key in keys)]
    return sorted([*stay, new], key=lambda cell: tuple(cell[key] for key in keys))


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


def jobs_of(given: argparse.Namespace) -> list[dict[str, Any]]:
    """The results, made where they are missing, and what is expected of each."""
    jobs = []
    for name, make in results(more=given.more).items():
        folder = place(name, given.work.absolute())
        if given.only and name not in given.only:
            continue
        if not folder.is_dir():
            print(f"{name}: making it", flush=True)
            make(folder)
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        form = VLLM if STOCK_TYPE_KEY in values else LAYERED if LAYERS_KEY in values else STOCK
        form = QUANTISED if "quantization_config" in values else form
        job: dict[str, Any] = {
            "name": name,
            "model_type": values.get(STOCK_TYPE_KEY, values["model_type"]),
            "format": form,
        }
        if name.endswith("int4"):
            job["dtype"] = "bfloat16"  # vLLM's kernel for CPUs has no other
        if form == STOCK and "--model-impl" in str(serving(folder, AutoConfig.for_model(**values), form)):
            job["model_impl"] = "transformers"
        if not all(all(size.values()) for size in values.get(LAYERS_KEY, ())):
            job["gone"] = True  # attention or FFNs of some layers
        job |= {"folder": str(folder), "ids": token_ids(folder), "whole": f"{folder}.pt"}
        if not Path(job["whole"]).is_file():
            torch.save(expected(folder, job["ids"]), job["whole"])
        jobs.append(job)
    return jobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("deploy-results"))
    parser.add_argument("--readers", nargs="+", default=[], help="Python of each environment")
    parser.add_argument("--only", nargs="+", help="results, such as 'global, 30 %%'")
    parser.add_argument("--more", action="store_true", help="random models of ten other families, too")
    parser.add_argument("--dtype", default="float32", help="of all readers but llama.cpp; int4 is read in bfloat16")
    parser.add_argument("--timed", type=int, default=0, help="of vLLM: generate so many times")
    parser.add_argument("--record", type=Path, default=RECORD)
    parser.add_argument("--others", action="store_true", help="only the readers given, not this environment's")
    parser.add_argument("--table", action="store_true", help="print the record, and run nothing")
    given = parser.parse_args()
    cells = json.loads(given.record.read_text(encoding="utf-8")) if given.record.is_file() else []
    if given.table:
        print(table(cells))
        return
    given.work.mkdir(parents=True, exist_ok=True)
    jobs = jobs_of(given)
    for python in [*([] if given.others else [sys.executable]), *given.readers]:
        for cell in cells_of(python, jobs, given.dtype, given.timed, given.work):
            print(json.dumps(cell), flush=True)
            cells = kept(cells, cell)
            write_json(given.record, cells)
    print(table(cells))


if __name__ == "__main__":
    main()
