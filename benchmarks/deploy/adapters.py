"""Adapters whose layers have ranks and scalings of their own, in servers' readers: do they compute what PEFT does?

    python benchmarks/deploy/adapters.py docs/results/deploy-adapters.json --work DIR --vllm PYTHON --llama-cpp PYTHON

A short run of `secateur adapt --allocation global --rslora` on SmolLM2-135M-Instruct makes one, and `secateur export
--format adapter` its other forms (`make deploy-test` makes the environments). vLLM is given the adapter as it is and
that of one rank; the log-probabilities of 4 x 32 tokens are held against PEFT's with the adapter as it is, as
`matrix.py` does it (fewer, since each position is a prompt of its own). llama.cpp is what the export itself starts.
Some minutes on one core.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from matrix import compared, run, token_ids

from secateur.checkpoint.convert import export_config
from secateur.config.prune import ExportConfig
from secateur.models.adapter import load_adapter, read_adapter
from secateur.models.loading import load_model
from secateur.models.source import resolve_model
from secateur.system.records import environment, write_json

MODEL = "smollm2-135m-instruct"
TOKENS = 32
"""Of each text."""
COMMAND = [
    "--data", "stdlib-docs:train", "--steps", "20", "--batch-size", "1", "--seq-len", "256", "--init-rank", "16",
    "--rank", "6", "--prune-start", "4", "--prune-end", "16", "--frequency", "4", "--allocation", "global", "--rslora",
    "--alpha", "8", "--lr", "2e-3", "--eval-tokens", "512",
]  # fmt: skip


def logits(folder: Path | None, ids: list[list[int]]) -> list[torch.Tensor]:
    """(tokens, vocabulary) log-probabilities of each text by PEFT; None: without an adapter."""
    base = load_model(resolve_model(MODEL), dtype="float32")
    model = load_adapter(base, str(folder)) if folder else base
    with torch.inference_mode():
        return [model.eval()(torch.tensor([text]), use_cache=False).logits[0].log_softmax(-1) for text in ids]


def in_vllm(python: str, adapter: Path, ids: list[list[int]], work: Path) -> tuple[str, dict[str, Any]]:
    """vLLM's version, and what it finds with an adapter."""
    rank = max(read_adapter(str(adapter)).ranks)
    job = {"folder": resolve_model(MODEL).path, "dtype": "float32", "ids": ids, "adapter": str(adapter), "rank": rank}
    answer = run(python, "read_vllm.py", [job], work)
    return answer["reader"], answer["found"][0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--vllm", required=True)
    parser.add_argument("--llama-cpp", required=True)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    own, baked = given.work.absolute() / "own", given.work.absolute() / "one-rank"
    if not own.is_dir():
        command = [sys.executable, "-m", "secateur", "adapt", "--model", MODEL, *COMMAND, "--output", str(own)]
        subprocess.run(command, check=True)
    words = export_config(ExportConfig(model=str(own), output=str(baked), format="adapter", overwrite=True))
    print(words, flush=True)
    ids = [text[:TOKENS] for text in token_ids(Path(resolve_model(MODEL).path))]
    expected = logits(own, ids)
    base = logits(None, ids)
    moved = max(float((a - b).abs().max()) for a, b in zip(base, expected, strict=True))
    again = max(float((a - b).abs().max()) for a, b in zip(logits(baked, ids), expected, strict=True))
    cells = [{"reader": "PEFT", "adapter": "one rank", "loads": True, "largest_difference": again}]
    for name, adapter in (("as trained", own), ("one rank", baked)):
        reader, found = in_vllm(given.vllm, adapter, ids, given.work)
        texts = found.pop("texts", None)
        cells.append({"reader": reader, "adapter": name, **found, **(compared(expected, texts) if texts else {})})
    file = given.work / "adapter.gguf"
    options = ExportConfig(
        model=str(own), output=str(file), format="adapter", engine=given.llama_cpp, overwrite=True
    )  # fmt: skip
    said = str(export_config(options))
    print(said, flush=True)
    moves, off = (float(number) for number in re.findall(r"([\d.e-]+) nats", said))
    cells.append({"reader": "llama.cpp", "adapter": "GGUF", "loads": True, "kl": off, "kl_of_the_adapter": moves})
    record = {
        "environment": environment(), "command": COMMAND, "ranks": read_adapter(str(own)).ranks,
        "adapter_moves": moved, "cells": cells,
    }  # fmt: skip
    write_json(given.record, record)
    print(json.dumps(cells, indent=1))


if __name__ == "__main__":
    main()
