"""What `matrix.py` has read: pruned results of real models, and of small random models of other families."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from transformers import AutoConfig

from secateur.architecture.discovery import find_units
from secateur.architecture.experts import unstack_experts
from secateur.architecture.families import FAMILIES
from secateur.architecture.layered import stock_class_of
from secateur.checkpoint.export import build_small, save_model
from secateur.data.embedded import embedded_model_dir
from secateur.models.surgery import merged_and_sliced

SMOLLM = "smollm2-135m-instruct"
COMMAND = [
    "--data", "stdlib-docs:train", "--schedule", "one-shot", "--criterion", "gate", "--compensate", "lstsq", "--steps",
    "4", "--batch-size", "1", "--seq-len", "128", "--eval-tokens", "256", "--lr", "2e-4",
]  # fmt: skip
QUICKSTART = "quickstart's (uniform, 20 %)"
ROUNDED = "uniform, 20 %, --round-to 256"
REAL = {
    QUICKSTART: ["--sparsity", "0.2", "--attention", "none"],
    "global, 30 %": ["--sparsity", "0.3", "--allocation", "global"],
    "global, 50 %, heads gone": ["--sparsity", "0.5", "--allocation", "global"],
    "uniform, KV groups gone": ["--sparsity", "0.3", "--attention-sparsity", "0.3333"],
    ROUNDED: ["--sparsity", "0.2", "--attention", "none", "--round-to", "256"],
}
"""Results of SmolLM2-135M-Instruct -> options. Four steps: asked is who reads them, not how good they are."""
GEMMA = "Gemma 3 270M (uniform, 20 %)"
"""Of the file that `$SECATEUR_GEMMA` names (docs/results/families.md says where it is from); left out without it."""
SIZES = {
    "vocab_size": 49152, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 2,
}  # fmt: skip
"""The vocabulary is SmolLM2's, whose tokenizer goes beside: llama.cpp reads no other kind."""
BLOCKS = "tiny llama, blocks gone"
SCALED = "tiny llama, rotation as in Llama 3, layers differ"
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
GONE = {(0, "attention_block"), (1, "ffn_block"), (2, "attention_block"), (2, "ffn_block")}
"""Of `BLOCKS`: (layer, kind)."""
DECILM_TYPES = ("llama", "mistral", "qwen2")
ALL_HEADS = {"num_key_value_heads": None, "head_dim": None}
SOME_EXPERTS = {"num_experts_per_tok": 2, "num_experts": 4, "moe_intermediate_size": 64, "decoder_sparse_step": 1}
TINY: dict[str, dict[str, object]] = {
    "llama": {},
    "qwen2": {"head_dim": None},
    "qwen3": {},
    "gemma3_text": {"query_pre_attn_scalar": 64, "sliding_window": 64, "num_hidden_layers": 6},
    "gpt_neox": {**ALL_HEADS, "rotary_pct": 0.25},
    "mixtral": {"num_experts_per_tok": 2, "num_local_experts": 4, "sliding_window": None},
}
"""Model type -> what its configuration is given beside `SIZES` (None: left out)."""
MORE: dict[str, dict[str, object]] = {
    "mistral": {"sliding_window": None},
    "granite": {"head_dim": None},
    "smollm3": {"head_dim": None},
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 32, "sliding_window": 64},
    "phi3": {"sliding_window": None},
    "phi": {"partial_rotary_factor": 0.5},
    "olmo": {},
    "olmo2": {},
    "gpt2": {
        **ALL_HEADS,
        "intermediate_size": None,
        "n_inner": 512,
        "n_positions": 512,
        "max_position_embeddings": None,
    },
    "opt": {**ALL_HEADS, "intermediate_size": None, "ffn_dim": 512, "word_embed_proj_dim": 256},
    "qwen3_moe": SOME_EXPERTS,
}
"""The same of families that the matrix has with `--more` alone."""


