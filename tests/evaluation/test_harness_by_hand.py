"""Our local tasks against the harness's own definitions, called by hand on the same real rows.

The harness's YAML files speak of the hub's rows, so the shared rows are put back into the hub's form; prompts, scoring
and few-shot examples are then all the harness's.
"""

import importlib.util
import json
import random
from pathlib import Path

import pytest
import torch
import yaml
from tiny import tiny_llama, tiny_tokenizer

from secateur.evaluation.figures import SEVEN_TASKS
from secateur.evaluation.harness import run_tasks
from secateur.evaluation.local_tasks import definitions
from tests.evaluation.test_harness import options

lm_eval = pytest.importorskip("lm_eval")


def read(path: Path, count: int | None = None) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:count]]


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


class Functions(yaml.SafeLoader):
    """Reads the harness's `!function module.name` as that function."""

    folder: Path

    def function(self, node: yaml.Node) -> object:
        module, name = str(node.value).rsplit(".", 1)
        spec = importlib.util.spec_from_file_location(module, self.folder / f"{module}.py")
        found = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
        return getattr(found, name)


Functions.add_constructor("!function", Functions.function)


def definition(path: str) -> dict:
    """A task as the harness defines it."""
    source = Path(lm_eval.__file__).parent / "tasks" / path
    loader = type("Loader", (Functions,), {"folder": source.parent})
    task = yaml.load(source.read_text(), loader)
    if include := task.pop("include", None):
        task = yaml.load((source.parent / include).read_text(), loader) | task
    return task


def shipped(path: str, files: dict[str, str]) -> dict:
    """The same on local rows."""
    task = definition(path)
    for key in ("tag", "dataset_name", "training_split", "validation_split"):
        task.pop(key, None)
    return task | {"dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test"}


def long_model():
    """One token a character, so prompts with five examples need some room."""
    model = tiny_llama(layers=1, vocab=128)
    model.config.max_position_embeddings = 8192
    return model


def by_hand(tasks: list[dict], num_fewshot: int | None, model=None) -> tuple[dict, dict[str, list[str]]]:
    """The harness's results and the prompts of its requests by task."""
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=model or long_model(), tokenizer=tiny_tokenizer(chat_template=False), batch_size=1,
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


def ours(folder: Path, name: str, num_fewshot: int | None, model=None, **changed):
    given = options(folder, name, num_fewshot=num_fewshot, **changed)
    found, _ = run_tasks(model or long_model(), tiny_tokenizer(chat_template=False), given, torch.float32)
    return found[name]


def arc(row: dict) -> dict:
    labels = list("ABCDE")[: len(row["choices"])]
    return {
        "question": row["query"].removeprefix("Question: "),
        "choices": {"text": row["choices"], "label": labels},
        "answerKey": labels[row["gold"]],
    }


def boolq(row: dict) -> dict:
    passage, _, question = row["query"].removeprefix("Passage: ").rpartition("\nQuestion: ")
    assert row["choices"] == ["no", "yes"]
    return {"passage": passage, "question": question.removesuffix("?"), "label": row["gold"]}


def piqa(row: dict) -> dict:
    goal = row["query"].removeprefix("Question: ").removesuffix("\n")
    return {"goal": goal, "sol1": row["choices"][0], "sol2": row["choices"][1], "label": row["gold"]}


def hellaswag(row: dict) -> dict:
    activity, _, context = row["query"].partition(": ")
    return {"activity_label": activity, "ctx_a": context, "ctx_b": "", "endings": row["choices"],
            "label": str(row["gold"])}  # fmt: skip


def winogrande(row: dict) -> dict:
    one, two = row["context_options"]
    alike = next(i for i, (a, b) in enumerate(zip(one + "\0", two + "\1", strict=False)) if a != b)
    shared = one[: one.rindex(" ", 0, alike + 1) + 1]
    one, two = (option.removeprefix(shared) for option in row["context_options"])
    return {"sentence": f"{shared}_ {row['continuation']}", "option1": one, "option2": two,
            "answer": str(row["gold"] + 1)}  # fmt: skip


def openbookqa(row: dict) -> dict:
    return {"question_stem": row["query"], **{key: value for key, value in arc(row).items() if key != "question"}}


HUB = {  # task -> the harness's definition, our file, our row in the hub's form
    "arc_easy": ("arc/arc_easy.yaml", "arc_easy", arc),
    "arc_challenge": ("arc/arc_challenge.yaml", "arc_challenge", arc),
    "boolq": ("super_glue/boolq/default.yaml", "boolq", boolq),
    "piqa": ("piqa/piqa.yaml", "piqa", piqa),
    "hellaswag": ("hellaswag/hellaswag.yaml", "hellaswag", hellaswag),
    "winogrande": ("winogrande/default.yaml", "winogrande", winogrande),
    "openbookqa": ("openbookqa/openbookqa.yaml", "openbook_qa", openbookqa),
}


@pytest.fixture
def asked(monkeypatch) -> list[list[tuple[str, str]]]:
    """The (context, continuation) pairs of every run, sorted."""
    from lm_eval.models.huggingface import HFLM

    real, seen = HFLM.loglikelihood, []

    def noted(self, requests, *arguments, **options):
        seen.append(sorted(request.args for request in requests))
        return real(self, requests, *arguments, **options)

    monkeypatch.setattr(HFLM, "loglikelihood", noted)
    return seen


