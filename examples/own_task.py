"""Prune a model while it learns a task of its own, beside the same fine-tune of the whole model.

    python examples/own_task.py                                  # which module is a function of, by its docstring?
    python examples/own_task.py --model ./my-llama --steps 240   # a folder or hub id, longer

The rows are made of the standard library, so there is nothing to fetch. Leaves runs/own_task/{train,dev}.jsonl,
runs/own_task/dense (fine-tuned as it is) and runs/own_task/half (half of it pruned meanwhile); both are ordinary
checkpoints. Takes 990 s on one core with another job beside it (AMD EPYC, bfloat16), and 2.3 GB.
"""

import argparse
import importlib
import inspect
import json
import random
from pathlib import Path

from secateur.cli import main
from secateur.data import embedded_model_dir

MODULES = ("ast", "decimal", "inspect", "logging", "os", "socket")
PLACE = Path("runs/own_task")

parser = argparse.ArgumentParser()
parser.add_argument("--model", help="folder or hub id (default: SmolLM2-135M-Instruct, which needs no hub)")
parser.add_argument("--steps", type=int, default=120)
args = parser.parse_args()


def docstrings(name: str) -> set[str]:
    """The first paragraphs of what a module has, and its classes, without the module's own name."""
    module = importlib.import_module(name)
    things = [thing for key, thing in vars(module).items() if not key.startswith("_") and callable(thing)]
    things += [part for thing in things if inspect.isclass(thing) for part in vars(thing).values() if callable(part)]
    said = {(inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ")[:160] for thing in things}
    return {words for words in said if len(words) > 20 and name not in words.lower()}


rows = [{"question": f"{words}\nModule:", "answer": name} for name in MODULES for words in sorted(docstrings(name))]
random.Random(0).shuffle(rows)
PLACE.mkdir(parents=True, exist_ok=True)
for part, some in (("dev", rows[:150]), ("train", rows[150:])):
    text = "".join(json.dumps(row) + "\n" for row in some)
    (PLACE / f"{part}.jsonl").write_text(text, encoding="utf-8")

model = args.model or str(embedded_model_dir(progress=print))
alike = f"--response-only --steps {args.steps} --batch-size 2 --seq-len 256 --lr 1e-3 --overwrite".split()
alike += ["--model", model, "--data", str(PLACE / "train.jsonl")]
main(["adapt", *alike, "--init-rank", "8", "--rank", "8", "--merge", "--output", str(PLACE / "dense")])
main(["prune", *alike, "--recipe", "stock", "--sparsity", "0.5", "--output", str(PLACE / "half")])
main(["eval", "--model", str(PLACE / "half"), "--against", str(PLACE / "dense"), "--answers", str(PLACE / "dev.jsonl")])