def results(*, more: bool = False) -> dict[str, Callable[[Path], None]]:
    """Name -> what writes it to a folder."""
    found: dict[str, Callable[[Path], None]] = {name: partial(real, SMOLLM, given) for name, given in REAL.items()}
    if file := os.environ.get("SECATEUR_GEMMA"):
        found[GEMMA] = partial(real, file, ["--sparsity", "0.2"])
    types = TINY | (MORE if more else {})
    for model_type in types:
        family = FAMILIES[model_type]
        found[f"tiny {model_type}, stock"] = partial(tiny, model_type, alike=True)
        if not family.alike_only:
            found[f"tiny {model_type}, layers differ"] = partial(tiny, model_type, alike=False)
    found[BLOCKS] = partial(tiny, "llama", alike=False, blocks=True)
    found[SCALED] = partial(pruned_random, "llama", {"rope_parameters": LLAMA3}, alike=False)
    padded = ("global, 30 %", "global, 50 %, heads gone", BLOCKS, SCALED)
    for name in (*padded, *(f"tiny {model_type}, layers differ" for model_type in DECILM_TYPES)):
        if name in found:
            found[f"{name}, --format vllm"] = partial(decilm, name)
    for name, kind in ((QUICKSTART, "int8"), (QUICKSTART, "int4"), (ROUNDED, "int4")):
        found[f"{name}, {kind}"] = partial(quantised, name, kind)
    return found


def place(name: str, work: Path) -> Path:
    """A result's folder."""
    return work / "".join(letter if letter.isalnum() else "-" for letter in name)


def quantised(of: str, kind: str, folder: Path) -> None:
    """Another result, made before, in whole numbers of 8 or 4 bits."""
    command = [sys.executable, "-m", "secateur", "export", "--format", "compressed-tensors", "--quantise", kind]
    command += ["--model", str(place(of, folder.parent)), "--output", str(folder), "--data", "stdlib-docs:train"]
    subprocess.run([*command, "--calibration-tokens", "16384"], check=True)


def decilm(of: str, folder: Path) -> None:
    """Another result, made before, in the form of vLLM's own class."""
    command = [sys.executable, "-m", "secateur", "export", "--format", "vllm", "--output", str(folder)]
    subprocess.run([*command, "--model", str(place(of, folder.parent))], check=True)


def real(model: str, options: list[str], folder: Path) -> None:
    """A short run."""
    command = [sys.executable, "-m", "secateur", "prune", "--model", model, *COMMAND, *options]
    subprocess.run([*command, "--output", str(folder)], check=True)


def tiny(model_type: str, folder: Path, *, alike: bool, blocks: bool = False) -> None:
    """`pruned_random` of a type that is listed here."""
    pruned_random(model_type, (TINY | MORE)[model_type], folder, alike=alike, blocks=blocks)


def pruned_random(
    model_type: str, sizes: dict[str, object], folder: Path, *, alike: bool, blocks: bool = False
) -> None:
    """A wide random model whose layers lose channels, and KV groups where they can; written as a run writes it.

    Args:
        sizes: what the configuration is given beside `SIZES` (None: left out).
        blocks: attention and FFNs go whole instead.
    """
    given = {key: value for key, value in {**SIZES, **sizes}.items() if not (value is None and key in SIZES)}
    torch.manual_seed(0)
    config, family = AutoConfig.for_model(model_type, **given), FAMILIES[model_type]
    model = stock_class_of(config)._from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.08)
    unstack_experts(model, family)
    heads = not (family.no_heads or family.alike_only or (alike and family.head_dim is None))
    units = find_units(model, family, "kv_group" if heads else "none")
    units = find_units(model, family, kinds=("blocks",)) if blocks else units
    keep = {pool.name: torch.ones(pool.size, dtype=torch.bool) for pool in units.pools}
    for pool in units.pools:
        if blocks:
            keep[pool.name][0] = (pool.layer, pool.kind) not in GONE
        elif pool.kind == "ffn":
            keep[pool.name][: pool.size // 4 if alike else 64 * pool.layer + 8] = False
        elif alike or pool.layer % 4 in (1, 2):
            keep[pool.name][: pool.size // 2] = False
    tensors = merged_and_sliced(model, units, keep)
    small = build_small(model.config, units.family, units.shapes_after(keep), tensors, torch.float32, "keep")
    small.config.architectures = [type(small).__name__]
    folder.mkdir(parents=True)
    save_model(small, folder, None if alike else units.family)
    for file in embedded_model_dir(None).glob("tokenizer*"):
        shutil.copy(file, folder)
