"""PrunedLoRA beside plain LoRA, rsLoRA, AdaLoRA and other cuts: the same steps, data and seeds, each at its best rate.

    SECATEUR_DATA=/path/to/data python benchmarks/adapt.py runs/adapt --task gsm8k --stage tune final variants
    SECATEUR_DATA=/path/to/data python benchmarks/adapt.py runs/adapt --task sst2 --stage tune final
    python benchmarks/adapt.py runs/adapt --task gsm8k --table --summary docs/results/adapt.json

SmolLM2-135M-Instruct, adapters on all linears, AdamW, cosine decay, bfloat16 where the hardware has it. Stages:
`tune` runs every contender with each learning rate on seed 0 (`--rates` for more, where the best is at the edge);
`final` runs each with its best one on seeds 1 to 3 (the batches of a seed are the same for all); `variants` changes one
option of `gradient` at a time, at its best rate.
A run that has its record is not run again. Held-out rows are never trained on.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from adapt_tables import tables
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup, set_seed

from secateur.heap import freed_pages_kept
from secateur.loss import causal_lm_loss
from secateur.models import autocast, compute_dtype, load_model, load_tokenizer, resolve_model
from secateur.ranks import RankPruner
from secateur.records import environment, write_json

MODEL = "smollm2-135m-instruct"
RATES = (2e-3, 4e-3, 8e-3)
SEEDS = (1, 2, 3)
NOISE = (0.05, 0.1, 0.2)
"""Standard deviations of a perturbation of A and B, relative to each factor's own root mean square."""

PRUNED = {"init_rank": 64, "rank": 8}
CONTENDERS: dict[str, dict[str, Any]] = {
    "lora-8": {"rank": 8},
    "gradient": PRUNED,
    "lora-64": {"rank": 64},
    "sparsegpt": PRUNED | {"criterion": "sparsegpt"},
    "magnitude": PRUNED | {"criterion": "magnitude"},
    "taylor": PRUNED | {"criterion": "taylor"},
    "wanda": PRUNED | {"criterion": "wanda"},
    "random": PRUNED | {"criterion": "random"},
    "rslora-8": {"rank": 8, "rslora": True},
    "adalora-8": {"rank": 8, "adalora": True},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "recovery none": PRUNED | {"recovery": "none"},
    "recovery newton+compensate": PRUNED | {"recovery": "newton+compensate"},
    "from rank 32": {"init_rank": 32, "rank": 8},
    "from rank 128": {"init_rank": 128, "rank": 8},
    "global": PRUNED | {"allocation": "global"},
    "cut until 0.4": PRUNED | {"prune_end": 0.4},
    "cut until 0.8": PRUNED | {"prune_end": 0.8},
    "alpha r/2": PRUNED | {"scaling": 0.5},
    "alpha r/4": PRUNED | {"scaling": 0.25},
    "alpha r/2, cut until 0.4": PRUNED | {"scaling": 0.5, "prune_end": 0.4},
    "alpha 2r": PRUNED | {"scaling": 2.0},
    "K1 1, K2 1": PRUNED | {"k1": 1, "k2": 1},
    "K1 1, K2 2": PRUNED | {"k1": 1, "k2": 2},
    "K1 2, K2 4": PRUNED | {"k1": 2, "k2": 4},
    "K1 5, K2 4": PRUNED | {"k1": 5, "k2": 4},
    "K1 5, K2 8": PRUNED | {"k1": 5, "k2": 8},
    "K1 10, K2 8": PRUNED | {"k1": 10, "k2": 8},
}

Row = tuple[list[int], int]
"""Tokens of a prompt with its answer, and where the answer starts."""


@dataclass(frozen=True)
class Task:
    """Rows to train on, rows to measure on, and the size of a run."""

    train: list[Row]
    held_out: list[Row]
    batch: int
    steps: int
    choices: tuple[int, ...] = ()
    """Tokens that the answer is one of, where the figure is an accuracy."""


def gsm8k(data: Path, tokenizer: Any) -> Task:
    """Rows of at most 128 tokens: 1,186 to train on, 160 held out."""
    rows = []
    for line in (data / "gsm8k_train.jsonl").open(encoding="utf-8"):
        row = json.loads(line)
        rows.append(encoded(tokenizer, f"Question: {row['question']}\nAnswer:", f" {row['answer']}", end=True))
    rows = [row for row in rows if len(row[0]) <= 128]
    return Task(rows[:-160], rows[-160:], batch=4, steps=100)


