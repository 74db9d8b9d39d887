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
    assert lines, "\n".join(line[:200] for line in done.stderr.splitlines()[-60:])
    return json.loads(lines[0].removeprefix("FOUND"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("device")
    save_tiny(folder / "model", layers=2)
    (folder / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    return folder


def commands(place, device: str) -> list[list[str]]:
    """Prune, adapt and evaluate on a device."""
    out = place / f"on-{device}"
    here = ["--data", str(place / "text.txt"), "--device", device, "--dtype", "float32", "--seq-len", "16"]
    train = [*here, "--model", str(place / "model"), "--steps", "4", "--batch-size", "2", "--accumulation", "2"]
    pruned = ["--eval-data", str(place / "text.txt"), "--eval-tokens", "64", "--output", str(out / "pruned")]
    few = ["--calibration-tokens", "64"]
    return [
        ["prune", *train, *pruned, "--frequency", "1", "--sparsity", "0.3", "--compensate", "sequential", *few],
        ["adapt", *train, "--frequency", "1", "--init-rank", "4", "--rank", "2", "--output", str(out / "adapter")],
        ["eval", *here, "--model", str(out / "pruned"), "--max-tokens", "160", "--output", str(out / "eval.json")],
    ]


def test_commands_on_a_device_do_as_on_the_cpu(place) -> None:
    codes, wrong = found_by(RUN, commands(place, "auto"))
    assert wrong == [], wrong[0]
    assert codes == [0] * 3
    for command in commands(place, "cpu"):
        assert run("-m", "secateur", *command).returncode == 0
    records = [
        {name: json.loads((place / f"on-{device}" / f"{name}.json").read_text("utf-8")) for name in NAMES}
        for device in ("cpu", "auto")
    ]
    here, there = records
    assert here["pruned/units"]["pools"] == there["pruned/units"]["pools"]
    assert here["adapter/ranks"] == there["adapter/ranks"]
    found = [each["pruned/result"]["pruned"]["perplexity"]["perplexity"] for each in records]
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert there["pruned/result"]["environment"]["device"] == "gpu:0 (gpu)"


NAMES = ("pruned/units", "adapter/ranks", "pruned/result")
CASES = [
    *({"criterion": name} for name in ("taylor", "gate", "taylor-accumulated", "learned", "compresso")),
    {"criterion": "obs", "compensate": "lstsq", "shrink": False},
    {"criterion": "wanda", "compensate": "bias", "allocation": "global"},
    {"criterion": "lora", "normalize": "linear", "allocation": "search", "search_evaluations": 20},
    {"rank": 2, "criterion": "gradient", "recovery": "newton+compensate"},
    {"rank": 2, "criterion": "sparsegpt", "recovery": "compensate", "allocation": "global"},
]


def test_loops_on_a_device_do_as_on_the_cpu() -> None:
    for options, (here, there, wrong) in zip(CASES, found_by(LOOPS, CASES), strict=True):
        assert wrong == [], options
        assert there[0] == pytest.approx(here[0], rel=1e-4), options
        assert there[1] == here[1], options


SELF = """
import json, sys
import torch
from accelerator import NAME, WRONG, installed
with installed():
    there, here = torch.ones(3, device=NAME), torch.ones(3)
    there + there, there * here.sum(), there[torch.tensor([0])], there.cpu() + here
    quiet = len(WRONG)
    there + here, there.double(), torch.rand(2, device=NAME, generator=torch.Generator())
print("FOUND" + json.dumps([quiet, [line.splitlines()[0] for line in WRONG]]))
"""


def test_what_a_real_device_would_refuse_is_seen() -> None:
    """Without this, a device that takes everything would pass the tests above."""
    quiet, wrong = found_by(SELF, [])
    assert quiet == 0
    assert [line.partition(" ")[2] for line in wrong] == [
        "has a tensor (3,) of the CPU beside (3,) of gpu",
        "makes float64, which the device has not",
        "draws on gpu by a generator of the CPU",
    ]
