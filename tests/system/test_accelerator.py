"""Pruning on a device that is not there (`accelerator.py`): no tensor is left behind on the CPU, no float64 made."""

import json

import pytest
from zygote import run

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
    assert lines, "\n".join(line[:200] for line in done.stderr.splitlines()[-60:])
    return json.loads(lines[0].removeprefix("FOUND"))


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