@pytest.mark.parametrize("name", HUB)
def test_multiple_choice(name, data_dir, tmp_path, asked) -> None:
    path, file, to_hub = HUB[name]
    rows = [row for row in read(data_dir / f"{file}.jsonl", 200) if len(json.dumps(row)) < 700][:12]
    write(tmp_path / f"{file}.jsonl", rows)
    task = shipped(path, {"test": write(tmp_path / "hub.jsonl", [to_hub(row) for row in rows])})
    expected, _ = by_hand([task], None)
    figure = ours(tmp_path, name, None)
    theirs, our_requests = asked
    assert theirs == our_requests
    assert len(theirs) >= 2 * len(rows)
    right = [sample[figure.metric] for sample in expected["samples"][name]]
    assert list(figure.row_values) == right
    assert 0 < sum(right) < len(right), "rows that are all right or all wrong compare nothing"
    results = expected["results"][name]
    known = {key: value for key, value in results.items() if "," in key and "stderr" not in key}
    assert figure.metrics == pytest.approx(known)
    assert figure.metric == SEVEN_TASKS[name]
    assert (figure.version, figure.num_fewshot) == (expected["versions"][name], expected["n-shot"][name])


def test_humaneval_asks_as_the_harness_does(data_dir, tmp_path, monkeypatch) -> None:
    """Its own scoring is fetched from the hub, so prompts and settings are compared, and what the tests are."""
    from lm_eval.models.huggingface import HFLM

    monkeypatch.setitem(Functions.yaml_constructors, "!function", lambda loader, node: str(node.value))
    rows = read(data_dir / "human_eval.jsonl", 3)
    task = shipped("humaneval/humaneval.yaml", {"test": write(tmp_path / "human_eval.jsonl", rows)})
    for key in ("filter_list", "unsafe_code", "metric_list"):
        task.pop(key)
    task |= {"metric_list": [{"metric": "tests", "aggregation": "mean", "higher_is_better": True}],
             "process_results": lambda row, answers: {"tests": 0}}  # fmt: skip
    asked: list[list] = []

    def generate_until(self, requests, disable_tqdm=False):
        asked.append(sorted((request.args[0], json.dumps(request.args[1], sort_keys=True)) for request in requests))
        return [""] * len(requests)

    monkeypatch.setattr(HFLM, "generate_until", generate_until)
    expected, _ = by_hand([task], None)
    figure = ours(tmp_path, "humaneval", None, allow_code_execution=True)
    theirs, our_requests = asked
    assert theirs == our_requests
    assert len(theirs) == 3
    assert (figure.version, figure.num_fewshot) == (expected["versions"]["humaneval"], 0)
    assert definition("humaneval/humaneval.yaml")["doc_to_target"] == definitions()["humaneval"]["doc_to_target"]


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


def test_gsm8k_really_generated(data_dir, tmp_path, monkeypatch) -> None:
    """Greedy answers of the padded model in batches of four are those of the harness's own, one at a time."""
    from lm_eval.models.huggingface import HFLM

    model, lengths = long_model(), []
    with torch.no_grad():
        model.lm_head.weight[[tiny_tokenizer().convert_tokens_to_ids(c) for c in "0123456789"]] *= 4  # it likes digits
    rows = [row for row in read(data_dir / "gsm8k_test.jsonl", 40) if len(row["question"]) < 300][:5]
    short = [row for row in read(data_dir / "gsm8k_train.jsonl", 200) if len(row["question"] + row["answer"]) < 300]
    files = {"train": write(tmp_path / "gsm8k_train.jsonl", short[:8]),
             "test": write(tmp_path / "gsm8k_test.jsonl", rows)}  # fmt: skip
    real = HFLM._model_generate

    def brief(self, context, max_length, stop, **kwargs):
        lengths.append(context.shape[1])
        return real(self, context, context.shape[1] + 24, stop, **kwargs)

    monkeypatch.setattr(HFLM, "_model_generate", brief)
    said = by_hand([shipped("gsm8k/gsm8k.yaml", files)], 2, model)[0]["samples"]["gsm8k"]
    found = {sample["doc"]["question"]: sample["filtered_resps"][0] for sample in said
             if sample["filter"] == "flexible-extract"}  # fmt: skip
    assert len(set(found.values())) > 1
    for row in rows[:2]:  # so that some are right
        row["answer"] = f"#### {found[row['question']]}"
    write(tmp_path / "gsm8k_test.jsonl", rows)
    expected, _ = by_hand([shipped("gsm8k/gsm8k.yaml", files)], 2, model)
    lengths.clear()
    figure = ours(tmp_path, "gsm8k", 2, model)
    results = expected["results"]["gsm8k"]
    assert figure.metrics == pytest.approx({key: results[key] for key in figure.metrics})
    assert figure.metrics["exact_match,flexible-extract"] >= 0.4
    assert all(length % 64 == 0 for length in lengths), "a kernel would be compiled for each length"
    assert len(lengths) == 2
