"""Log-probabilities by ONNX Runtime GenAI, of the ONNX model that its own builder makes; started by `matrix.py`.

PYTHON read_onnxruntime.py task.json found.json
"""

import json
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version

import numpy as np

TOP = 20
PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "int4": "int4"}


def read(job: dict) -> dict:
    """One folder's largest log-probabilities at each position of each text."""
    import onnxruntime_genai as engine

    built = tempfile.mkdtemp()
    try:
        command = [sys.executable, "-W", "ignore", "-m", "onnxruntime_genai.models.builder", "-i", job["folder"], "-o",
                   built, "-p", PRECISIONS[job["dtype"]], "-e", "cpu"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return {"loads": False, "reason": done.stderr.strip().split("\n")[-1][:200]}
        model, texts = engine.Model(built), []
        for ids in job["ids"]:
            options = engine.GeneratorParams(model)
            options.set_search_options(max_length=len(ids) + 1)
            generator = engine.Generator(model, options)
            generator.append_tokens(np.array([ids], dtype=np.int32))
            logits = np.asarray(generator.get_output("logits"), dtype=np.float64)[0]
            values = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
            values -= logits.max(-1, keepdims=True)
            top = np.argsort(-values, axis=-1)[:, :TOP]
            texts.append(
                [{str(token): float(row[token]) for token in best} for row, best in zip(values, top, strict=True)]
            )
        return {"loads": True, "class": "ONNX, by its model builder", "texts": texts}
    finally:
        shutil.rmtree(built, ignore_errors=True)


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        jobs = json.load(file)
    done = []
    for job in jobs:
        try:
            done.append(read(job))
        except Exception as error:
            done.append({"loads": False, "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"})
        with open(sys.argv[2], "w", encoding="utf-8") as file:
            json.dump({"reader": f"ONNX Runtime GenAI {version('onnxruntime-genai')}", "found": done}, file)


if __name__ == "__main__":
    main()
