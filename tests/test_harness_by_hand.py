"""Our local tasks against the harness's own definitions, called by hand on the same real rows.

The harness's YAML files speak of the hub's rows, so the shared rows are put back into the hub's form; prompts, scoring
and few-shot examples are then all the harness's.
"""

import json
import random
from pathlib import Path

import pytest
import torch
import yaml
from test_harness import options
from tiny import tiny_llama, tiny_tokenizer

from secateur.harness import run_tasks

lm_eval = pytest.importorskip("lm_eval")


def read(path: Path, count: int | None = None) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:count]]


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def shipped(path: str, files: dict[str, str]) -> dict:
    """A task as the harness defines it, on local rows."""
    source = Path(lm_eval.__file__).parent / "tasks" / path
    task = yaml.safe_load(source.read_text())
    if include := task.pop("include", None):
        task = yaml.safe_load((source.parent / include).read_text()) | task
    for key in ("tag", "dataset_name", "training_split", "validation_split"):
        task.pop(key, None)
    return task | {"dataset_path": "json", "dataset_kwargs": {"data_files": files}}


def long_model():
    """One token a character, so prompts with five examples need some room."""
    model = tiny_llama(layers=1, vocab=128)
    model.config.max_position_embeddings = 8192
    return model


def by_hand(tasks: list[dict], num_fewshot: int | None) -> tuple[dict, dict[str, list[str]]]:
    """The harness's results and the prompts of its requests by task."""
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=long_model(), tokenizer=tiny_tokenizer(chat_template=False), batch_size=1,
                 softmax_dtype=torch.float32)  # fmt: skip
    found = lm_eval.simple_evaluate(
        model=model, tasks=tasks, num_fewshot=num_fewshot, log_samples=True, bootstrap_iters=0,
        task_manager=lm_eval.tasks.TaskManager(include_defaults=False),
    )  # fmt: skip
    prompts = {
        name: [arguments[0] for sample in rows for arguments in sample["arguments"]]
        for name, rows in found["samples"].items()
    }
    return found, prompts


def ours(folder: Path, name: str, num_fewshot: int | None):
    found, _ = run_tasks(
        long_model(), tiny_tokenizer(chat_template=False), options(folder, name, num_fewshot=num_fewshot), torch.float32
    )
    return found[name]


def test_arc_easy(data_dir, tmp_path) -> None:
    rows = [row for row in read(data_dir / "arc_easy.jsonl", 40) if len(row["query"]) < 400]
    write(tmp_path / "arc_easy.jsonl", rows)
    hub = [
        {
            "question": row["query"].removeprefix("Question: "),
            "choices": {"text": row["choices"], "label": list("ABCDE")[: len(row["choices"])]},
            "answerKey": "ABCDE"[row["gold"]],
        }
        for row in rows
    ]
    task = shipped("arc/arc_easy.yaml", {"test": write(tmp_path / "hub.jsonl", hub)})
    expected, _ = by_hand([task], None)
    figure = ours(tmp_path, "arc_easy", None)
    theirs = [sample["acc_norm"] for sample in expected["samples"]["arc_easy"]]
    assert list(figure.row_values) == theirs
    assert 0 < sum(theirs) < len(theirs), "rows that are all right or all wrong compare nothing"
    metrics = {key: value for key, value in expected["results"]["arc_easy"].items() if key in figure.metrics}
    assert figure.metrics == pytest.approx(metrics)


def test_mmlu_with_five_examples(data_dir, tmp_path) -> None:
    subjects = ("abstract_algebra", "anatomy")
    contents = {}
    for split in ("dev", "test"):
        rows = [row for row in read(data_dir / f"mmlu_{split}.jsonl") if row["subject"] in subjects]
        rows = [row for s in subjects for row in [r for r in rows if r["subject"] == s][: 5 if split == "dev" else 8]]
        write(tmp_path / f"mmlu_{split}.jsonl", rows)
        contents[split] = rows
    tasks = []
    for subject in subjects:
        files = {}
        for split, rows in contents.items():
            hub = [{"question": r["query"], "choices": r["choices"], "answer": r["gold"], "subject": subject}
                   for r in rows if r["subject"] == subject]  # fmt: skip
            files[split] = write(tmp_path / f"hub-{subject}-{split}.jsonl", hub)
        tasks.append(shipped(f"mmlu/default/mmlu_{subject}.yaml", files))
    expected, prompts = by_hand(tasks, 5)
    figure = ours(tmp_path, "mmlu", 5)
    theirs = [sample["acc"] for subject in subjects for sample in expected["samples"][f"mmlu_{subject}"]]
    assert list(figure.row_values) == theirs
    assert 0 < sum(theirs) < len(theirs)
    assert all(prompt.count("Answer:") == 6 for rows in prompts.values() for prompt in rows)


def test_gsm8k(data_dir, tmp_path, monkeypatch) -> None:
    for name, count in (("test", 12), ("train", 60)):
        write(tmp_path / f"gsm8k_{name}.jsonl", read(data_dir / f"gsm8k_{name}.jsonl", count))
    files = {split: str(tmp_path / f"gsm8k_{split}.jsonl") for split in ("test", "train")}
    golds = {row["question"]: row["answer"] for row in read(tmp_path / "gsm8k_test.jsonl")}
    asked: list[list[str]] = []

    def generate_until(self, requests, disable_tqdm=False):
        """What a fair model might say: right, right in other words, right without the marks, or wrong."""
        asked.append([request.args[0] for request in requests])
        answers = []
        for request in requests:
            (question,) = [q for q in golds if request.args[0].endswith(f"Question: {q}\nAnswer:")]
            number = golds[question].split("#### ")[1]
            chosen = random.Random(question).choice(["#### {}", "It is #### {}.", "so {} in all", "#### {}1"])
            answers.append(chosen.format(number))
        return answers

    from lm_eval.models.huggingface import HFLM

    monkeypatch.setattr(HFLM, "generate_until", generate_until)
    expected, _ = by_hand([shipped("gsm8k/gsm8k.yaml", files)], None)
    figure = ours(tmp_path, "gsm8k", None)
    results = expected["results"]["gsm8k"]
    assert figure.metrics == pytest.approx({key: results[key] for key in figure.metrics})
    assert 0 < figure.value < 1
    assert set(figure.metrics) == {"exact_match,strict-match", "exact_match,flexible-extract"}
    assert figure.metrics["exact_match,strict-match"] != figure.metrics["exact_match,flexible-extract"]
    theirs, our_prompts = asked
    assert sorted(theirs) == sorted(our_prompts)
    assert all(prompt.count("Question:") == 6 for prompt in theirs)
