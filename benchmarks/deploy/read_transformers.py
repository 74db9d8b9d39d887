"""Log-probabilities by transformers, of whatever version it is run with; started by `matrix.py`.

    PYTHON read_transformers.py task.json found.json

The task lists folders, the texts as token ids and where to put all log-probabilities of each (None: the largest only).
"""

import json
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM

TOP = 20


def read(job: dict) -> dict:
    """One folder's largest log-probabilities at each position, as vLLM gives them."""
    model, info = AutoModelForCausalLM.from_pretrained(
        job["folder"], torch_dtype=getattr(torch, job["dtype"]), trust_remote_code=True, output_loading_info=True
    )
    if wrong := [key for key in ("missing_keys", "mismatched_keys") if info[key]]:
        raise RuntimeError(f"{wrong[0]}: {sorted(map(str, info[wrong[0]]))[:2]}")
    found, whole = [], []
    with torch.inference_mode():
        for ids in job["ids"]:
            logits = model.eval()(torch.tensor([ids]), use_cache=False).logits[0]
            whole.append(logits.float().log_softmax(-1))
            top = whole[-1].topk(TOP)
            found.append([
                {str(token): value for token, value in zip(tokens, values, strict=True)}
                for tokens, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
            ])  # fmt: skip
    if job.get("whole"):
        torch.save(whole, job["whole"])
    return {"loads": True, "class": type(model).__name__, "texts": found}


def main() -> None:
    transformers.logging.set_verbosity_error()
    with open(sys.argv[1], encoding="utf-8") as file:
        jobs = json.load(file)
    done = []
    for job in jobs:
        try:
            done.append(read(job))
        except Exception as error:
            done.append({"loads": False, "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"})
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump({"reader": f"transformers {transformers.__version__}", "found": done}, file)


if __name__ == "__main__":
    main()
