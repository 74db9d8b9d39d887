"""How much each layer loses: allocations compared after one cut, without any training (docs/results/shares.md).

    SECATEUR_DATA=/path/to/data python benchmarks/criteria/shares.py --json docs/results/shares.json

SmolLM2-135M-Instruct, `gate` scores from 16 batches of 2,048 tokens of C4, 20 % and 50 % of the prunable parameters,
seed 0. The figure is held-out C4 perplexity (12,288 tokens, segments of 512) of the cut model; with `--refit` also of
the one that was refitted in sequence. `--orders` instead asks whether a refit changes the order in which a search sees
its candidates: Spearman's correlation of their KL to the dense model with and without it. Each figure is written when
it is there, and the same command goes on where it was stopped.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from secateur import Pruner
from secateur.evaluation.perplexity import perplexity
from secateur.models.devices import autocast, compute_dtype, name_of
from secateur.models.loading import load_model
from secateur.models.source import resolve_model
from secateur.models.tokenizers import load_tokenizer
from secateur.pruning.compensation.sequence import refit_in_sequence
from secateur.pruning.search import Watch
from secateur.pruning.search.fitness import Fitness
from secateur.pruning.search.shares import Field
from secateur.system.progress import Progress
from secateur.system.records import environment, markdown_table, write_json

SPARSITIES = (0.2, 0.5)
ALLOCATIONS = ("uniform", "protected", "global", "search")
SCORED, LENGTH = 32768, 256
HELD, HELD_LENGTH = 12288, 512
REFITTED = 32
"""Sequences that a refit is made on: 8,192 tokens."""
MUTANTS = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--evaluations", type=int, default=120)
    parser.add_argument("--tokens", type=int, default=8192, help="that the fitness is of")
    parser.add_argument("--sparsity", type=float, nargs="*", default=SPARSITIES)
    parser.add_argument("--refit", action="store_true", help="also measure what is refitted in sequence")
    parser.add_argument("--orders", action="store_true")
    given = parser.parse_args()
    bench = Bench(given.tokens)
    record = json.loads(given.json.read_text()) if given.json.is_file() else {"rows": {}, "orders": {}}
    scores = bench.scores(given.json.with_suffix(".scores.pt"))
    for sparsity in given.sparsity:
        if given.orders:
            bench.orders(
                sparsity, scores, record["orders"].setdefault(f"{sparsity}", {}), partial_write(given.json, record)
            )
            continue
        for allocation in ALLOCATIONS:
            name = f"{allocation} {sparsity}" + (f" {given.evaluations}" if allocation == "search" else "")
            if name not in record["rows"]:
                record["rows"][name] = bench.row(sparsity, allocation, scores, given)
                write_json(given.json, record | {"environment": environment()})
            print(name, record["rows"][name], flush=True)
    rows = [
        (
            name,
            f"{row['perplexity']:.2f}",
            f"{row['refitted']:.2f}" if "refitted" in row else "–",
            f"{row.get('kl', 0):.3f}",
            f"{row['seconds']:.0f}",
        )
        for name, row in record["rows"].items()
    ]
    print(markdown_table(rows, ("allocation", "held-out C4", "refitted", "KL", "seconds of search")))
    for sparsity, found in record["orders"].items():
        pairs = [(pair["kl"], pair["refitted"]) for pair in found.values()]
        print(f"{sparsity}: {len(pairs)} candidates, Spearman {spearman(pairs):.2f}")


def partial_write(path: Path, record: dict[str, Any]) -> Any:
    return lambda: write_json(path, record | {"environment": environment()})


class Bench:
    """The model and its texts."""

    def __init__(self, tokens: int) -> None:
        source = resolve_model("smollm2-135m-instruct")
        data, tokenizer = Path(os.environ["SECATEUR_DATA"]), load_tokenizer(source)
        torch.manual_seed(0)
        base = load_model(source)
        base.config.use_cache = False
        self.dtype = compute_dtype("auto")
        self.model = get_peft_model(base, LoraConfig(r=8, target_modules="all-linear"))
        ids = first_tokens(data / "c4_calib.jsonl", tokenizer, SCORED + tokens)
        self.scored = ids[:SCORED].view(-1, LENGTH)
        self.aside = [{"input_ids": part} for part in ids[SCORED:].view(-1, LENGTH).split(4)]
        self.held = first_tokens(data / "c4_eval.jsonl", tokenizer, HELD)

    def pruner(self, sparsity: float, allocation: str, **more: Any) -> Pruner:
        options = {"criterion": "gate", "schedule": "one-shot", "prune_start": 1, "shrink": False} | more
        pruner = Pruner(self.model, sparsity=sparsity, allocation=allocation, total_steps=1, **options)
        pruner.calibrate(self.aside, self.dtype)
        return pruner

    def scores(self, kept: Path) -> dict[str, Tensor]:
        """Averaged over all batches, as before a run's only cut."""
        if kept.is_file():
            return torch.load(kept, weights_only=True)
        pruner = self.pruner(0.5, "global", prune_start=len(self.scored) // 8 + 1)
        pruner.begin(len(self.scored) // 8 + 1)
        for ids in self.scored.split(8):
            with autocast("cpu", self.dtype):
                self.model(input_ids=ids, labels=ids).loss.backward()
            pruner.observe()
            pruner.step()
            self.model.zero_grad()
        pruner.close()
        torch.save(pruner.scores, kept)
        return pruner.scores

    def row(self, sparsity: float, allocation: str, scores: dict[str, Tensor], given: Any) -> dict[str, Any]:
        more = {"search_evaluations": given.evaluations} if allocation == "search" else {}
        pruner = self.pruner(sparsity, allocation, **more)
        pruner.scorer.averages.load(scores)
        found: dict[str, Any] = {"seconds": 0.0}
        if allocation == "search":
            note = given.json.with_suffix(f".{sparsity}.{given.evaluations}.json")
            pruner.allocator.watch = Watch(Progress(0).counting("searching", "candidates"), note)
            pruner.allocator.search_(pruner.pruned, pruner.scorer)
            record = pruner.allocator.record
            found = {
                name: getattr(record, name)
                for name in ("kl", "starts", "curve", "gone", "candidates", "tokens", "seconds")
            }
        keep = pruner.budget.select(scores, pruner.keep, 1.0)
        found["gone"] = {name: int((~mask).sum()) for name, mask in keep.items()}
        with self.cut(pruner, keep):
            found["perplexity"] = self.perplexity()
        if given.refit:
            with self.refitted(pruner, keep), self.cut(pruner, keep):
                found["refitted"] = self.perplexity()
        pruner.close()
        return found | {"dtype": name_of(self.dtype)}

    def orders(self, sparsity: float, scores: dict[str, Tensor], found: dict[str, Any], write: Any) -> None:
        """KL with and without a refit, of what a search starts from and of some candidates at random."""
        pruner = self.pruner(sparsity, "search")
        field, random = Field(pruner.budget), Random(0)
        start, *others = (field.settled(field.rungs_of(gone)) for gone in pruner.allocator.starts(scores).values())
        candidates = [start, *others, *(field.mutated(start, random, 0.4) for _ in range(MUTANTS))]
        fitness = Fitness(self.model, pruner.units.pools, pruner.modules, pruner.pruned.calibration)
        for number, rungs in enumerate(candidates):
            if rungs is None or f"{number}" in found:
                continue
            keep = pruner.budget.with_shares(field.gone(rungs)).select(scores, pruner.keep, 1.0)
            every, pair = range(len(fitness.tokens)), {}
            pair["kl"] = sum(fitness.divergences(keep, every)) / sum(fitness.tokens)
            with self.refitted(pruner, keep):
                pair["refitted"] = sum(fitness.divergences(keep, every)) / sum(fitness.tokens)
            found[f"{number}"] = pair
            print(sparsity, number, pair, flush=True)
            write()
        pruner.close()

    @contextmanager
    def cut(self, pruner: Pruner, keep: dict[str, Tensor]) -> Iterator[None]:
        """The model with nothing but `keep`, inside."""
        assert pruner.masks is not None
        pruner.masks.update(keep)
        try:
            yield
        finally:
            pruner.masks.update({name: torch.ones_like(mask) for name, mask in keep.items()})

    @contextmanager
    def refitted(self, pruner: Pruner, keep: dict[str, Tensor]) -> Iterator[None]:
        """The model refitted in sequence for a cut, inside."""
        gates = {gate.linear for pool in pruner.units.pools for gate in pool.gates}
        weights = [pruner.modules[path].get_base_layer().weight for path in gates]
        before = [weight.detach().clone() for weight in weights]
        refit_in_sequence(
            self.model,
            pruner.units,
            keep,
            [{"input_ids": part} for part in self.scored[:REFITTED].split(8)],
            dtype=self.dtype,
        )
        try:
            yield
        finally:
            for weight, old in zip(weights, before, strict=True):
                weight.data.copy_(old)

    def perplexity(self) -> float:
        return perplexity(self.model, self.held, seq_len=HELD_LENGTH, dtype=self.dtype).perplexity


def first_tokens(path: Path, tokenizer: Any, count: int) -> Tensor:
    """(count,) tokens of a file's rows, joined."""
    ids: list[int] = []
    with path.open(encoding="utf-8") as lines:
        while len(ids) < count:
            ids += [*tokenizer(json.loads(next(lines))["text"])["input_ids"], tokenizer.eos_token_id]
    return torch.tensor(ids[:count])


def spearman(pairs: list[tuple[float, float]]) -> float:
    """Correlation of ranks."""
    columns = [torch.tensor(column).argsort().argsort().double() for column in zip(*pairs, strict=True)]
    return float(torch.corrcoef(torch.stack(columns))[0, 1])


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"{time.monotonic() - started:.0f} s")
