"""Whole runs on a device that is not there (`accelerator.py`): no tensor is left behind on the CPU, no float64 made."""

import json

import pytest
from tiny import save_tiny
from zygote import run

TEXT = "The gardener prunes the tree, and the tree grows back where it is wanted most. "
RUN = """
import json, sys
from accelerator import WRONG, installed
with installed():
    from secateur.cli import main
    codes = [main(argv) for argv in json.loads(sys.argv[1])]
print("FOUND" + json.dumps([codes, WRONG]))
"""
LOOPS = """
import json, sys, traceback
import torch
from peft import LoraConfig, get_peft_model
from accelerator import NAME, WRONG, installed
from tiny import tiny_llama
from secateur import Pruner, RankPruner

IDS = torch.randint(3, 99, (2, 24), generator=torch.Generator().manual_seed(1))

def adapted(device):
    torch.manual_seed(0)
    model = tiny_llama(layers=2, hidden=32, ffn=24, bias=True)
    model.set_attn_implementation("eager")
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    return torch.nn.Module.to(model, device)

def steps(model, pruner, device):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    ids = IDS.to(device)
    for _ in range(3):
        model(input_ids=ids, labels=ids).loss.backward()
        pruner.observe()
        optimizer.step()
        pruner.step(optimizer)
        optimizer.zero_grad()
    return model(input_ids=ids, labels=ids).loss.item()

def pruned(device, options):
    model = adapted(device)
    if "rank" in options:
        pruner = RankPruner(model, total_steps=3, prune_start=1, prune_end=2, frequency=1, **options)
        loss = steps(model, pruner, device)
        return [loss, sorted(pruner.ranks.items())]
    pruner = Pruner(model, total_steps=3, prune_start=1, prune_end=2, frequency=1, sparsity=0.3, **options)
    if options.get("compensate") == "sequential" or options.get("allocation") == "search":
        pruner.calibrate([{"input_ids": IDS}, {"input_ids": IDS.flip(1)}])
    loss = steps(model, pruner, device)
    return [loss, {name: mask.tolist() for name, mask in pruner.keep.items()}]

found = []
with installed():
    for options in json.loads(sys.argv[1]):
        try:
            found.append([pruned("cpu", options), pruned(NAME, options), list(WRONG)])
        except Exception:  # what else goes wrong is to be seen, too
            found.append([[], [], [*WRONG, traceback.format_exc()]])
        WRONG.clear()
print("FOUND" + json.dumps(found))
"""


def found_by(source: str, *arguments: object):
    done = run(json.dumps(arguments[0]), source=source)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
    assert lines, done.stderr[-6000:]
    return json.loads(lines[0].removeprefix("FOUND"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("device")
    save_tiny(folder / "model", layers=2)
    (folder / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    return folder


def commands(place, device: str) -> list[list[str]]:
    """Prune, adapt, evaluate and sample, on a device."""
    out = place / f"on-{device}"
    train = [
        "--model",
        str(place / "model"),
        "--data",
        str(place / "text.txt"),
        "--device",
        device,
        "--dtype",
        "float32",
    ]
    train += ["--steps", "4", "--batch-size", "4", "--accumulation", "2", "--seq-len", "16", "--frequency", "1"]
    text = ["--eval-data", str(place / "text.txt"), "--eval-tokens", "64"]
    small = ["--model", str(out / "pruned"), "--device", device, "--dtype", "float32"]
    return [
        ["prune", *train, *text, "--sparsity", "0.3", "--compensate", "sequential", "--output", str(out / "pruned")],
        ["adapt", *train, "--init-rank", "4", "--rank", "2", "--output", str(out / "adapter")],
        ["eval", *small, "--data", str(place / "text.txt"), "--seq-len", "16", "--output", str(out / "eval.json")],
        [
            "sample",
            *small,
            "--prompts",
            "a tree",
            "--max-new-tokens",
            "4",
            "--temperature",
            "1",
            "--output",
            str(out / "s.json"),
        ],
    ]


def test_commands_on_a_device_do_as_on_the_cpu(place) -> None:
    codes, wrong = found_by(RUN, [*commands(place, "cpu"), *commands(place, "auto")])
    assert wrong == []
    assert codes == [0] * 8
    for name in ("pruned/units.json", "adapter/ranks.json"):
        here, there = (json.loads((place / f"on-{device}" / name).read_text()) for device in ("cpu", "auto"))
        assert here.get("pools", here.get("layers")) == there.get("pools", there.get("layers"))
    results = [json.loads((place / f"on-{device}/pruned/result.json").read_text()) for device in ("cpu", "auto")]
    here, there = (result["pruned"]["perplexity"]["perplexity"] for result in results)
    assert there == pytest.approx(here, rel=1e-4)
    assert results[1]["environment"]["device"] == "gpu:0 (gpu)"
    answers = [(place / f"on-{device}" / "s.json").read_text(encoding="utf-8") for device in ("cpu", "auto")]
    assert (
        json.loads(answers[0])["samples"][0]["answers"].popitem()[1]
        == json.loads(answers[1])["samples"][0]["answers"].popitem()[1]
    )


CASES = [
    *({"criterion": name} for name in ("taylor", "gate", "taylor-accumulated", "magnitude", "random", "learned")),
    {"criterion": "obs", "compensate": "lstsq", "shrink": False},
    {"criterion": "wanda", "compensate": "bias", "allocation": "global"},
    {"criterion": "lora", "normalize": "linear", "allocation": "search", "search_evaluations": 20},
    *({"rank": 2, "criterion": name, "recovery": "newton+compensate"} for name in ("gradient", "taylor")),
    {"rank": 2, "criterion": "sparsegpt", "recovery": "compensate", "allocation": "global"},
]


def test_loops_on_a_device_do_as_on_the_cpu() -> None:
    for options, (here, there, wrong) in zip(CASES, found_by(LOOPS, CASES), strict=True):
        assert wrong == [], options
        assert there[0] == pytest.approx(here[0], rel=1e-4), options
        assert there[1] == here[1], options
