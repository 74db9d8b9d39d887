"""`secateur plan` of the ten types that matter most, from a config.json of a published model's sizes alone.

    python benchmarks/families/plans.py docs/results/family-plans.json

Each is planned at 30 %, with what else is the default; no weights are read. `published` is what its makers call it.
"""

import argparse
import contextlib
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from secateur.cli import main as secateur

LINEAR = {"linear_num_key_heads": 16, "linear_key_head_dim": 128, "linear_value_head_dim": 128}
EVERY_FOURTH = ["linear_attention", "linear_attention", "linear_attention", "full_attention"]
MODELS: dict[str, tuple[str, float, dict[str, Any]]] = {
    "Qwen3.5 27B": ("qwen3_5_text", 27, {
        "hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 24, "num_key_value_heads": 4,
        "head_dim": 256, "intermediate_size": 17408, "vocab_size": 248320, **LINEAR, "linear_num_value_heads": 48,
        "layer_types": EVERY_FOURTH * 16}),
    "Qwen3-Next 80B": ("qwen3_next", 80, {
        "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 16, "num_key_value_heads": 2,
        "head_dim": 256, "intermediate_size": 5120, "num_experts": 512, "num_experts_per_tok": 10,
        "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "vocab_size": 151936, **LINEAR,
        "linear_num_value_heads": 32}),
    "gpt-oss 20B": ("gpt_oss", 20.9, {
        "hidden_size": 2880, "num_hidden_layers": 24, "num_attention_heads": 64, "num_key_value_heads": 8,
        "head_dim": 64, "intermediate_size": 2880, "num_local_experts": 32, "num_experts_per_tok": 4,
        "vocab_size": 201088}),
    "Gemma 4 31B": ("gemma4_text", 31, {
        "hidden_size": 5376, "num_hidden_layers": 60, "num_attention_heads": 32, "num_key_value_heads": 16,
        "head_dim": 256, "global_head_dim": 512, "num_global_key_value_heads": 4, "attention_k_eq_v": True,
        "intermediate_size": 21504, "vocab_size": 262144, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0,
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 10}),
    "GLM-4.5 Air": ("glm4_moe", 106, {
        "hidden_size": 4096, "num_hidden_layers": 46, "num_attention_heads": 96, "num_key_value_heads": 8,
        "head_dim": 128, "intermediate_size": 10944, "moe_intermediate_size": 1408, "n_routed_experts": 128,
        "n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 1, "vocab_size": 151552}),
    "LFM2 1.2B": ("lfm2", 1.17, {
        "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 12288, "block_auto_adjust_ff_dim": True, "block_multiple_of": 256, "vocab_size": 65536,
        "full_attn_idxs": [2, 5, 8, 10, 12, 14]}),
    "Granite 4.0 H Micro": ("granitemoehybrid", 3, {
        "hidden_size": 2048, "num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 8,
        "shared_intermediate_size": 8192, "num_local_experts": 0, "num_experts_per_tok": 0, "mamba_n_heads": 64,
        "mamba_d_head": 64, "mamba_d_state": 128, "vocab_size": 100352, "tie_word_embeddings": True,
        "layer_types": (["mamba"] * 5 + ["attention"] + ["mamba"] * 4) * 4}),
    "DeepSeek V3": ("deepseek_v3", 671, {
        "hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128,
        "intermediate_size": 18432, "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1,
        "num_experts_per_tok": 8, "first_k_dense_replace": 3, "q_lora_rank": 1536, "kv_lora_rank": 512,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 129280}),
    "Ministral 3 8B": ("ministral3", 8.4, {
        "hidden_size": 4096, "num_hidden_layers": 34, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128, "intermediate_size": 14336, "vocab_size": 131072, "tie_word_embeddings": False}),
    "OLMo 3 7B": ("olmo3", 7.3, {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "intermediate_size": 11008, "vocab_size": 100278}),
}  # fmt: skip
"""Name -> model type, published parameters in billions, sizes."""


def planned(model_type: str, sizes: dict[str, Any], place: Path) -> dict[str, Any]:
    """Parameters before and after, memory of training, and processor seconds of the command."""
    config = AutoConfig.for_model(model_type, **sizes)
    config.dtype = "bfloat16"
    config.save_pretrained(place)
    record = place / "plan.json"
    started, printed = time.process_time(), io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = secateur(["plan", "--model", str(place), "--sparsity", "0.3", "--json", str(record)])
    seconds = time.process_time() - started
    assert code == 0, printed.getvalue()
    found = json.loads(record.read_text())
    return {
        "parameters": found["before"]["parameters"],
        "prunable": found["prunable_parameters"],
        "after": found["after"]["parameters"],
        "sparsity": round(found["sparsity"], 4),
        "memory_gib": round(found["memory"]["total"] / 2**30, 1),
        "cpu_seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--only", help="models whose name has this; without, those that the file has not yet")
    given = parser.parse_args()
    found = json.loads(given.output.read_text()) if given.output.is_file() else {}
    for name, (model_type, published, sizes) in sorted(MODELS.items(), key=lambda row: row[1][1]):  # small ones first
        if (given.only and given.only not in name) or (not given.only and name in found):
            continue
        with tempfile.TemporaryDirectory() as folder:
            found[name] = {
                "type": model_type,
                "published_billions": published,
                **planned(model_type, sizes, Path(folder)),
            }
        print(name, found[name], flush=True)
        given.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
