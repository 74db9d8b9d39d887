"""PrunedLoRA beside plain LoRA, rsLoRA, AdaLoRA and other cuts: the same steps, data and seeds, each at its best rate.

    export SECATEUR_DATA=/path/to/data
    python benchmarks/ranks/adapt.py runs/adapt --task gsm8k --stage tune final variants
    python benchmarks/ranks/adapt.py runs/adapt --task gsm8k --stage tune final variants --shard 1/2   # and 2/2
    python benchmarks/ranks/adapt.py runs/adapt --task gsm8k --stage tune --only "gradient, singular: alpha r/2"
    python benchmarks/ranks/adapt.py runs/adapt --task gsm8k --table --summary docs/results/adapt.json

SmolLM2-135M-Instruct, adapters on all linears, AdamW, cosine decay, bfloat16 where the hardware has it. Stages:
`tune` runs each contender (and the variants that `--only` names) with each learning rate of the grid on seed 0, and
goes on by factors of 2, at most twice a side, while the best is at an edge; it is measured on rows of its own.
`final` runs each contender with its best rate on seeds 1 to 3 (the batches of a seed are the same for all) and measures
on the held-out rows. `variants` changes one option of `gradient, singular` at a time,
at the variant's best rate if that was tuned, else at that of `gradient, singular`.
Neither rows to tune on nor held-out rows are ever trained on. A run whose record is in the folder or in
docs/results/adapt.json (`--from-summary`) is not run again.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from adapt_tables import VARIED, best_rates, tables
from growing import Growing
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup, set_seed

from secateur.models.devices import autocast, compute_dtype, name_of, widened
from secateur.models.loading import load_model
from secateur.models.source import resolve_model
from secateur.models.tokenizers import load_tokenizer
from secateur.ranks import RankPruner
from secateur.system.machine.heap import freed_pages_kept
from secateur.system.records import environment, write_json
from secateur.training.loss import causal_lm_loss

MODEL = "smollm2-135m-instruct"
RATES = (1e-3, 2e-3, 4e-3)
WIDER = 2
"""How often the grid goes on by a factor of 2, on each side, while the best rate is at its edge."""
SEEDS = (1, 2, 3)
SUMMARY = Path(__file__).parents[2] / "docs" / "results" / "adapt.json"
NOISE = (0.1, 0.2, 0.5, 1.0)
"""Standard deviations of a perturbation of A and B, relative to each factor's own root mean square."""

