"""Prune or quantise? Perplexity against bytes and against speed, in llama.cpp: the dense model and pruned ones.

    export SECATEUR_DATA=...   # wikitext2_raw_test.txt and c4_eval.jsonl
    python benchmarks/deploy/prune_or_quantise.py docs/results/prune-or-quantise.json --engine PYTHON --work WORK \\
        --plot docs/images/prune-or-quantise.png dense=smollm2-135m-instruct 20=./best-20 35=./best-35 50=./best-50

PYTHON is that of an environment with llama.cpp's wheels (`make deploy-engines`). Each model is written in each form;
perplexity is of the first tokens of each text in segments of 512, speed of all files taking turns, one thread each.
What is in the record is not measured again. About 2 minutes a file on one core with `--tokens 4096`.
"""

import argparse
import json
import os
import subprocess
from math import exp, prod
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from secateur.architecture.gguf import head_of
from secateur.checkpoint.convert import export_config
from secateur.checkpoint.serving.llama_cpp import QUANTISE, run_engine
from secateur.config.formats import QUANTISATIONS
from secateur.config.prune import ExportConfig
from secateur.data.encoding import encode
from secateur.models.source import resolve_model
from secateur.models.tokenizers import load_tokenizer
from secateur.system.records import environment, markdown_table, write_json

FORMS = ("bf16", "q8_0", "Q6_K", "Q4_K_M", "Q3_K_M")
TEXTS = ("wikitext2", "c4")
SEGMENT = 512


def text_of(name: str) -> str:
    """A held-out text."""
    folder = Path(os.environ["SECATEUR_DATA"])
    if name == "wikitext2":
        return (folder / "wikitext2_raw_test.txt").read_text(encoding="utf-8")
    rows = (folder / "c4_eval.jsonl").read_text(encoding="utf-8").splitlines()
    return "\n\n".join(json.loads(row)["text"] for row in rows[:200])


