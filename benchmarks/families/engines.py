"""What vLLM and llama.cpp take of the ten types that matter most: small pruned models of each, read by both.

    python benchmarks/families/engines.py DIR docs/results/family-engines.json --readers {vllm,llama-cpp}/bin/python

A random model of each real configuration class loses a quarter of its FFNs' channels and half of its KV groups, where
heads can go, alike in all layers, and is written as a stock checkpoint. Where layers may differ there is a second one.
`benchmarks/deploy/matrix.py` says what is compared, and makes the readers' environments.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from secateur.architecture.families import FAMILIES
from secateur.system.records import write_json

sys.path.insert(0, str(Path(__file__).parents[1] / "deploy"))
from matrix import cells_of, expected, kept, token_ids
from results import place, pruned_random

EXPERTS: dict[str, object] = {"num_experts_per_tok": 2, "moe_intermediate_size": 128}
DELTA: dict[str, object] = {
    "linear_key_head_dim": 64, "linear_value_head_dim": 64, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}  # fmt: skip
DENSE_FIRST: dict[str, object] = {
    **EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
WINDOWS: dict[str, object] = {
    "layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 64,
}  # fmt: skip
TEN: dict[str, dict[str, object]] = {
    "qwen3_5_text": DELTA,
    "qwen3_next": {**DELTA, **EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 128},
    "gpt_oss": {**WINDOWS, "num_experts_per_tok": 2, "num_local_experts": 4},
    "gemma4_text": {**WINDOWS, "global_head_dim": 128, "num_global_key_value_heads": 2,
                    "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0},
    "glm4_moe": DENSE_FIRST,
    "lfm2": {"head_dim": None, "layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False},
    "granitemoehybrid": {"head_dim": None, "layer_types": ["mamba", "attention"] * 2, "num_local_experts": 0,
                         "shared_intermediate_size": 512, "mamba_n_heads": 8, "mamba_d_head": 64, "mamba_d_state": 64,
                         "mamba_n_groups": 1},
    "deepseek_v3": {**DENSE_FIRST, "head_dim": None, "num_key_value_heads": 4, "q_lora_rank": 64, "kv_lora_rank": 64,
                    "qk_rope_head_dim": 32, "qk_nope_head_dim": 32, "v_head_dim": 64},
    "ministral3": {},
    "olmo3": {"layer_types": ["sliding_attention"] * 3 + ["full_attention"], "sliding_window": 64},
}  # fmt: skip
"""Model type -> what its configuration is given beside `SIZES` (None: left out)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("record", type=Path)
    parser.add_argument("--readers", nargs="+", default=[], help="Python of each environment")
    parser.add_argument("--only", nargs="+", help="model types")
    given = parser.parse_args()
    jobs = []
    for model_type in given.only or TEN:
        for alike in (True, False):
            if not alike and FAMILIES[model_type].alike_only:
                continue
            name = f"{model_type}, {'stock' if alike else 'layers differ'}"
            folder = place(name, given.work.absolute())
            if not folder.is_dir():
                pruned_random(model_type, TEN[model_type], folder, alike=alike)
            job = {"name": name, "model_type": model_type, "folder": str(folder), "ids": token_ids(folder)}
            job |= {"format": "stock" if alike else "layered", "whole": f"{folder}.pt"}
            if not Path(job["whole"]).is_file():
                torch.save(expected(folder, job["ids"]), job["whole"])
            jobs.append(job)
    cells = json.loads(given.record.read_text(encoding="utf-8")) if given.record.is_file() else []
    for python in given.readers:
        for job in jobs:
            for cell in cells_of(python, [job], "float32", 0, given.work):
                print(json.dumps(cell), flush=True)
                cells = kept(cells, cell)
                write_json(given.record, cells)


if __name__ == "__main__":
    main()
