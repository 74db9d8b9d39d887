"""Every kind of result in each form that llama.cpp takes: does it load, and how far off are its predictions?

    python benchmarks/deploy/llama_cpp.py build/deploy/models docs/results/llama-cpp.json --engine PYTHON

PYTHON is that of an environment with llama.cpp's wheels (`make deploy-engines` makes one; `make deploy-test` runs all).
Models that are not there yet are made: four short runs of SmolLM2-135M-Instruct (10 steps of 512 tokens; it is the
format that counts here) and six tiny models of other families with random weights and its tokenizer, some pruned. Cells
that are in the record are not run again. Half an hour on one core.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from secateur.checkpoint.convert import export_config
from secateur.cli import main as secateur
from secateur.config.prune import ExportConfig
from secateur.data.embedded import embedded_model_dir
from secateur.system.errors import SecateurError
from secateur.system.records import environment, write_json

FORMS: dict[str, dict[str, str]] = {
    "f32": {"outtype": "f32"}, "bf16": {"outtype": "bf16"}, "q8_0": {"outtype": "q8_0"},
    "Q4_K_M": {"quantise": "Q4_K_M"},
}  # fmt: skip
SHORT = [
    "--data", "stdlib-docs:train", "--steps", "10", "--batch-size", "1", "--seq-len", "512", "--frequency", "1",
    "--prune-start", "2", "--prune-end", "8", "--eval-tokens", "512", "--criterion", "gate", "--compensate", "lstsq",
]  # fmt: skip
RUNS = {
    "stock 20 %": ["--sparsity", "0.2"],
    "global 30 %": ["--sparsity", "0.3", "--allocation", "global"],
    "global 50 %, heads gone": ["--sparsity", "0.5", "--allocation", "global"],
    "KV groups, alike": ["--sparsity", "0.2", "--attention", "kv_group", "--attention-sparsity", "0.34"],
    "--round-to 256, 20 %": ["--sparsity", "0.2", "--round-to", "256"],
}  # fmt: skip
"""Of the real model -> options of `prune` beside `SHORT`."""
SMALL = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 49152, "max_position_embeddings": 2048,
         "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}  # fmt: skip
TINY: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "Qwen2 tiny, layers differ": ("qwen2", {}, ["--allocation", "global"]),
    "Qwen3 tiny": ("qwen3", {}, []),
    "Qwen3 tiny, layers differ": ("qwen3", {}, ["--allocation", "global"]),
    "Gemma 3 tiny": ("gemma3_text", {"num_hidden_layers": 6, "sliding_window": 64, "query_pre_attn_scalar": 64}, []),
    "GPT-NeoX tiny": ("gpt_neox", {"num_key_value_heads": None, "head_dim": None, "intermediate_size": 512}, []),
    "Mixtral tiny": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}, []),
    "OPT tiny": ("opt", {"ffn_dim": 512, "word_embed_proj_dim": 256}, []),
}
"""Model type, what differs from `SMALL`, and options of `prune` beside `SHORT`."""


def make_real(name: str, folder: Path) -> None:
    """A short run of the real model."""
    code = secateur(["prune", "--model", "smollm2-135m-instruct", *SHORT, *RUNS[name], "--output", str(folder)])
    if code:
        raise SystemExit(f"{name}: prune ended with exit code {code}")


def make_tiny(name: str, folder: Path) -> None:
    """A tiny model of another family, pruned by 25 %; weights wide enough that a wrong one is seen."""
    kind, changes, options = TINY[name]
    values = {key: value for key, value in {**SMALL, **changes}.items() if value is not None}
    dense = folder.with_name(f".{folder.name}.dense")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **values), dtype=torch.float32)
    with torch.no_grad():
        for path, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in path and "bias" not in path else 0.0, 0.08)
    model.save_pretrained(dense)
    for file in embedded_model_dir(None).glob("tokenizer*"):
        shutil.copy(file, dense)
    run = ["prune", "--model", str(dense), *SHORT, "--sparsity", "0.25", "--seq-len", "128", "--eval-tokens", "128"]
    code = secateur([*run, "--dtype", "float32", "--attention", "none", *options, "--output", str(folder)])
    shutil.rmtree(dense)
    if code:
        raise SystemExit(f"{name}: prune ended with exit code {code}")


def cell(model: Path, file: Path, engine: str, form: dict[str, str]) -> dict[str, Any]:
    """One export: what it came to, or why it was refused."""
    started = time.perf_counter()
    options: dict[str, Any] = {"format": "gguf", "engine": engine, "overwrite": True, **form}
    try:
        report = export_config(ExportConfig(model=str(model), output=str(file), **options))
    except SecateurError as error:
        return {"refused": str(error).replace(str(model), model.name), "exit_code": error.exit_code}
    found: dict[str, Any] = asdict(report)  # type: ignore[call-overload]
    del found["folder"]
    return found | {"seconds": time.perf_counter() - started}


def table(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    lines = ["| | " + " | ".join(FORMS) + " |", "|---" * (len(FORMS) + 1) + "|"]
    for name, cells in record["cells"].items():
        words = []
        for form in FORMS:
            found = cells.get(form, {})
            if "refused" in found:
                words.append("refused")
            elif found:
                agreed = found["agreement"]
                words.append(f"{agreed['largest']:.2g} nats, {agreed['top1']:.0%}, {found['bytes'] / 1e6:.1f} MB")
            else:
                words.append("–")
        lines.append(f"| {name} | " + " | ".join(words) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, help="folder of the models; those that are missing are made")
    parser.add_argument("record", type=Path)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--only", default="", help="of the models, those whose name has this in it")
    given = parser.parse_args()
    given.models.mkdir(parents=True, exist_ok=True)
    record = json.loads(given.record.read_text()) if given.record.exists() else {"cells": {}}
    record["environment"] = environment()
    makers: dict[str, Callable[[str, Path], None]] = dict.fromkeys(RUNS, make_real) | dict.fromkeys(TINY, make_tiny)
    for name, make in makers.items():
        if given.only not in name:
            continue
        folder = given.models / name.replace(" ", "-").replace("%", "percent").replace(",", "")
        if not folder.exists():
            make(name, folder)
        for form, options in FORMS.items():
            cells = record["cells"].setdefault(name, {})
            if form not in cells:
                file = given.models / "made.gguf"
                cells[form] = cell(folder, file, given.engine, options)
                file.unlink(missing_ok=True)
                write_json(given.record, record)
                print(name, form, cells[form].get("refused") or cells[form]["agreement"], flush=True)
    print(table(record))


if __name__ == "__main__":
    main()
