"""Pruning without training: ours beside others', equal parameters and tokens (docs/results/training-free.md).

    SECATEUR_DATA=/path/to/data python benchmarks/quality/training_free.py --peers /path/to/venv/bin/python
    python benchmarks/quality/training_free.py --table

SmolLM2-135M-Instruct; each cut looks at 32,768 tokens of c4_calib in sequences of 1,024; 20 and 50 % of the parameters
of the decoder's linears go. Perplexity on the first 102,400 tokens of c4_eval, of WikiText-2 raw test and of PTB test,
in segments of 1,024. A cell whose record is there is not run again, so a stopped run goes on; `--cells` picks some.

optipfair 0.4.2 and Torch-Pruning 1.6.1 run in a virtual environment of their own (`--peers`, with torch, transformers,
optipfair==0.4.2 and torch-pruning==1.6.1); what they prune is measured here. The other methods of others are this
project's own versions of their scores and orders: see CELLS. FLAP's biases are put into a copy of the model that has
them, at zero. SliceGPT is no package and was not run.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, set_seed

from secateur.checkpoint.export import build_small, round_
from secateur.config.files.recipes import build_values, read_with_recipe
from secateur.config.prune import PruneConfig
from secateur.data.tokens import evaluation_tokens
from secateur.evaluation.perplexity import perplexity
from secateur.models.benchmark import parameter_count
from secateur.models.devices import compute_dtype, widened
from secateur.models.loading import load_model
from secateur.models.source import resolve_model
from secateur.models.stored import checkpoint_dtype
from secateur.models.surgery import merged_and_sliced
from secateur.models.tokenizers import load_tokenizer
from secateur.runs.prune import fine_tune_and_prune
from secateur.system.progress import Progress
from secateur.system.records import environment, markdown_table, write_json
from secateur.training.finetune import load_base
from secateur.training.job import first_batches
from secateur.training.prepare import PruneJob, prepare

MODEL = "smollm2-135m-instruct"
SEQ_LEN, BATCH, CALIBRATION, EVALUATION = 1024, 2, 32768, 102400
SPARSITIES = (0.2, 0.5)
TEXTS = {"C4": "c4_eval.jsonl", "WikiText-2": "wikitext2_raw_test.txt", "PTB": "ptb_test.txt"}
DECIDES, AGAINST = "C4", "flap"
CELLS = {
    # name: options of `secateur prune --steps 0`, or the peer that prunes
    "dense": "",
    "gate": "criterion=gate cuts=1 compensate=none",
    "gate, lstsq": "criterion=gate cuts=1 compensate=lstsq",
    "gate, sequential": "criterion=gate cuts=1 compensate=sequential",
    "gate, 4 cuts": "criterion=gate cuts=4 compensate=none",
    "gate, sequential, 4 cuts": "criterion=gate cuts=4 compensate=sequential",
    "gate, sequential, 8 cuts": "criterion=gate cuts=8 compensate=sequential",
    "gate, protected, sequential, 4 cuts": "criterion=gate cuts=4 compensate=sequential allocation=protected",
    "gate, global, sequential": "criterion=gate cuts=1 compensate=sequential allocation=global",
    "gate, global, sequential, 4 cuts": "criterion=gate cuts=4 compensate=sequential allocation=global",
    "gate, search, sequential, 4 cuts": "criterion=gate cuts=4 compensate=sequential allocation=search",
    "llm-pruner": "criterion=taylor-accumulated reduce=abs allocation=protected protect_first=4 protect_last=2 cuts=1 "
    "compensate=none",
    "wanda-sp": "criterion=wanda cuts=1 compensate=none",
    "flap": "criterion=flap allocation=global across_layers=standard floor=0.1 cuts=1 compensate=bias",
    "flap, every layer alike": "criterion=flap cuts=1 compensate=bias",
    "flap, sequential": "criterion=flap allocation=global across_layers=standard floor=0.1 cuts=1 "
    "compensate=sequential",
    "obs, sequential": "criterion=obs cuts=1 compensate=sequential",
    "magnitude": "criterion=magnitude cuts=1 compensate=none",
    "optipfair 0.4.2": "peer=optipfair",
    "torch-pruning 1.6.1": "peer=torch-pruning",
    "torch-pruning 1.6.1, Taylor": "peer=torch-pruning-taylor",
}
"""Every layer alike (uniform) unless it says otherwise, which is what loads in stock transformers."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/results/training-free"))
    parser.add_argument("--cells", nargs="*", default=list(CELLS), metavar="NAME")
    parser.add_argument("--sparsities", nargs="*", type=float, default=list(SPARSITIES))
    parser.add_argument("--eval-tokens", type=int, default=EVALUATION)
    parser.add_argument("--peers", help="Python of an environment with optipfair and torch-pruning")
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    for sparsity in () if given.table else given.sparsities:
        for name in given.cells:
            place = given.output / f"{'dense' if name == 'dense' else f'{slug(name)}-{sparsity:g}'}.json"
            if place.exists() or ("peer=" in CELLS[name] and not given.peers):
                continue
            print(f"== {name}, {sparsity:.0%}", flush=True)
            write_json(place, cell(name, sparsity, given.eval_tokens, given.peers), result=True)
    print(table(records(given.output)))


def slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() or c == "." else " " for c in name.lower()).split())