GIVEN = {"init_rank": 64, "rank": 8, "basis": "given"}
TURNED = {"init_rank": 64, "rank": 8, "basis": "singular"}
LAST = {"init_rank": 64, "rank": 8, "schedule": "one-shot", "prune_start": 80, "recovery": "none"}
"""Trained whole, and cut once after the last step."""
CONTENDERS: dict[str, dict[str, Any]] = {
    "lora-8": {"rank": 8},
    "gradient": GIVEN,
    "lora-64": {"rank": 64},
    "sparsegpt": GIVEN | {"criterion": "sparsegpt"},
    "magnitude": GIVEN | {"criterion": "magnitude"},
    "taylor": GIVEN | {"criterion": "taylor"},
    "wanda": GIVEN | {"criterion": "wanda"},
    "random": GIVEN | {"criterion": "random"},
    "rslora-8": {"rank": 8, "rslora": True},
    "adalora-8": {"rank": 8, "adalora": True},
    "lora-8, alpha 2r": {"rank": 8, "scaling": 2.0},
    VARIED: TURNED,
    "gradient, alpha 2r": GIVEN | {"scaling": 2.0},
    "gradient, singular, alpha 2r": TURNED | {"scaling": 2.0},
    "gradient, alpha 2r, by rank": GIVEN | {"scaling": 2.0, "follows": True},
    "gradient, singular, by rank": TURNED | {"follows": True},
    "gradient, singular, alpha 2r, by rank": TURNED | {"scaling": 2.0, "follows": True},
    "grown and pruned": {"rank": 8, "grows": True},
    "truncated after training": LAST | {"basis": "singular", "criterion": "magnitude"},
    "truncated after training, weighted": LAST | {"basis": "weighted", "criterion": "wanda"},
}
"""`scaling` is that of the end; with `follows` it is lower at the start, as 1/√r (`--scaling rank`).

Grown: components go from layer to layer while the sum of ranks stays (growing.py, after ElaLoRA). Truncated: what the
first 8 singular values leave of a trained adapter of rank 64, or of its outputs.
"""
FINAL_2 = {"init_rank": 64, "rank": 2, "follows": True}
SMALLER: dict[str, dict[str, Any]] = {
    "lora-2, alpha 2r": {"rank": 2, "scaling": 2.0},
    "lora-2, alpha 4r": {"rank": 2, "scaling": 4.0},
    "gradient to 2, alpha 2r": FINAL_2 | {"scaling": 2.0},
    "gradient to 2, alpha 4r": FINAL_2 | {"scaling": 4.0},
    "gradient, singular, to 2, alpha 2r": FINAL_2 | {"scaling": 2.0, "basis": "singular"},
    "gradient, singular, to 2, alpha 4r": FINAL_2 | {"scaling": 4.0, "basis": "singular"},
    "random to 2, alpha 4r": FINAL_2 | {"scaling": 4.0, "criterion": "random"},
}
"""Where rank is scarcer; stages run these only when `--only` names them."""
CHANGES: dict[str, dict[str, Any]] = {
    "recovery none": {"recovery": "none"},
    "recovery newton+compensate": {"recovery": "newton+compensate"},
    "magnitude": {"criterion": "magnitude"},
    "magnitude, recovery none": {"criterion": "magnitude", "recovery": "none"},
    "sparsegpt": {"criterion": "sparsegpt"},
    "wanda, recovery none": {"criterion": "wanda", "recovery": "none"},
    "from rank 32": {"init_rank": 32},
    "from rank 128": {"init_rank": 128},
    "global": {"allocation": "global"},
    "alpha r/2": {"scaling": 0.5},
    "cut until 0.4": {"prune_end": 0.4},
    "cut until 0.8": {"prune_end": 0.8},
    "K1 1, K2 1": {"k1": 1, "k2": 1},
    "K1 2, K2 4": {"k1": 2, "k2": 4},
    "K1 5, K2 4": {"k1": 5, "k2": 4},
    "K1 5, K2 8": {"k1": 5, "k2": 8},
    "K1 10, K2 8": {"k1": 10, "k2": 8},
}
VARIANTS = {f"{VARIED}: {change}": TURNED | options for change, options in CHANGES.items()}

Row = tuple[list[int], int]
"""Tokens of a prompt with its answer, and where the answer starts."""


@dataclass(frozen=True)
class Task:
    """Rows to train on, to choose the rate on and to report on, and the size of a run."""

    train: list[Row]
    tuning: list[Row]
    held_out: list[Row]
    batch: int
    steps: int
    multiple: int
    """Rows are padded to a multiple of it: each width has its kernels compiled."""
    choices: tuple[int, ...] = ()
    """Tokens that the answer is one of, where the figure is an accuracy."""

    @property
    def size(self) -> dict[str, int]:
        counts = {"train": len(self.train), "tuning": len(self.tuning), "held": len(self.held_out)}
        return {"steps": self.steps, "batch": self.batch} | counts


def gsm8k(data: Path, tokenizer: Any) -> Task:
    """Rows of at most 128 tokens: 1,186 to train on, 64 to tune on, 96 held out."""
    rows = []
    for line in (data / "gsm8k_train.jsonl").open(encoding="utf-8"):
        row = json.loads(line)
        rows.append(encoded(tokenizer, f"Question: {row['question']}\nAnswer:", f" {row['answer']}", end=True))
    rows = [row for row in rows if len(row[0]) <= 128]
    return Task(rows[:-160], rows[-160:-96], rows[-96:], batch=2, steps=80, multiple=32)


def sst2(data: Path, tokenizer: Any) -> Task:
    """Sentences of at most 24 tokens with their prompt: the last 200 to tune on, the others to train on; every second
    sentence of dev, of any length, is held out."""

    def read(name: str) -> list[Row]:
        rows = [json.loads(line) for line in (data / name).open(encoding="utf-8")]
        words = (" negative", " positive")
        return [encoded(tokenizer, f"Review: {r['sentence']}\nSentiment:", words[r["label"]], end=False) for r in rows]

    choices = tuple(tokenizer(word).input_ids[0] for word in (" negative", " positive"))
    rows = [row for row in read("sst2_train.jsonl") if len(row[0]) <= 24]
    dev = read("sst2_dev.jsonl")[::2]
    return Task(rows[:-200], rows[-200:], dev, batch=8, steps=80, multiple=8, choices=choices)


