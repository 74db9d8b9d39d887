"""Pruning inside the fine-tune for a task, beside the same fine-tune of the whole model.

    SECATEUR_DATA=/path/to/data python benchmarks/quality/own_tasks.py runs/own-tasks --tasks sst2 --seeds 1
    python benchmarks/quality/own_tasks.py runs/own-tasks --table

SmolLM2-135M-Instruct on SST-2, RTE, MRPC, CoLA (GLUE's train, rows of its dev) and GSM8K, as questions with an answer,
loss on answers alone, 240 steps of 2 x 256 tokens, rate 1e-3. Each model answers the dev rows (`secateur eval
--answers`); with `--speed` it is timed beside the whole model. A run that has its record is not made again.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from secateur.system.records import environment, markdown_table, write_json

MODEL = "smollm2-135m-instruct"
SENTENCE, PAIR = "Sentence: {sentence}", "Sentence 1: {sentence1}\nSentence 2: {sentence2}"
TASKS: dict[str, tuple[str, tuple[str, str]]] = {
    "sst2": ("Review: {sentence}\nSentiment:", ("negative", "positive")),
    "rte": (f"{PAIR}\nDoes the first sentence entail the second?", ("yes", "no")),
    "mrpc": (f"{PAIR}\nDo they say the same?", ("no", "yes")),
    "cola": (f"{SENTENCE}\nIs it grammatical?", ("no", "yes")),
}
"""Task -> question, and the answers that the labels 0 and 1 stand for."""
ALIKE = ["--steps", "240", "--batch-size", "2", "--seq-len", "256", "--lr", "1e-3", "--response-only"]
CONTENDERS: dict[str, list[str]] = {
    "untuned": [],
    "dense + LoRA": ["adapt", "--init-rank", "8", "--rank", "8", "--merge"],
    "defaults, 50 %": ["prune", "--sparsity", "0.5"],
    "best, 50 %": ["prune", "--recipe", "best", "--sparsity", "0.5"],
    "best, 70 %": ["prune", "--recipe", "best", "--sparsity", "0.7"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", nargs="+", default=[*TASKS, "gsm8k"], choices=[*TASKS, "gsm8k"])
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--limit", type=int, help="dev rows")
    parser.add_argument("--speed", action="store_true", help="also time each model beside the whole one")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--summary", type=Path, help="also write all records into one file")
    given = parser.parse_args()
    if not given.table:
        data = Path(os.environ.get("SECATEUR_DATA") or sys.exit("set SECATEUR_DATA to the folder of the data sets"))
        for task in given.tasks:
            rows_of(task, data, given.folder)
            for seed in given.seeds:
                for name in given.contenders:
                    if name != "untuned" or seed == given.seeds[0]:
                        run(task, name, seed, given)
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(given.folder.glob("*.record.json"))]
    print(markdown_table(*table(records)))
    if given.summary:
        write_json(given.summary, {"records": records, "environment": environment()})


def rows_of(task: str, data: Path, folder: Path) -> None:
    """The task's training and dev rows as questions with an answer."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, held_out in (("train", "train"), ("dev", "test" if task == "gsm8k" else "dev")):
        rows = [json.loads(line) for line in (data / f"{task}_{held_out}.jsonl").open(encoding="utf-8")]
        if task in TASKS:
            question, answers = TASKS[task]
            rows = [{"question": question.format(**row), "answer": answers[row["label"]]} for row in rows]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{task}.{part}.jsonl").write_text(text, encoding="utf-8")


def run(task: str, name: str, seed: int, given: argparse.Namespace) -> None:
    """Train, answer, time; write what came out."""
    stem = given.folder / f"{task}-{name.replace(' ', '').replace('%', '').replace(',', '-')}-{seed}"
    record = stem.with_name(stem.name + ".record.json")
    if record.is_file():
        return
    model = MODEL if name == "untuned" else str(stem)
    found: dict[str, Any] = {"task": task, "contender": name, "seed": seed, "steps": given.steps}
    if name != "untuned" and not (stem / "result.json").is_file():
        command = [*CONTENDERS[name], "--model", MODEL, "--data", f"{given.folder}/{task}.train.jsonl", *ALIKE]
        call(*command, "--steps", str(given.steps), "--seed", str(seed), "--output", str(stem))
    answers = ["--answers", f"{given.folder}/{task}.dev.jsonl", "--output", f"{stem}.eval.json", "--overwrite"]
    answers += ["--answer-after", "####"] if task == "gsm8k" else []
    call("eval", "--model", model, *answers, *(["--limit", str(given.limit)] if given.limit else []))
    evaluated = json.loads(Path(f"{stem}.eval.json").read_text(encoding="utf-8"))["models"][model]
    found |= {"parameters": evaluated["parameters"], "figure": next(iter(evaluated["tasks"].values()))}
    if name != "untuned" and given.speed:
        call("bench", "--model", model, "--against", MODEL, "--output", f"{stem}.bench.json", "--overwrite")
        found["bench"] = json.loads(Path(f"{stem}.bench.json").read_text(encoding="utf-8"))
    write_json(record, found)


def call(*command: str) -> None:
    print("secateur", *command, flush=True)
    subprocess.run([sys.executable, "-m", "secateur", *command], check=True)


def table(records: list[dict[str, Any]]) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """A row for each contender: accuracy by task, the mean of the four classifications."""
    tasks = [task for task in (*TASKS, "gsm8k") if any(record["task"] == task for record in records)]
    rows = []
    for name in CONTENDERS:
        values = {
            task: [r["figure"]["value"] for r in records if (r["task"], r["contender"]) == (task, name)]
            for task in tasks
        }
        means = [statistics.fmean(values[task]) for task in TASKS if values.get(task)]
        cells = [f"{statistics.fmean(found):.1%} ({len(found)})" if found else "" for found in values.values()]
        rows.append((name, *cells, f"{statistics.fmean(means):.1%}" if len(means) == len(TASKS) else ""))
    return rows, ("contender", *(f"{task} (seeds)" for task in tasks), "mean of four")


if __name__ == "__main__":
    main()
