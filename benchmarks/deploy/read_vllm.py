"""Log-probabilities of prompts by vLLM, and what it generates; started by `matrix.py`.

    PYTHON read_vllm.py task.json found.json

Every model in turn in one process: the imports take longer than a tiny model.
"""

import gc
import json
import os
import sys
import time

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
}  # fmt: skip
TOP = 20


def read(job: dict) -> dict:
    """One folder's largest log-probabilities at each position of each text."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    adapter = job.get("adapter")
    lora = {"enable_lora": True, "max_lora_rank": rank_for(job["rank"]), "max_loras": 1} if adapter else {}
    engine = LLM(
        job["folder"], trust_remote_code=True, dtype=job["dtype"], enforce_eager=job.get("eager", True),
        model_impl=job.get("model_impl", "auto"),
        max_model_len=256, max_num_seqs=4, max_logprobs=TOP, enable_prefix_caching=bool(adapter), **lora,
    )  # fmt: skip
    if adapter:
        texts = [after_each(engine, ids, LoRARequest("it", 1, adapter)) for ids in job["ids"]]
    else:
        wanted = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=TOP)
        answers = engine.generate([{"prompt_token_ids": ids} for ids in job["ids"]], wanted, use_tqdm=False)
        texts = [[by_token(place) for place in answer.prompt_logprobs[1:]] for answer in answers]
    name = engine.apply_model(lambda model: type(model).__name__)[0]
    speed = [round(tokens_per_second(engine, job["ids"][0]), 2) for _ in range(job.get("timed", 0))]
    return {"loads": True, "class": name, "texts": texts, **({"tokens_per_second": speed} if speed else {})}


def by_token(place: dict) -> dict:
    return {str(token): found.logprob for token, found in place.items()}


def after_each(engine: object, ids: list[int], request: object) -> list[dict]:
    """The same of a text with an adapter, each position by a prompt of its own.

    vLLM 0.32 on a CPU fails where a prompt's log-probabilities and an adapter are asked for together.
    """
    from vllm import SamplingParams

    wanted = SamplingParams(temperature=0, max_tokens=1, logprobs=TOP)
    prompts = [{"prompt_token_ids": ids[: place + 1]} for place in range(len(ids) - 1)]
    answers = engine.generate(prompts, wanted, use_tqdm=False, lora_request=request)
    return [by_token(answer.outputs[0].logprobs[0]) for answer in answers]


def rank_for(rank: int) -> int:
    """The smallest of the ranks that vLLM allows for."""
    return next(most for most in (1, 8, 16, 32, 64, 128, 256, 320, 512) if most >= rank)


def tokens_per_second(engine: object, ids: list[int], tokens: int = 96, requests: int = 4) -> float:
    """Generation of several requests at a time, their short prompts included."""
    from vllm import SamplingParams

    started = time.perf_counter()
    wanted = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    engine.generate([{"prompt_token_ids": ids[:8]}] * requests, wanted, use_tqdm=False)
    return tokens * requests / (time.perf_counter() - started)


def main() -> None:
    import vllm
    from vllm.distributed import cleanup_dist_env_and_memory

    with open(sys.argv[1], encoding="utf-8") as file:
        jobs = json.load(file)
    done = []
    for job in jobs:
        try:
            done.append(read(job))
        except Exception as error:
            done.append({"loads": False, "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"})
        gc.collect()
        cleanup_dist_env_and_memory()
        with open(sys.argv[2], "w", encoding="utf-8") as file:
            json.dump({"reader": f"vLLM {vllm.__version__} (CPU)", "found": done}, file)


if __name__ == "__main__":
    main()