TASKS: dict[str, Callable[[Path, Any], Task]] = {"gsm8k": gsm8k, "sst2": sst2}


def encoded(tokenizer: Any, prompt: str, answer: str, *, end: bool) -> Row:
    """Tokens of both, tokenised apart, so that the answer's first token is the same in every row."""
    start = tokenizer(prompt).input_ids
    return start + tokenizer(answer).input_ids + [tokenizer.eos_token_id] * end, len(start)


@dataclass(frozen=True)
class Batch:
    """Rows, padded on the right, and the positions whose next token is a label: logits are made for these alone."""

    ids: Tensor
    """(rows, tokens)"""
    mask: Tensor
    """(rows, tokens), 0 where it is padded"""
    places: Tensor
    """(n,) positions, counted through all rows"""
    labels: Tensor
    """(1, n) as a causal model's loss takes them: that of place j is at j + 1; -100 where places only fill up"""

    @classmethod
    def of(cls, rows: list[Row], multiple: int) -> "Batch":
        width = -(-max(len(ids) for ids, _ in rows) // multiple) * multiple
        mask = torch.tensor([[1] * len(tokens) + [0] * (width - len(tokens)) for tokens, _ in rows])
        ids = torch.tensor([tokens + [0] * (width - len(tokens)) for tokens, _ in rows])
        answers = [(row, at) for row, (tokens, start) in enumerate(rows) for at in range(start, len(tokens))]
        labels = [-100, *(rows[row][0][at] for row, at in answers)]
        spare = -len(labels) % 32  # a few sizes only, as with the widths; one spare place at least
        places = [row * width + at - 1 for row, at in answers] + [0] * (spare + 1)
        return cls(ids, mask, torch.tensor(places), torch.tensor([labels + [-100] * spare]))

    @property
    def answers(self) -> Tensor:
        """(tokens of all answers,) labels."""
        return self.labels[self.labels != -100]


@contextmanager
def logits_at(model: PeftModel, places: Tensor) -> Iterator[None]:
    """In here, the model's logits are (1, n, vocabulary), of these places."""

    def chosen(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return (args[0].flatten(0, 1)[places].unsqueeze(0),)

    handle = model.get_base_model().get_output_embeddings().register_forward_pre_hook(chosen)
    try:
        yield
    finally:
        handle.remove()


def outputs_of(model: PeftModel, batch: Batch, labels: Tensor | None = None) -> Any:
    with autocast("cpu", compute_dtype("auto")), logits_at(model, batch.places):
        return model(input_ids=batch.ids, attention_mask=batch.mask, labels=labels)


def adapted(base: Any, given: dict[str, Any], steps: int) -> PeftModel:
    """The adapter that a contender starts with, on all linears; scaling 1, or 1/√r · r for rsLoRA."""
    rank = given.get("init_rank", given["rank"])
    common: dict[str, Any] = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    if given.get("adalora"):
        # PEFT's own: from 1.5 times the rank, cut between a tenth and six tenths of the run as the others are.
        budget = {"init_r": 12, "target_r": 8, "tinit": steps // 10, "tfinal": steps * 4 // 10, "deltaT": 1}
        model = get_peft_model(base, AdaLoraConfig(lora_alpha=12, total_step=steps, **budget, **common))
    else:
        alpha = given.get("scaling", 1.0) * rank * ((given["rank"] / rank) ** 0.5 if given.get("follows") else 1)
        model = get_peft_model(
            base, LoraConfig(r=rank, lora_alpha=alpha, use_rslora=given.get("rslora", False), **common)
        )
    assert isinstance(model, PeftModel)
    return model


def train(model: PeftModel, task: Task, given: dict[str, Any], rate: float, seed: int) -> dict[str, Any]:
    """One run; -> loss of the last ten steps, seconds, and the steps with a cut."""
    names = ("criterion", "recovery", "allocation", "basis", "schedule", "prune_start", "prune_end", "k1", "k2")
    options = {name: given[name] for name in names if name in given}
    options["scaling"] = "rank" if given.get("follows") else "fixed"
    pruner: RankPruner | Growing | None = None
    if given.get("grows"):
        pruner = Growing(model, rank=given["rank"], total_steps=task.steps, every=5, seed=seed)
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
        rows = [task.train[int(i)] for i in order[step * task.batch :][: task.batch]]
        batch = Batch.of(rows, task.multiple)
        if given.get("adalora"):
            loss = outputs_of(model, batch, batch.labels).loss  # with PEFT's orthogonality term
        else:
            loss = causal_lm_loss(outputs_of(model, batch), batch.labels)
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
    if pruner and given.get("allocation") != "global" and not given.get("grows"):
        assert set(pruner.ranks.values()) == {given["rank"]}
    cuts = [cut.step for cut in pruner.cuts] if pruner else []
    return {"train_loss": statistics.fmean(losses[-10:]), "seconds": time.perf_counter() - started, "cuts": cuts}


@torch.inference_mode()
def measured(model: PeftModel, task: Task, rows: list[Row]) -> dict[str, float]:
    """Loss per answer token, and accuracy among the choices where there are some."""
    model.eval()
    loss, tokens, right = 0.0, 0, 0
    rows = sorted(rows, key=lambda row: len(row[0]))
    for at in range(0, len(rows), 32):
        batch = Batch.of(rows[at : at + 32], task.multiple)
        outputs = outputs_of(model, batch)
        count = len(batch.answers)
        loss += causal_lm_loss(outputs, batch.labels).item() * count
        tokens += count
        if task.choices:
            logits = outputs.logits[0, :count][:, list(task.choices)]
            right += int((torch.tensor(task.choices)[logits.argmax(1)] == batch.answers).sum())
    return {"loss": loss / tokens} | ({"accuracy": right / len(rows)} if task.choices else {})


@torch.inference_mode()
def perturbed(model: PeftModel, task: Task, seed: int) -> dict[str, float]:
    """Held-out loss (32 rows) with noise on A and B, by its relative size; 0 is without."""
    rows = task.held_out[:32]
    factors = [p for name, p in model.named_parameters() if "lora_" in name]
    kept = [p.clone() for p in factors]
    found = {"0": measured(model, task, rows)["loss"]}
    for level in NOISE:
        generator = torch.Generator().manual_seed(seed)
        for factor, own in zip(factors, kept, strict=True):
            noise = torch.randn(own.shape, generator=generator)
            factor.copy_(own + level * own.square().mean().sqrt() * noise)
        found[str(level)] = measured(model, task, rows)["loss"]
    for factor, own in zip(factors, kept, strict=True):
        factor.copy_(own)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--stage", nargs="+", choices=("tune", "final", "variants"), default=["tune", "final"])
    parser.add_argument("--only", nargs="+", choices=[*CONTENDERS, *SMALLER, *VARIANTS], help="of these")
    parser.add_argument("--rates", nargs="+", type=float, help="default: the grid, or the best of it")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: 1 to 3; seed 0 is for tuning")
    parser.add_argument("--shard", default="1/1", help="i/n: every n-th contender, from the i-th on")
    parser.add_argument("--from-summary", type=Path, default=SUMMARY, help="its records count as existing")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--summary", type=Path, help="also put all records into this file")
    given = parser.parse_args()
    if 0 in (given.seeds or ()):
        parser.error("--seeds 0: that seed is the one that rates are tuned on")
    runs = Runs(given.folder / given.task, given.task, given.from_summary)
    missing = []
    if not given.table:
        with freed_pages_kept():
            missing = run_stages(runs, given)
    records = runs.all()
    print(tables(records, contenders=list(CONTENDERS), smaller=list(SMALLER), variants=list(VARIANTS)))
    if given.summary:
        known = json.loads(given.summary.read_text()) if given.summary.exists() else {}
        write_json(given.summary, known | {given.task: records})
    if missing:
        sys.exit(f"not run, as their rates are not tuned yet (again when they are): {', '.join(missing)}")


class Runs:
    """Records in a folder, one file a run, and those of an earlier session's summary."""

    def __init__(self, folder: Path, task: str, summary: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.earlier: list[dict[str, Any]] = (
            json.loads(summary.read_text(encoding="utf-8")).get(task, []) if summary.exists() else []
        )

    def path(self, name: str, rate: float, seed: int) -> Path:
        return self.folder / f"{name.replace('/', ' over ')}, {rate:g}, {seed}.json"

    def all(self) -> list[dict[str, Any]]:
        """All records; the folder's own win."""
        own = [json.loads(path.read_text()) for path in sorted(self.folder.glob("*.json"))]
        return list({(r["name"], r["rate"], r["seed"]): r for r in [*self.earlier, *own]}.values())

    def has(self, name: str, rate: float, seed: int, size: dict[str, int]) -> bool:
        """Whether this run is done; one of another size would be overwritten or mixed in.

        Another process may add records at any time, so the folder is read each time.
        """
        records = self.earlier
        if self.path(name, rate, seed).exists():
            records = [*records, json.loads(self.path(name, rate, seed).read_text())]
        found = [r for r in records if (r["name"], r["rate"], r["seed"]) == (name, rate, seed)]
        for record in found:
            if record["size"] != size:
                sys.exit(f"{name}, {rate:g}, seed {seed} is there with other sizes ({record['size']}): another folder?")
        return bool(found)


def run_stages(runs: Runs, given: argparse.Namespace) -> list[str]:
    """Run what is not there yet; -> what could not be run before others are tuned."""
    data = Path(os.environ.get("SECATEUR_DATA") or sys.exit("set SECATEUR_DATA to the folder of the data sets"))
    source = resolve_model(MODEL)
    task = TASKS[given.task](data, load_tokenizer(source))
    base = widened(load_model(source), compute_dtype("auto"))
    base.config.use_cache = False
    number, shards = map(int, given.shard.split("/"))
    missing = []

    def done(name: str, rate: float, seed: int) -> None:
        if not runs.has(name, rate, seed, task.size):
            specs = CONTENDERS | SMALLER | VARIANTS
            write_json(runs.path(name, rate, seed), run(base, task, name, specs[name], rate, seed))

    for stage in given.stage:
        specs = VARIANTS if stage == "variants" else CONTENDERS
        if given.only:
            specs = {"tune": CONTENDERS | SMALLER | VARIANTS, "final": CONTENDERS | SMALLER}.get(stage, specs)
        names = [name for name in specs if not given.only or name in given.only]
        for name in names[number - 1 :: shards]:
            if stage == "tune":
                tune(runs, name, given.rates, done)
                continue
            rates = given.rates
            if not rates:
                best = best_rates(runs.all(), list(VARIANTS)).get(name)
                # Another process may still be tuning: a best rate of half a grid would be another one's results.
                known = best is not None and next_rate(runs, name if best.own else VARIED) is None
                rates = [best.rate] if best and known else []
                missing += [] if rates else [name]
            for rate in rates:
                for seed in given.seeds or SEEDS:
                    done(name, rate, seed)
    return missing


def tune(runs: Runs, name: str, rates: list[float] | None, done: Callable[[str, float, int], None]) -> None:
    """All rates of the grid on seed 0, and on beyond the edge that is best."""
    for rate in rates or ():
        done(name, rate, 0)
    while not rates and (rate := next_rate(runs, name)) is not None:
        done(name, rate, 0)


def next_rate(runs: Runs, name: str) -> float | None:
    """The rate that is to be tried next on seed 0; none when the best one is known."""
    own = [record for record in runs.all() if record["name"] == name and record["seed"] == 0]
    left = sorted(set(RATES) - {record["rate"] for record in own})
    if left:
        return left[0]
    best = best_rates(own, [])[name]
    further = {"low": best.rate / 2, "high": best.rate * 2}.get(best.edge)
    inside = further is not None and min(RATES) / 2**WIDER <= further <= max(RATES) * 2**WIDER
    return further if inside else None


def run(base: Any, task: Task, name: str, given: dict[str, Any], rate: float, seed: int) -> dict[str, Any]:
    """Train, measure and take the adapter off the base again; seed 0 is measured on the rows to tune on."""
    set_seed(seed)
    model = adapted(base, given, task.steps)
    record: dict[str, Any] = {"name": name, "options": given, "rate": rate, "seed": seed, "size": task.size}
    record["dtype"] = name_of(compute_dtype("auto"))
    started, used = time.perf_counter(), time.process_time()
    # Under autocast the matmuls cast for themselves; PEFT's cast of every input to float32 is then waste.
    with disable_input_dtype_casting(model):
        record |= train(model, task, given, rate, seed)
        record["held_out" if seed else "tuning"] = measured(model, task, task.held_out if seed else task.tuning)
        if seed:
            record["perturbed"] = perturbed(model, task, seed)
    record["all_seconds"], record["cpu_seconds"] = time.perf_counter() - started, time.process_time() - used
    record["adapter_parameters"] = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
    record["environment"] = {key: environment()[key] for key in ("commit", "versions", "python", "cpu")}
    model.unload()
    found = record["held_out" if seed else "tuning"]
    print(f"{name}, {rate:g}, seed {seed}: {found}, {record['all_seconds']:.0f} s", flush=True)
    return record


if __name__ == "__main__":
    main()