def sst2(data: Path, tokenizer: Any) -> Task:
    """Sentences of at most 40 tokens to train on; the whole dev set is held out."""

    def read(name: str) -> list[Row]:
        rows = [json.loads(line) for line in (data / name).open(encoding="utf-8")]
        words = (" negative", " positive")
        return [encoded(tokenizer, f"Review: {r['sentence']}\nSentiment:", words[r["label"]], end=False) for r in rows]

    choices = tuple(tokenizer(word).input_ids[0] for word in (" negative", " positive"))
    train = [row for row in read("sst2_train.jsonl") if len(row[0]) <= 48]
    return Task(train, read("sst2_dev.jsonl"), batch=16, steps=60, choices=choices)


TASKS: dict[str, Callable[[Path, Any], Task]] = {"gsm8k": gsm8k, "sst2": sst2}


def encoded(tokenizer: Any, prompt: str, answer: str, *, end: bool) -> Row:
    """Tokens of both, tokenised apart, so that the answer's first token is the same in every row."""
    start = tokenizer(prompt).input_ids
    return start + tokenizer(answer).input_ids + [tokenizer.eos_token_id] * end, len(start)


def padded(rows: list[Row], multiple: int = 16) -> tuple[Tensor, Tensor]:
    """(rows, tokens) ids and labels, on the right; what pads comes after all that counts, so it needs no mask."""
    width = -(-max(len(ids) for ids, _ in rows) // multiple) * multiple
    ids = torch.tensor([tokens + [0] * (width - len(tokens)) for tokens, _ in rows])
    labels = torch.tensor([[-100] * at + tokens[at:] + [-100] * (width - len(tokens)) for tokens, at in rows])
    return ids, labels


def adapted(base: Any, given: dict[str, Any], steps: int) -> PeftModel:
    """The adapter that a contender starts with, on all linears; scaling 1, or 1/√r · r for rsLoRA."""
    rank = given.get("init_rank", given["rank"])
    common: dict[str, Any] = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    if given.get("adalora"):
        # PEFT's own: from 1.5 times the rank, cut between a tenth and six tenths of the run as the others are.
        budget = {"init_r": 12, "target_r": 8, "tinit": steps // 10, "tfinal": steps * 4 // 10, "deltaT": 1}
        model = get_peft_model(base, AdaLoraConfig(lora_alpha=12, total_step=steps, **budget, **common))
    else:
        alpha = given.get("scaling", 1.0) * rank
        model = get_peft_model(
            base, LoraConfig(r=rank, lora_alpha=alpha, use_rslora=given.get("rslora", False), **common)
        )
    assert isinstance(model, PeftModel)
    return model


def train(model: PeftModel, task: Task, given: dict[str, Any], rate: float, seed: int) -> dict[str, float]:
    """One run; -> loss of the last ten steps and seconds."""
    names = ("criterion", "recovery", "allocation", "prune_end", "k1", "k2")
    options = {name: given[name] for name in names if name in given}
    pruner = None
    if "init_rank" in given:
        pruner = RankPruner(model, rank=given["rank"], total_steps=task.steps, frequency=5, seed=seed, **options)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, task.steps // 20, task.steps)
    order = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(seed))
    losses = []
    started = time.perf_counter()
    model.train()
    for step in range(task.steps):
        ids, labels = padded([task.train[int(i)] for i in order[step * task.batch :][: task.batch]])
        with autocast("cpu", compute_dtype("auto")):
            if given.get("adalora"):
                loss = model(input_ids=ids, labels=labels).loss  # with PEFT's orthogonality term
            else:
                loss = causal_lm_loss(model(input_ids=ids), labels)
        loss.backward()
        # The optimiser's own list: a cut puts smaller parameters in the places of larger ones.
        torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        if pruner:
            pruner.observe()
        optimizer.step()
        if pruner:
            pruner.step(optimizer)
        if given.get("adalora"):
            model.base_model.update_and_allocate(step)
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    if pruner:
        assert set(pruner.ranks.values()) == {given["rank"]} or given.get("allocation") == "global"
    return {"train_loss": statistics.fmean(losses[-10:]), "seconds": time.perf_counter() - started}


@torch.inference_mode()
def held_out(model: PeftModel, task: Task, rows: list[Row]) -> dict[str, float]:
    """Loss per answer token, and accuracy among the choices where there are some."""
    model.eval()
    loss, tokens, right = 0.0, 0, 0
    for at in range(0, len(rows), 32):
        ids, labels = padded(sorted(rows, key=lambda row: len(row[0]))[at : at + 32])
        with autocast("cpu", compute_dtype("auto")):
            outputs = model(input_ids=ids)
        count = int((labels != -100).sum())
        loss += causal_lm_loss(outputs, labels).item() * count
        tokens += count
        if task.choices:
            places = (labels != -100).int().argmax(1)
            logits = outputs.logits[torch.arange(len(ids)), places - 1][:, list(task.choices)]
            wanted = labels[torch.arange(len(ids)), places]
            right += int((torch.tensor(task.choices)[logits.argmax(1)] == wanted).sum())
    return {"loss": loss / tokens} | ({"accuracy": right / len(rows)} if task.choices else {})


@torch.inference_mode()
def perturbed(model: PeftModel, task: Task, seed: int) -> dict[str, float]:
    """Held-out loss (48 rows) with noise on A and B, by its relative size; 0 is without."""
    factors = [p for name, p in model.named_parameters() if "lora_" in name]
    kept = [p.clone() for p in factors]
    found = {"0": held_out(model, task, task.held_out[:48])["loss"]}
    for level in NOISE:
        generator = torch.Generator().manual_seed(seed)
        for factor, own in zip(factors, kept, strict=True):
            noise = torch.randn(own.shape, generator=generator)
            factor.copy_(own + level * own.square().mean().sqrt() * noise)
        found[str(level)] = held_out(model, task, task.held_out[:48])["loss"]
    for factor, own in zip(factors, kept, strict=True):
        factor.copy_(own)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--stage", nargs="+", choices=("tune", "final", "variants"), default=["tune", "final"])
    parser.add_argument("--only", nargs="+", help="contenders or variants; default: all")
    parser.add_argument("--rates", nargs="+", type=float, help="default: the grid, or the best of it")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: 0 to tune, else 1 to 3")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--summary", type=Path, help="also put all records into this file")
    given = parser.parse_args()
    folder = given.folder / given.task
    folder.mkdir(parents=True, exist_ok=True)
    if not given.table:
        with freed_pages_kept():
            run_stages(folder, given)
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    print(tables(records, contenders=list(CONTENDERS), variants=list(VARIANTS)))
    if given.summary:
        known = json.loads(given.summary.read_text()) if given.summary.exists() else {}
        write_json(given.summary, known | {given.task: records})


