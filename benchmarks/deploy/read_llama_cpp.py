"""Runs in an environment with llama.cpp's wheels: `PYTHON read_llama_cpp.py TASK.json` prints a line of JSON.

The task: {"files": {name: path}, "threads": 1, "segments": [[token, ...], ...]} for perplexity of the one file,
or {"files": ..., "threads": 1, "prompt": 512, "new": 64, "repeats": 5} for the speed of several, which take turns.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from cyllama.llama import llama_cpp


class Model(llama_cpp.LlamaModel):
    """cyllama 0.2.18 asks the model for a number that only its vocabulary tells."""

    @property
    def n_vocab(self) -> int:
        """Tokens of the vocabulary."""
        return int(self.get_vocab().n_vocab)


def opened(path: str, tokens: int, threads: int) -> Any:
    """A context of a model; weights, cache and products in the precisions that llama.cpp takes by itself."""
    where = llama_cpp.LlamaModelParams()
    where.n_gpu_layers = 0
    options = llama_cpp.LlamaContextParams()
    options.n_ctx = options.n_batch = options.n_ubatch = tokens
    options.n_threads = options.n_threads_batch = threads
    return llama_cpp.LlamaContext(Model(path, where), options)


def decode(context: Any, ids: list[int], start: int, every: bool) -> None:
    """Run a model on tokens that follow `start` others."""
    batch = llama_cpp.LlamaBatch(n_tokens=len(ids), embd=0, n_seq_max=1)
    for place, token in enumerate(ids):
        batch.add(token, start + place, [0], every or place == len(ids) - 1)
    context.decode(batch)


def nll(context: Any, segment: list[int]) -> float:
    """Summed negative log-likelihood of a segment's tokens but the first."""
    context.kv_cache_clear()
    decode(context, segment, 0, True)
    total = 0.0
    for place, token in enumerate(segment[1:]):
        logits = np.asarray(context.get_logits_ith(place), dtype=np.float64)
        top = logits.max()
        total += float(top + np.log(np.exp(logits - top).sum()) - logits[token])
    return total


def times(context: Any, prompt: list[int], new: int) -> tuple[float, float]:
    """Seconds of a prompt and of `new` tokens one by one; which ones makes no difference."""
    context.kv_cache_clear()
    started = time.perf_counter()
    decode(context, prompt, 0, False)
    context.get_logits_ith(-1)
    between = time.perf_counter()
    for step in range(new):
        decode(context, [prompt[step]], len(prompt) + step, False)
    return between - started, time.perf_counter() - between


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    llama_cpp.disable_logging()
    if segments := task.get("segments"):
        ((_, path),) = task["files"].items()
        context = opened(path, max(map(len, segments)), task["threads"])
        sums = [nll(context, segment) for segment in segments]
        print("RESULT" + json.dumps({"nll": sums, "tokens": [len(segment) - 1 for segment in segments]}))
        return
    length, new = task["prompt"], task["new"]
    contexts = {name: opened(path, length + new, task["threads"]) for name, path in task["files"].items()}
    prompt = list(range(1000, 1000 + length))
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contexts}
    for turn in range(task["repeats"] + 1):  # the first warms up
        for name, context in contexts.items():
            taken = times(context, prompt, new)
            if turn:
                found[name].append(taken)
    speeds = {
        name: {
            "prompt_tokens_per_s": length / statistics.median(first for first, _ in each),
            "new_tokens_per_s": new / statistics.median(second for _, second in each),
        }
        for name, each in found.items()
    }
    print("RESULT" + json.dumps(speeds))


if __name__ == "__main__":
    main()
