"""What `matrix.py` has read: pruned results of the real model, and of tiny random models of other families."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, PreTrainedTokenizerFast

from secateur.architecture.discovery import find_units
from secateur.architecture.experts import unstack_experts
from secateur.architecture.families import FAMILIES
from secateur.architecture.layered import stock_class_of
from secateur.checkpoint.export import build_small, save_model
from secateur.models.surgery import merged_and_sliced

COMMAND = ["--model", "smollm2-135m-instruct", "--data", "c4_calib.jsonl", "--schedule", "one-shot", "--criterion",
           "gate", "--compensate", "lstsq", "--steps", "10", "--lr", "2e-4"]  # fmt: skip
REAL = {
    "quickstart (uniform, 20 %)": ["--sparsity", "0.2", "--attention", "none"],
    "global, 30 %": ["--sparsity", "0.3", "--allocation", "global"],
    "global, 50 %, heads gone": ["--sparsity", "0.5", "--allocation", "global"],
    "uniform, KV groups gone": ["--sparsity", "0.3", "--attention-sparsity", "0.34"],
}
"""Results of SmolLM2-135M-Instruct -> options. Ten steps: asked is who reads them, not how good they are."""
SIZES = {
    "vocab_size": 512, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512, "bos_token_id": None, "eos_token_id": 0,
    "pad_token_id": 0,
}  # fmt: skip
DECILM_TYPES = ("llama", "mistral", "qwen2")
ALL_HEADS = {"num_key_value_heads": None, "head_dim": None}
SOME_EXPERTS = {"num_experts_per_tok": 2, "num_experts": 4, "moe_intermediate_size": 64, "decoder_sparse_step": 1}
TINY: dict[str, dict[str, object]] = {
    "llama": {},
    "qwen2": {"head_dim": None},
    "qwen3": {},
    "gemma3_text": {"query_pre_attn_scalar": 32, "sliding_window": 16, "sliding_window_pattern": 2},
    "mistral": {"sliding_window": None},
    "granite": {"head_dim": None},
    "smollm3": {"head_dim": None},
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 32, "sliding_window": 64},
    "phi3": {"sliding_window": None},
    "phi": {"partial_rotary_factor": 0.5},
    "olmo": {},
    "olmo2": {},
    "gpt_neox": {**ALL_HEADS, "rotary_pct": 0.25},
    "gpt2": {
        **ALL_HEADS,
        "intermediate_size": None,
        "n_inner": 192,
        "n_positions": 512,
        "max_position_embeddings": None,
    },
    "opt": {**ALL_HEADS, "intermediate_size": None, "ffn_dim": 192, "word_embed_proj_dim": 128},
    "mixtral": {"num_experts_per_tok": 2, "num_local_experts": 4},
    "qwen3_moe": SOME_EXPERTS,
}
"""Model type -> what its configuration is given beside `SIZES` (None: left out)."""


def results() -> dict[str, Callable[[Path], None]]:
    """Name -> what writes it to a folder."""
    found: dict[str, Callable[[Path], None]] = {name: partial(real, options) for name, options in REAL.items()}
    for model_type in TINY:
        family = FAMILIES[model_type]
        found[f"tiny {model_type}, stock"] = partial(tiny, model_type, alike=True)
        if not family.alike_only:
            found[f"tiny {model_type}, layers differ"] = partial(tiny, model_type, alike=False)
    for name in ("global, 30 %", "global, 50 %, heads gone", *(f"tiny {t}, layers differ" for t in DECILM_TYPES)):
        found[f"{name}, --format vllm"] = partial(decilm, name)
    return found


def place(name: str, work: Path) -> Path:
    """A result's folder."""
    return work / "".join(letter if letter.isalnum() else "-" for letter in name)


def decilm(of: str, folder: Path) -> None:
    """Another result, made before, in the form of vLLM's own class."""
    command = [sys.executable, "-m", "secateur", "export", "--format", "vllm", "--output", str(folder)]
    subprocess.run([*command, "--model", str(place(of, folder.parent))], check=True)


def real(options: list[str], folder: Path) -> None:
    command = [sys.executable, "-m", "secateur", "prune", *COMMAND, *options, "--output", str(folder)]
    subprocess.run(command, check=True, cwd=os.environ["SECATEUR_DATA"])


def tiny(model_type: str, folder: Path, *, alike: bool) -> None:
    """A wide random model whose layers lose channels, and KV groups where they can; written as a run writes it."""
    given = {key: value for key, value in {**SIZES, **TINY[model_type]}.items() if not (value is None and key in SIZES)}
    config, family = AutoConfig.for_model(model_type, **given), FAMILIES[model_type]
    model = stock_class_of(config)._from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    unstack_experts(model, family)
    heads = not (family.no_heads or family.alike_only or (alike and family.head_dim is None))
    units = find_units(model, family, "kv_group" if heads else "none")
    keep = {pool.name: torch.ones(pool.size, dtype=torch.bool) for pool in units.pools}
    for pool in units.pools:
        if pool.kind == "ffn":
            keep[pool.name][: pool.size // 4 if alike else 8 + 24 * pool.layer] = False
        elif alike or pool.layer in (1, 2):
            keep[pool.name][: pool.size // 2] = False
    tensors = merged_and_sliced(model, units, keep)
    small = build_small(model.config, units.family, units.shapes_after(keep), tensors, torch.float32, "keep")
    small.config.architectures = [type(small).__name__]
    folder.mkdir()
    save_model(small, folder, None if alike else units.family)
    characters = {"<unk>": 0} | {chr(number): number for number in range(1, 256)}
    core = Tokenizer(models.WordLevel(characters, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>").save_pretrained(folder)