def run_stages(folder: Path, given: argparse.Namespace) -> None:
    data = Path(os.environ.get("SECATEUR_DATA") or sys.exit("set SECATEUR_DATA to the folder of the data sets"))
    source = resolve_model(MODEL)
    task = TASKS[given.task](data, load_tokenizer(source))
    base = load_model(source)
    base.config.use_cache = False
    for stage in given.stage:
        specs = VARIANTS if stage == "variants" else CONTENDERS
        for name in [name for name in specs if not given.only or name in given.only]:
            tuned_as = "gradient" if stage == "variants" else name
            rates = given.rates or (RATES if stage == "tune" else [best_rate(folder, tuned_as)])
            for rate in rates:
                for seed in given.seeds or ([0] if stage == "tune" else SEEDS):
                    path = folder / f"{name.replace('/', ' over ')}, {rate:g}, {seed}.json"
                    if not path.exists():
                        write_json(path, run(base, task, name, specs[name], rate, seed))


def best_rate(folder: Path, name: str) -> float:
    """The learning rate with the lowest held-out loss on seed 0."""
    tuned = [json.loads(path.read_text()) for path in folder.glob(f"{name}, *, 0.json")]
    if not tuned:
        sys.exit(f"{name} has no runs of the tune stage in {folder}")
    return min(tuned, key=lambda record: record["held_out"]["loss"])["rate"]


def run(base: Any, task: Task, name: str, given: dict[str, Any], rate: float, seed: int) -> dict[str, Any]:
    """Train, measure and take the adapter off the base again."""
    set_seed(seed)
    model = adapted(base, given, task.steps)
    record: dict[str, Any] = {"name": name, "options": given, "rate": rate, "seed": seed}
    record["size"] = {"steps": task.steps, "batch": task.batch, "train": len(task.train), "held": len(task.held_out)}
    record |= train(model, task, given, rate, seed)
    record["held_out"] = held_out(model, task, task.held_out)
    if seed:
        record["perturbed"] = perturbed(model, task, seed)
    record["adapter_parameters"] = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
    record["environment"] = {key: environment()[key] for key in ("commit", "versions", "python", "cpu")}
    model.unload()
    print(f"{name}, {rate:g}, seed {seed}: {record['held_out']}, {record['seconds']:.0f} s", flush=True)
    return record


if __name__ == "__main__":
    main()
