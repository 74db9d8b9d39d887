"""Whether transformers 4 computes the same logits from what secateur writes: tiny models of many types, both versions.

    python3.11 -m venv older && older/bin/pip install 'transformers==4.57.*' torch safetensors
    .venv/bin/python benchmarks/reliability/older_readers.py --older older/bin/python

A row for each type: KL divergence (nats) of the older version's reading from this one's, as written, and without the
older keys of `config.json`. Half a minute on 2 cores. A record is printed as JSON with `--json`.
"""

import argparse
import json
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from secateur.architecture.layered import stock_class_of
from secateur.checkpoint.export import save_model

SIZES = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LONG = {"rope_type": "longrope", "short_factor": [1.5] * 8, "long_factor": [3.0] * 8,
        "original_max_position_embeddings": 32}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
BOTH = {"full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 3e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 500.0}}  # fmt: skip


def rope(theta: float = 5e5, **more: object) -> dict[str, object]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **more}}


CASES: dict[str, dict[str, object]] = {
    "llama": rope(),
    "llama/llama3": rope(**LLAMA3),
    "llama/linear": rope(rope_type="linear", factor=4.0),
    "llama/dynamic": rope(rope_type="dynamic", factor=4.0),
    "llama/yarn": rope(**YARN),
    "llama/yarn, no original length": rope(rope_type="yarn", factor=4.0),
    "llama/longrope": rope(**LONG),
    **{name: rope() for name in (
        "mistral", "qwen2", "qwen3", "granite", "smollm3", "gemma", "gemma2", "olmo", "olmo2", "starcoder2", "cohere",
        "cohere2", "helium", "exaone4", "ernie4_5", "hunyuan_v1_dense", "seed_oss", "arcee", "mixtral",
    )},
    "falcon": {**rope(), "head_dim": None, "num_key_value_heads": None},
    "qwen2/yarn": rope(**YARN),
    "phi3": {**rope(), "sliding_window": None},
    "phi3/longrope": {**rope(**LONG), "original_max_position_embeddings": 32, "sliding_window": None},
    "phi3/partial": {**rope(partial_rotary_factor=0.5), "sliding_window": None},
    **{name: rope(partial_rotary_factor=0.5)
       for name in ("phi", "stablelm", "glm", "glm4", "persimmon", "nemotron", "gpt_neox")},
    "gemma3_text": {"rope_parameters": BOTH, "sliding_window": 8, "sliding_window_pattern": 2},
    "olmo3": {**rope(), "sliding_window": 8},
    "qwen2_moe": {**EXPERTS, **rope(), "shared_expert_intermediate_size": 32},
    "qwen3_moe": {**EXPERTS, **rope()},
    "olmoe": {**EXPERTS, **rope()},
    "gpt2": {}, "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64}, "bloom": {}, "gptj": {"rotary_dim": 8},
}  # fmt: skip
IDS = torch.arange(3, 83).unsqueeze(0)
CHILD = """
import json, sys
import torch, transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
transformers.logging.set_verbosity_error()
found, faults = {}, {}
for folder in json.load(open(sys.argv[1])):
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype="auto").eval()
        with torch.inference_mode():
            found[folder] = model(load_file(folder + "/probe")["ids"], use_cache=False).logits.contiguous()
    except Exception as error:
        faults[folder] = f"{type(error).__name__}: {error}"
save_file(found, sys.argv[2])
json.dump({"version": transformers.__version__, "faults": faults}, sys.stdout)
"""


def written(name: str, changes: dict[str, object], folder: Path) -> torch.Tensor:
    """Write a wide random model as secateur does; -> its logits, read back by this version without a warning."""
    model_type = name.split("/")[0]
    options = {key: value for key, value in {**SIZES, **changes}.items() if value is not None}
    config = AutoConfig.for_model(model_type, **options)
    model = stock_class_of(config)._from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.copy_(parameter + values if "norm" in path or "ln_" in path else values)
    model.config.dtype = torch.float32
    save_model(model, folder, None)
    save_file({"ids": IDS}, folder / "probe")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return logits(model), logits(AutoModelForCausalLM.from_pretrained(folder, dtype="auto"))


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(input_ids=IDS, use_cache=False).logits


def divergence(expected: torch.Tensor, found: torch.Tensor) -> float:
    """Mean KL (nats) over positions."""
    p, q = expected.double().log_softmax(-1), found.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def without_older_keys(folder: Path, other: Path) -> None:
    """The same model with transformers 5's own config.json alone."""
    AutoConfig.from_pretrained(folder).save_pretrained(other)
    for name in ("model.safetensors", "probe"):
        (other / name).symlink_to(folder / name)


def compare(older: str, names: list[str]) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as place:
        expected: dict[str, torch.Tensor] = {}
        folders: dict[str, tuple[Path, Path]] = {}
        rows: dict[str, dict[str, object]] = {}
        for number, name in enumerate(names):
            folder, plain = Path(place) / str(number), Path(place) / f"{number}-plain"
            expected[name], here = written(name, CASES[name], folder)
            assert torch.equal(expected[name], here), name
            without_older_keys(folder, plain)
            folders[name], rows[name] = (folder, plain), {}
        (task := Path(place) / "task.json").write_text(json.dumps([str(f) for pair in folders.values() for f in pair]))
        command = [older, "-W", "ignore", "-c", CHILD, str(task), str(Path(place) / "found")]
        done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        found = load_file(Path(place) / "found")
        for name, pair in folders.items():
            for what, folder in zip(("as written", "without"), pair, strict=True):
                here = found.get(str(folder))
                fault = done["faults"].get(str(folder))
                rows[name][what] = fault if here is None else divergence(expected[name], here)
    return {"here": transformers.__version__, "older": done["version"], "kl_nats": rows}


def main() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--older", required=True, help="python of an environment with transformers 4")
    parser.add_argument("--only", nargs="*", help="types, such as llama/yarn")
    parser.add_argument("--json", action="store_true", help="print the record alone")
    given = parser.parse_args()
    record = compare(given.older, given.only or list(CASES))
    if given.json:
        print(json.dumps(record, indent=1))
        return
    print(f"transformers {record['here']} writes, {record['older']} reads; KL in nats\n")
    print("| type | as written | without the older keys |\n|---|---|---|")
    for name, row in record["kl_nats"].items():
        cells = [f"{value:.2g}" if isinstance(value, float) else str(value)[:70] for value in row.values()]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