def tensor_bytes(file: Path) -> int:
    """Of the tensors of a file, as its head lists them. Where the embedding is the head too, a token reads them all."""
    head = head_of(file)
    sizes = {name: GGML_QUANT_SIZES[GGMLQuantizationType(kind)] for name, kind in head.kinds.items()}
    return sum(prod(shape) * sizes[name][1] // sizes[name][0] for name, (_, shape) in head.places.items())


def run(engine: str, work: Path, task: dict[str, Any]) -> Any:
    """`read_llama_cpp.py` in the engine's environment."""
    file = work / "task.json"
    file.write_text(json.dumps(task), encoding="utf-8")
    script = Path(__file__).with_name("read_llama_cpp.py")
    done = subprocess.run([engine, str(script), str(file)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.partition("RESULT")[2])


def measured(engine: str, work: Path, file: Path, texts: dict[str, list[list[int]]]) -> dict[str, float]:
    """Perplexity on each text."""
    segments = [segment for each in texts.values() for segment in each]
    sums = run(engine, work, {"files": {"it": str(file)}, "threads": 1, "segments": segments})
    found, start = {}, 0
    for name, each in texts.items():
        part = slice(start, start + len(each))
        found[name] = exp(sum(sums["nll"][part]) / sum(sums["tokens"][part]))
        start += len(each)
    return found


def write(model: str, form: str, file: Path, engine: str, work: Path) -> None:
    """A model's file: in bf16 and q8_0 by `export`, which compares it with transformers, the others of the first."""
    if form in ("bf16", "q8_0"):
        options: dict[str, Any] = {"format": "gguf", "engine": engine, "overwrite": True, "outtype": form}
        export_config(ExportConfig(model=model, output=str(file), **options))
        return
    whole = file.with_name(file.name.replace(form, "bf16"))
    task = {"source": str(whole), "target": str(file), "ftype": QUANTISATIONS[form].ftype, "threads": 1}
    run_engine(engine, QUANTISE, task, work)


def table(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    rows = []
    for name, cell in record["cells"].items():
        speed = record.get("speed", {}).get(name, {})
        shown = (speed.get("prompt_tokens_per_s"), speed.get("new_tokens_per_s"))
        rows.append(
            (name, f"{cell['bytes'] / 1e6:.1f}", *(f"{cell['perplexity'][text]:.2f}" for text in TEXTS),
             *("–" if value is None else f"{value:.1f}" for value in shown))
        )  # fmt: skip
    return markdown_table(rows, header=("", "MB", *TEXTS, "prompt tokens/s", "new tokens/s"))


def plot(record: dict[str, Any], path: Path) -> None:
    """Perplexity against bytes and against generation speed, a line for each model."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(10, 4))
    axes = figure.subplots(1, 2, sharey=True)
    names = dict.fromkeys(name.split()[0] for name in record["cells"])
    for name in names:
        cells = {key: cell for key, cell in record["cells"].items() if key.split()[0] == name}
        loss = [cell["perplexity"][TEXTS[0]] for cell in cells.values()]
        axes[0].plot(
            [cell["bytes"] / 1e6 for cell in cells.values()],
            loss,
            marker="o",
            label=f"{name} % gone" if name.isdigit() else name,
        )
        speeds = [record.get("speed", {}).get(key, {}).get("new_tokens_per_s") for key in cells]
        if None not in speeds:
            axes[1].plot(speeds, loss, marker="o", label=name)
    axes[0].set(xlabel="file, MB", ylabel="perplexity, WikiText-2", yscale="log")
    ticks = [
        tick
        for tick in (10, 15, 20, 30, 40, 60, 80, 120, 200)
        if any(0.7 * tick < cell["perplexity"][TEXTS[0]] < 1.4 * tick for cell in record["cells"].values())
    ]
    axes[0].set_yticks(ticks, [str(tick) for tick in ticks])
    axes[0].yaxis.set_minor_formatter(NullFormatter())
    axes[1].set(xlabel="generated tokens per second")
    axes[0].legend()
    figure.savefig(path, dpi=150, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    parser.add_argument("models", nargs="+", help="NAME=MODEL; the dense one first")
    parser.add_argument("--engine", required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for the files, which stay")
    parser.add_argument("--tokens", type=int, default=8192, help="of each text")
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--repeats", type=int, default=5, help="of the speeds; 0: measure none")
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    models = dict(pair.split("=", 1) for pair in given.models)
    record = json.loads(given.record.read_text()) if given.record.exists() else {"cells": {}}
    record |= {"environment": environment(), "tokens": given.tokens, "segment": SEGMENT}
    tokenizer = load_tokenizer(resolve_model(next(iter(models.values()))))
    ids = {name: encode(tokenizer, text_of(name)[: 12 * given.tokens])[: given.tokens] for name in TEXTS}
    texts = {name: [each[i : i + SEGMENT] for i in range(0, len(each), SEGMENT)] for name, each in ids.items()}
    files = {}
    for model, place in models.items():
        for form in given.forms.split(","):
            name, file = f"{model} {form}", given.work / f"{model}-{form}.gguf"
            files[name] = str(file)
            if name in record["cells"] and file.exists():
                continue
            if not file.exists():
                write(place, form, file, given.engine, given.work)
            found: dict[str, Any] = {"bytes": file.stat().st_size, "tensor_bytes": tensor_bytes(file)}
            found["perplexity"] = measured(given.engine, given.work, file, texts)
            record["cells"][name] = found
            write_json(given.record, record)
            print(name, found, flush=True)
    if given.repeats:
        task = {"files": files, "threads": 1, "prompt": 512, "new": 64, "repeats": given.repeats}
        record["speed"] = run(given.engine, given.work, task)
        write_json(given.record, record)
    print(table(record))
    if given.plot:
        plot(record, given.plot)


if __name__ == "__main__":
    main()