def cell(name: str, sparsity: float, eval_tokens: int, peers: str | None) -> dict[str, Any]:
    """Prune, measure; what the record of a cell holds."""
    options = dict(part.split("=") for part in CELLS[name].split())
    set_seed(0)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        if name == "dense":
            small: PreTrainedModel = load_model(resolve_model(MODEL))
        elif "peer" in options:
            small = by_peer(options["peer"], sparsity, Path(folder), str(peers))
        else:
            small = by_us(options, sparsity, Path(folder))
        seconds = time.perf_counter() - started
        small = widened(small, compute_dtype("auto"))
    return {
        "cell": name, "options": options, "sparsity": 0.0 if name == "dense" else sparsity,
        "parameters": parameter_count(small), "seconds": seconds, "calibration_tokens": CALIBRATION,
        "perplexity": {text: measured(small, file, eval_tokens) for text, file in TEXTS.items()},
        "environment": environment(),
    }  # fmt: skip


def job_of(options: dict[str, str], sparsity: float, folder: Path) -> PruneJob:
    """A checked run of `secateur prune --steps 0`."""
    model = str(with_biases(folder / "biased")) if options.get("compensate") == "bias" else MODEL
    values = {
        "model": model, "data": [str(data("c4_calib.jsonl"))], "output": str(folder / "out"), "steps": 0,
        "sparsity": sparsity, "seq_len": SEQ_LEN, "batch_size": BATCH, "calibration_tokens": CALIBRATION, **options,
    }  # fmt: skip
    return prepare(build_values(PruneConfig, read_with_recipe(values, None, "prune")))


def by_us(options: dict[str, str], sparsity: float, folder: Path) -> PreTrainedModel:
    """The model as the checkpoint of such a run holds it."""
    job = job_of(options, sparsity, folder)
    dtype = compute_dtype("auto")
    base = load_base(job, dtype)
    model, pruner, *_ = fine_tune_and_prune(base, job, dtype, Progress(job.total_steps))
    pruner.close()
    assert abs(pruner.sparsity - sparsity) < 0.005
    shapes = pruner.units.shapes_after(pruner.keep)
    tensors = merged_and_sliced(model, pruner.live, pruner.live_keep)
    small = build_small(base.config, pruner.units.family, shapes, tensors, torch.float32, job.config.model_class)
    round_(small, checkpoint_dtype(job.model_config))
    return small


def by_peer(peer: str, sparsity: float, folder: Path, python: str) -> PreTrainedModel:
    """What another package makes of the dense model and the same tokens, with no more parameters than ours."""
    job = job_of({"cuts": "1"}, sparsity, folder)
    rows = [job.blocks[int(i)]["input_ids"] for batch in first_batches(job, job.scoring_batches) for i in batch]
    save_file({"tokens": torch.tensor(rows)}, folder / "tokens.safetensors")
    load_model(resolve_model(MODEL)).save_pretrained(folder / "dense")
    script = Path(__file__).with_name("training_free_peers.py")
    most = parameter_count(load_model(resolve_model(MODEL))) - job.budget.removed_params
    paths = [str(folder / part) for part in ("dense", "tokens.safetensors", "pruned")]
    subprocess.run([python, str(script), peer, *paths, str(most)], check=True)
    small: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder / "pruned", dtype="auto")
    assert parameter_count(small) <= most
    return small


def with_biases(folder: Path) -> Path:
    """The dense model with biases at zero, which compute nothing and can hold what FLAP puts there."""
    if not folder.exists():
        model = load_model(resolve_model(MODEL))
        config = type(model.config)(**{**model.config.to_dict(), "attention_bias": True, "mlp_bias": True})
        biased = type(model)(config).to(model.dtype)
        missing = biased.load_state_dict(model.state_dict(), strict=False).missing_keys
        assert all(name.endswith("bias") for name in missing)
        for module in biased.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        biased.tie_weights()
        biased.save_pretrained(folder)
        load_tokenizer(resolve_model(MODEL)).save_pretrained(folder)
    return folder


def data(name: str) -> Path:
    return Path(os.environ["SECATEUR_DATA"]) / name


@cache
def tokens_of(file: str, most: int) -> torch.Tensor:
    found, _ = evaluation_tokens(
        str(data(file)), load_tokenizer(resolve_model(MODEL)), max_tokens=most, seq_len=SEQ_LEN, bos="auto"
    )
    return found


def measured(model: PreTrainedModel, file: str, most: int) -> dict[str, Any]:
    found = perplexity(model, tokens_of(file, most), seq_len=SEQ_LEN, dtype=compute_dtype("auto"))
    print(f"{file}: {found.perplexity:.2f}", flush=True)
    return found.to_dict()


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]


def table(found: list[dict[str, Any]]) -> str:
    """A row for each cell; ratios are to FLAP's perplexity on held-out C4."""
    by_cell: dict[str, dict[float, dict[str, Any]]] = {}
    for record in found:
        by_cell.setdefault(record["cell"], {})[record["sparsity"]] = record
    sparsities = sorted({record["sparsity"] for record in found} - {0.0})
    level: Callable[[str, float], float | None] = lambda name, sparsity: (  # noqa: E731
        by_cell[name][sparsity]["perplexity"][DECIDES]["perplexity"] if sparsity in by_cell.get(name, {}) else None
    )
    rows = []
    for name in sorted(by_cell, key=list(CELLS).index):
        cells = [name]
        for sparsity in sparsities:
            record = by_cell[name].get(0.0 if name == "dense" else sparsity)
            ours, theirs = level(name, sparsity), level(AGAINST, sparsity)
            cells += [f"{record['perplexity'][text]['perplexity']:.1f}" if record else "" for text in TEXTS]
            cells.append(f"{ours / theirs:.2f}" if ours and theirs else "")
        rows.append(tuple(cells))
    header = ("", *(f"{s:.0%}: {what}" for s in sparsities for what in (*TEXTS, f"{DECIDES}, of FLAP's")))
    return markdown_table(rows, header)


if __name__ == "__main__":
    main()
