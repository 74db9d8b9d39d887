"""A GGUF file of layers that differ: its bytes beside its layers', its speed in llama.cpp beside the dense model's.

    python benchmarks/deploy/layered_speed.py docs/results/layered-gguf.json --engine PYTHON --work DIR \\
        dense=smollm2-135m-instruct pruned=./global-30

PYTHON is that of an environment with llama.cpp's wheels (`make deploy-engines`). Each model is written in each form;
the files then take turns, each with a prompt of 512 tokens and 64 more one by one, on one thread. Where the embedding
is the head, too, a token reads all tensors, so the ratio of the tensors' bytes is the gain that can be had.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from prune_or_quantise import run, tensor_bytes, write
from safetensors import safe_open

from secateur.models.files import tensor_places
from secateur.models.source import resolve_model
from secateur.system.records import environment, write_json


def parameters_in(folder: Path) -> int:
    """Numbers in a checkpoint's files."""
    total = 0
    for path in set(tensor_places(folder).values()):
        with safe_open(path, framework="pt") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    parser.add_argument("models", nargs=2, help="dense=MODEL pruned=FOLDER")
    parser.add_argument("--engine", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--forms", default="bf16,q8_0,Q4_K_M")
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    models = dict(pair.split("=", 1) for pair in given.models)
    forms = given.forms.split(",")
    files: dict[str, Any] = {}
    record: dict[str, Any] = {"environment": environment(), "repeats": given.repeats, "files": files, "forms": {}}
    for name, place in models.items():
        parameters = parameters_in(Path(resolve_model(place).path))
        for form in forms:
            file = given.work / f"speed-{name}-{form}.gguf"
            write(place, form, file, given.engine, given.work)
            sizes = {"bytes": file.stat().st_size, "tensor_bytes": tensor_bytes(file), "parameters": parameters}
            files[f"{name} {form}"] = {"file": str(file), **sizes}
    task = {"threads": 1, "prompt": 512, "new": 64, "repeats": given.repeats}
    speeds = run(given.engine, given.work, task | {"files": {name: each.pop("file") for name, each in files.items()}})
    for name, speed in speeds.items():
        files[name] |= speed
    dense, pruned = models
    for form in forms:
        one, other = files[f"{dense} {form}"], files[f"{pruned} {form}"]
        could = one["tensor_bytes"] / other["tensor_bytes"]
        faster = other["new_tokens_per_s"] / one["new_tokens_per_s"]
        record["forms"][form] = {
            "over_its_tensors": other["bytes"] / other["tensor_bytes"] - 1, "bytes_ratio": could, "faster": faster,
            "of_the_ratio": faster / could, "prompt_faster": other["prompt_tokens_per_s"] / one["prompt_tokens_per_s"],
        }  # fmt: skip
    half = files.get(f"{pruned} bf16")
    if half:
        record["over_its_layers"] = half["bytes"] / (2 * half["parameters"]) - 1
    write_json(given.record, record)
    print(json.dumps(record["forms"], indent=1), record.get("over_its_layers"))


if __name__ == "__main__":
    main()
