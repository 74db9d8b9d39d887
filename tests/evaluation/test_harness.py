"""Tasks on local rows: the harness's figures, checked against a loop by hand."""

import hashlib
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny import save_tiny, tiny_llama, tiny_tokenizer
from tokenizers import processors

from secateur.cli import main
from secateur.evaluation.figures import (
    SEVEN_TASKS,
    TaskFigure,
    joined,
    paired_average,
    paired_rows,
    seven_task_average,
)
from secateur.evaluation.harness import TaskOptions, _manager, check_tasks, run_tasks, tokenizer_faults
from secateur.evaluation.local_tasks import definitions
from secateur.evaluation.sandbox import Outcome
from secateur.system.errors import InputError

ALL = ("piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa", "boolq", "mmlu", "gsm8k")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A few rows of each task in the layout of the shared files."""
    pytest.importorskip("lm_eval")
    folder = tmp_path_factory.mktemp("rows")
    choice = [{"query": f"Question: what is {i}?", "choices": ["one", f"the number {i}"], "gold": i % 2}
              for i in range(6)]  # fmt: skip
    subjects = [{"subject": s, "query": f"{s} {i}?", "choices": ["a", "b", "c", "d"], "gold": i % 4}
                for s in ("law", "art_history") for i in range(5)]  # fmt: skip
    sums = [{"question": f"{i} and {i}?", "answer": f"#### {2 * i}"} for i in range(6)]
    contents = {
        "piqa": [row | {"query": row["query"] + "\n"} for row in choice],
        **dict.fromkeys(("hellaswag", "arc_easy", "arc_challenge", "openbook_qa"), choice),
        "boolq": [row | {"query": "Passage: a b.\n" + row["query"], "choices": ["no", "yes"]} for row in choice],
        "winogrande": [{"context_options": [f"{i} was Ann", f"{i} was Bo"], "continuation": "who ran.", "gold": i % 2}
                       for i in range(6)],
        "mmlu_test": subjects, "mmlu_dev": subjects, "gsm8k_test": sums, "gsm8k_train": sums,
    }  # fmt: skip
    for name, lines in contents.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def options(folder, *names, **changed) -> TaskOptions:
    return TaskOptions(**{"names": names, "num_fewshot": 0, "limit": None, "folder": folder, "batch_size": 4} | changed)


def log_likelihood(model, tokenizer, context: str, continuation: str) -> float:
    ids = tokenizer(context + continuation, return_tensors="pt", add_special_tokens=False)["input_ids"]
    start = len(tokenizer(context, add_special_tokens=False)["input_ids"])
    with torch.inference_mode():
        log_probs = model(ids).logits[0].log_softmax(-1)
    return sum(float(log_probs[i - 1, ids[0, i]]) for i in range(start, ids.shape[1]))


def test_figures_equal_a_loop_by_hand(rows) -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer(chat_template=False)
    found, warnings = run_tasks(
        model, tokenizer, options(rows, "hellaswag", "piqa", "winogrande", "boolq"), torch.float32
    )
    expected: dict[str, list[float]] = {}
    for name in ("hellaswag", "piqa", "winogrande", "boolq"):
        for line in (rows / f"{name}.jsonl").read_text().splitlines():
            row = json.loads(line)
            if name == "winogrande":
                pairs, lengths = [(start, " " + row["continuation"]) for start in row["context_options"]], [1, 1]
            else:
                context = row["query"].strip().removeprefix("Passage: ") + ("" if name == "hellaswag" else "\nAnswer:")
                pairs = [(context, " " + choice) for choice in row["choices"]]
                lengths = [len(choice) for choice in row["choices"]] if name == "hellaswag" else [1, 1]
            sums = [log_likelihood(model, tokenizer, *pair) / n for pair, n in zip(pairs, lengths, strict=True)]
            expected.setdefault(name, []).append(float(sums.index(max(sums)) == row["gold"]))
    assert {name: list(figure.row_values) for name, figure in found.items()} == expected
    assert {name: figure.metric for name, figure in found.items()} == {
        "hellaswag": "acc_norm", "piqa": "acc", "winogrande": "acc", "boolq": "acc",
    }  # fmt: skip
    assert found["piqa"].value == pytest.approx(sum(expected["piqa"]) / 6)
    assert (found["piqa"].rows, found["piqa"].num_fewshot, found["piqa"].version) == (6, 0, 1.0)
    assert set(found["piqa"].metrics) == {"acc,none", "acc_norm,none"}
    assert "lm-evaluation-harness 0.4" in found["piqa"].source
    assert found["piqa"].files == {"piqa.jsonl": hashlib.sha256((rows / "piqa.jsonl").read_bytes()).hexdigest()}
    assert warnings == []


def test_a_tokenizer_that_ends_texts_gives_the_same_figures(rows) -> None:
    """Its end would be scored as part of each answer, and prompts that are continued would end with it."""
    from secateur.evaluation.harness_model import padded_model

    ending = tiny_tokenizer(chat_template=False)
    post = processors.TemplateProcessing(single="$A <|end|>", special_tokens=[("<|end|>", 0)])
    ending.backend_tokenizer.post_processor = post
    given = options(rows, "piqa", "gsm8k", num_fewshot=None, limit=3)
    (plain, _), (other, _) = (
        run_tasks(tiny_llama(seed=2), tokenizer, given, torch.float32)
        for tokenizer in (tiny_tokenizer(chat_template=False), ending)
    )
    assert {name: figure.metrics for name, figure in plain.items()} == {k: f.metrics for k, f in other.items()}
    wrapped = padded_model(tiny_llama(), ending, batch_size=2, dtype=torch.float32, multiple=1)
    ids, mask = wrapped.tok_batch_encode(["abcd", "ab"])
    assert wrapped.tok_encode("abcd") == ids[0].tolist()
    assert (ids[1, 2:].tolist(), mask.tolist()) == (wrapped.tok_encode("ab"), [[1, 1, 1, 1], [0, 0, 1, 1]])


def test_padding_changes_nothing_and_makes_few_shapes(rows) -> None:
    from secateur.evaluation.harness_model import padded_model

    model, shapes = tiny_llama(), []
    model.register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape[1]))
    tokenizer = tiny_tokenizer(chat_template=False)
    ids = torch.randint(3, 99, (2, 70), generator=torch.Generator().manual_seed(0))
    one, many = (
        padded_model(model, tokenizer, batch_size=2, dtype=torch.float32, multiple=m)._model_call(ids) for m in (1, 64)
    )
    assert shapes == [70, 128]
    assert one.shape == many.shape
    assert torch.allclose(one, many, atol=1e-5)


def test_every_task_runs_and_mmlu_is_one_figure(rows) -> None:
    model, tokenizer = tiny_llama(layers=1), tiny_tokenizer(chat_template=False)
    found, _ = run_tasks(model, tokenizer, options(rows, *ALL, num_fewshot=None, limit=2), torch.float32)
    assert set(found) == set(ALL)
    assert found["mmlu"].rows == 4  # two of each subject
    assert found["gsm8k"].num_fewshot == 5
    assert found["gsm8k"].metric == "exact_match (strict-match)"
    assert all(len(figure.row_values) == figure.rows for figure in found.values())
    assert all(figure.stderr is not None for figure in found.values())


def test_examples_of_mmlu_are_of_the_same_subject(rows) -> None:
    model, seen = tiny_llama(layers=1), []
    tokenizer = tiny_tokenizer(chat_template=False)
    model.register_forward_pre_hook(lambda module, args: seen.extend(tokenizer.batch_decode(args[0])))
    _, warnings = run_tasks(model, tokenizer, options(rows, "mmlu", num_fewshot=2, limit=1), torch.float32)
    assert warnings == []
    start = "The following are multiple choice questions (with answers) about art history.\n\nart_history 0?\nA. a"
    art, law = ([text for text in seen if subject in text] for subject in ("art_history", "law"))
    assert art
    assert all(text.startswith(start) and text.count("art_history") == 3 for text in art)
    assert law
    assert all("art_history" not in text for text in law)


def test_a_row_is_never_its_own_example(rows) -> None:
    model, seen = tiny_llama(layers=1), []
    tokenizer = tiny_tokenizer(chat_template=False)
    model.register_forward_pre_hook(lambda module, args: seen.extend(tokenizer.batch_decode(args[0])))
    _, warnings = run_tasks(model, tokenizer, options(rows, "piqa", num_fewshot=3), torch.float32)
    assert "the examples in the prompts of piqa are other rows of the same file" in warnings[0]
    assert len(seen) == 12
    for prompt in seen:
        questions = re.findall(r"what is (\d)", prompt)
        assert len(questions) == len(set(questions)) == 4


def test_prompts_that_fill_the_context_are_told(rows, tmp_path) -> None:
    row = {"query": "Passage: " + "word " * 200 + "\nQuestion: so?", "choices": ["no", "yes"], "gold": 0}
    (tmp_path / "boolq.jsonl").write_text(json.dumps(row) + "\n")
    model, tokenizer = tiny_llama(layers=1), tiny_tokenizer(chat_template=False)
    _, warnings = run_tasks(model, tokenizer, options(tmp_path, "boolq"), torch.float32)
    assert "1 prompts of the tasks did not fit into the context of 512 tokens" in warnings[0]


def test_a_prompt_that_just_fits_is_none_that_was_cut(tmp_path) -> None:
    model, tokenizer = tiny_llama(layers=1), tiny_tokenizer(chat_template=False)
    for length, cut in ((513, 0), (514, 1)):  # the last token is only predicted
        query = "Passage: ".ljust(9 + length - len("\nAnswer: yes"), "a")
        row = {"query": query, "choices": ["no", "yes"], "gold": 0}
        (tmp_path / "boolq.jsonl").write_text(json.dumps(row) + "\n")
        _, warnings = run_tasks(model, tokenizer, options(tmp_path, "boolq"), torch.float32)
        assert len(warnings) == cut, length


def test_paired_rows_and_joined_tasks() -> None:
    def figure(values: list[float]) -> TaskFigure:
        mean = sum(values) / len(values)
        return TaskFigure("acc", mean, 0.1, len(values), 0, 1.0, "", {}, {"acc,none": mean}, tuple(values))

    found = paired_rows(figure([1, 0, 1, 1]), figure([1, 1, 1, 0]))
    assert found == {"difference": 0.0, "stderr": pytest.approx(0.8165 / 2, rel=1e-3), "within_noise": None}
    assert paired_rows(figure([1, 0] * 10), figure([0, 1] * 10))["within_noise"] is True
    assert paired_rows(figure([1] * 19 + [0]), figure([0] * 19 + [1]))["within_noise"] is False
    assert paired_rows(figure([1, 0]), figure([1])) is None
    both = joined([figure([1, 1, 1, 0]), figure([0, 0])])
    assert both.value == pytest.approx(0.5)
    assert both.stderr == pytest.approx((0.3 / 6) ** 0.5)  # variance 0.3 over six rows
    assert both.rows == 6


def test_the_seven_task_average() -> None:
    def figure(metric: str, value: float, rows: list[float], shots: int = 0) -> TaskFigure:
        return TaskFigure(metric, value, 0.07, len(rows), shots, 1.0, "", {}, {}, tuple(rows))

    dense = {
        name: figure(metric, 0.5 + i / 100, [1.0, 0.0] * 6) for i, (name, metric) in enumerate(SEVEN_TASKS.items())
    }
    average = seven_task_average({"mmlu": figure("acc", 0, [0.0]), **dense})
    assert average["value"] == pytest.approx(0.53)
    assert average["stderr"] == pytest.approx(0.07 / 7**0.5)
    assert average["rows"] == 84
    assert (average["metrics"]["piqa"], average["metrics"]["hellaswag"]) == ("acc", "acc_norm")
    pruned = {name: figure(f.metric, f.value - 1 / 12, [0.0, *f.row_values[1:]]) for name, f in dense.items()}
    paired = paired_average(pruned, dense)
    assert paired["difference"] == pytest.approx(-1 / 12)
    assert paired["stderr"] == pytest.approx(1 / 12 / 7**0.5)  # of each task 1 / 12, one row of twelve differing
    assert paired["within_noise"] is False
    for changed in ({name: f for name, f in dense.items() if name != "piqa"},
                    dense | {"piqa": figure("acc_norm", 0.5, [1.0])},
                    dense | {"piqa": figure("acc", 0.5, [1.0], shots=5)}):  # fmt: skip
        assert seven_task_average(changed) is None
        assert paired_average(changed, dense) is None
    assert paired_average(dense | {"piqa": figure("acc", 0.5, [1.0])}, dense) is None
    no_boolq = {name: f for name, f in pruned.items() if name != "boolq"}  # the first of the seven: 0.50 dense
    assert seven_task_average(no_boolq, without="boolq")["value"] == pytest.approx(0.535 - 1 / 12)
    six = paired_average(no_boolq, dense, without="boolq")
    assert six["difference"] == pytest.approx(-1 / 12)
    assert six["stderr"] == pytest.approx(1 / 12 / 6**0.5)


def test_a_group_of_the_harness_is_one_figure() -> None:
    from secateur.evaluation.harness import _figures

    def samples(values: list[int]) -> list[dict]:
        return [{"filter": "none", "acc": value, "doc": {"query": "a", "choices": ["b"]}} for value in values]

    found = {
        "results": {
            "mmlu": {"acc,none": 0.5, "acc_stderr,none": 0.2}, "mmlu_stem": {"acc,none": 0.5},
            "mmlu_law": {"acc,none": 0.75, "acc_stderr,none": 0.1}, "mmlu_art": {"acc,none": 0.0},
            "piqa": {"acc,none": 1.0},
        },
        "samples": {"mmlu_law": samples([1, 1, 1, 0]), "mmlu_art": samples([0, 0]), "piqa": samples([1])},
        "groups": {"mmlu": {}, "mmlu_stem": {}},
        "group_subtasks": {"mmlu": ["mmlu_stem", "mmlu_art"], "mmlu_stem": ["mmlu_law"]},
        "n-samples": {name: {"effective": n} for name, n in (("mmlu_law", 4), ("mmlu_art", 2), ("piqa", 1))},
        "n-shot": dict.fromkeys(("mmlu", "mmlu_law", "mmlu_art", "piqa"), 5),
        "versions": {"mmlu": 2, "mmlu_law": 1.0, "mmlu_art": 1.0, "piqa": 1.0},
    }  # fmt: skip
    figures = _figures(found, options(None, "mmlu", "piqa"))
    assert set(figures) == {"mmlu", "piqa"}
    mmlu = figures["mmlu"]
    assert (mmlu.value, mmlu.stderr, mmlu.rows, mmlu.version) == (0.5, 0.2, 6, 2)
    assert mmlu.row_values == (1, 1, 1, 0, 0, 0)
    assert mmlu.row_texts == ("a b",) * 6
    assert set(_figures(found, options(None, "mmlu", "mmlu_law", "piqa"))) == {"mmlu", "mmlu_law", "piqa"}


@pytest.mark.parametrize(
    ("names", "changed", "reason"),
    [
        (("mmlu",), {"num_fewshot": 9}, "exceeds the 5 that are available"),
        (("humaneval",), {"allow_code_execution": True}, "must be less than model's maximum sequence length"),
        (("broken",), {}, "cannot run them"),
        (("unlike",), {}, "cannot run them"),
    ],
)
def test_what_the_harness_cannot_run_is_one_message(rows, tmp_path, monkeypatch, names, changed, reason) -> None:
    for path in rows.glob("mmlu*.jsonl"):
        (tmp_path / path.name).write_text(path.read_text())
    code_rows(tmp_path, [""])
    (tmp_path / "piqa.jsonl").write_text('{"query": "a", "choices": ["b", "c"], "gold": 0}\n{"query": ')
    (tmp_path / "arc_easy.jsonl").write_text('{"question": "a", "choices": ["b", "c"]}\n')
    names = {"broken": ("piqa",), "unlike": ("arc_easy",)}.get(names[0], names)
    model = tiny_llama(layers=1)
    with pytest.raises(InputError, match=reason):
        run_tasks(model, tiny_tokenizer(chat_template=False), options(tmp_path, *names, **changed), torch.float32)


def test_rows_are_looked_at_before_a_model_is_loaded(rows, tmp_path) -> None:
    check_tasks(options(rows, *ALL))
    for path in rows.glob("*.jsonl"):  # as other systems write them, or as one list
        (tmp_path / path.name).write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    lines = (rows / "piqa.jsonl").read_text().splitlines()
    (tmp_path / "piqa.jsonl").write_text("[" + ",\n".join(lines) + "]")
    check_tasks(options(tmp_path, *ALL))
    model, tokenizer = tiny_llama(layers=1), tiny_tokenizer(chat_template=False)
    found = [run_tasks(model, tokenizer, options(folder, "mmlu", "piqa", limit=2), torch.float32)[0]
             for folder in (rows, tmp_path)]  # fmt: skip
    assert found[0]["mmlu"].metrics == found[1]["mmlu"].metrics
    assert found[0]["piqa"].row_texts == found[1]["piqa"].row_texts
    (tmp_path / "piqa.jsonl").write_text(
        "[" + ",\n".join([*lines, '{"query": 1, "choices": ["a", ""], "gold": 0}'] * 2)
    )
    with pytest.raises(InputError, match=r"piqa\.jsonl is not valid JSON"):
        check_tasks(options(tmp_path, "piqa"))
    (tmp_path / "piqa.jsonl").write_text("\n".join([*lines, '{"query": 1, "choices": ["a", ""], "gold": 0}'] * 2))
    with pytest.raises(InputError, match=r"piqa\.jsonl:7 has \"\" as number 2 of 'choices'.*1 other rows are wrong"):
        check_tasks(options(tmp_path, "piqa"))


def test_a_tokenizer_without_an_end_has_no_answers_to_end(rows) -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer_faults(tokenizer, options(rows, "piqa", "gsm8k"), "m") == []
    tokenizer.eos_token, tokenizer.bos_token = None, "<|start|>"
    assert tokenizer_faults(tokenizer, options(rows, "piqa"), "m") == []
    (fault,) = tokenizer_faults(tokenizer, options(rows, "piqa", "gsm8k"), "m")
    assert fault.startswith("--tasks: the tokenizer of m has no eos_token, which ends an answer")


def test_a_fault_of_the_model_is_no_fault_of_the_rows(rows) -> None:
    def broken(*_: object) -> None:
        raise AssertionError("ours")

    model = tiny_llama(layers=1)
    model.register_forward_pre_hook(broken)
    with pytest.raises(AssertionError, match="ours"):
        run_tasks(model, tiny_tokenizer(chat_template=False), options(rows, "piqa"), torch.float32)


def test_command(rows, tmp_path, capsys) -> None:
    dense, pruned = save_tiny(tmp_path / "dense"), save_tiny(tmp_path / "pruned", ffn=64, seed=1)
    output = tmp_path / "eval.json"
    assert main(["eval", "--model", str(pruned), "--against", str(dense), "--tasks", "piqa,boolq", "arc_easy",
                 "--task-data", str(rows), "--dtype", "float32", "--output", str(output)]) == 0  # fmt: skip
    record = json.loads(output.read_text())
    tasks = {name: figures["tasks"] for name, figures in record["models"].items()}
    for name, difference in record["paired_tasks"].items():
        one, other = (tasks[str(folder)][name]["value"] for folder in (pruned, dense))
        assert difference["difference"] == pytest.approx(one - other)
    assert set(record["paired_tasks"]) == {"arc_easy", "boolq", "piqa"}
    printed = capsys.readouterr().out
    assert "mean" not in printed  # only the seven tasks have one
    assert "boolq (acc, 6 rows, 0-shot, version 2.0)" in printed


@pytest.fixture
def few_tasks(monkeypatch) -> Iterator[None]:
    """The harness's index of its own tasks, of one folder of them: reading all takes 9 s."""
    lm_eval_tasks = pytest.importorskip("lm_eval.tasks")
    one = Path(lm_eval_tasks.__file__).parent / "hellaswag"
    few = partial(lm_eval_tasks.TaskManager, include_path=str(one))
    monkeypatch.setattr(lm_eval_tasks, "TaskManager", lambda include_defaults: few(include_defaults=False))
    _manager.cache_clear()
    yield
    _manager.cache_clear()


@pytest.mark.usefixtures("few_tasks")
def test_refusals(rows, tmp_path, capsys) -> None:
    with pytest.raises(InputError, match="no local task 'pika'. Did you mean 'piqa'?"):
        check_tasks(options(rows, "pika"))
    with pytest.raises(InputError, match="unknown task 'hellaswagg'. Did you mean 'hellaswag'?"):
        check_tasks(options(None, "hellaswagg"))
    with pytest.raises(InputError, match=r"task piqa needs .*piqa\.jsonl, and there is no such file"):
        check_tasks(options(tmp_path, "piqa"))
    assert main(["eval", "--model", "x", "--data", "y.txt", "--limit", "5"]) == 2
    assert "--limit without --tasks has no effect" in capsys.readouterr().err


def test_without_the_harness_the_remedy_is_named(monkeypatch) -> None:
    monkeypatch.setattr("secateur.evaluation.harness.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'secateur\[eval\]'"):
        check_tasks(options(None, "piqa"))


def test_definitions_are_complete() -> None:
    assert set(definitions()) == {*ALL, "humaneval"}


def test_definitions_fit_the_real_files(data_dir) -> None:
    pytest.importorskip("lm_eval")
    check_tasks(options(data_dir, *ALL))
    found, _ = run_tasks(
        tiny_llama(layers=1), tiny_tokenizer(), options(data_dir, *(set(ALL) - {"mmlu", "gsm8k"}), limit=2),
        torch.float32,
    )  # fmt: skip
    assert {figure.rows for figure in found.values()} == {2}


def test_code_without_isolation_is_told(tmp_path, monkeypatch) -> None:
    harness_model = pytest.importorskip("secateur.evaluation.harness_model")
    code_rows(tmp_path, ["", ""])
    monkeypatch.setattr(harness_model.PaddedHFLM, "generate_until", lambda self, asked, **_: [""] * len(asked))
    monkeypatch.setattr("secateur.evaluation.local_tasks.run_untrusted", lambda code: Outcome(True, "", False))
    given = options(tmp_path, "humaneval", allow_code_execution=True)
    _, warnings = run_tasks(tiny_llama(layers=1), tiny_tokenizer(chat_template=False), given, torch.float32)
    assert "2 programs that the model wrote ran with the network and the files within reach" in warnings[0]
    monkeypatch.setattr("secateur.evaluation.harness.find_spec", lambda name: None if name == "resource" else name)
    with pytest.raises(InputError, match="has no limits to run it under"):
        check_tasks(given)


def code_rows(folder, solutions):
    """HumanEval rows whose prompt says which answer to give."""
    rows = [{"task_id": f"HumanEval/{i}", "prompt": f"def add(a, b):\n    # row {i}\n", "entry_point": "add",
             "canonical_solution": "", "test": "def check(f):\n    assert f(1, 2) == 3\n"}
            for i in range(len(solutions))]  # fmt: skip
    (folder / "human_eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_humaneval_counts_the_answers_that_pass(tmp_path, monkeypatch) -> None:
    harness_model = pytest.importorskip("secateur.evaluation.harness_model")
    answers = ["    return a + b\n", "    return a - b\n", "    return b + a\n", "    import os; os._exit(0)\n"]
    code_rows(tmp_path, answers)

    def generate_until(self, requests, disable_tqdm=False):
        assert all(request.args[1]["max_gen_toks"] == 1024 for request in requests)
        return [answers[int(re.search(r"row (\d)", request.args[0])[1])] for request in requests]

    monkeypatch.setattr(harness_model.PaddedHFLM, "generate_until", generate_until)
    model, tokenizer = tiny_llama(layers=1), tiny_tokenizer(chat_template=False)
    found, _ = run_tasks(model, tokenizer, options(tmp_path, "humaneval", allow_code_execution=True), torch.float32)
    figure = found["humaneval"]
    assert (figure.metric, figure.value, figure.row_values) == ("pass@1", 0.5, (1.0, 0.0, 1.0, 0.0))
    assert figure.stderr is not None


def test_code_is_not_run_unasked(tmp_path) -> None:
    pytest.importorskip("lm_eval")
    code_rows(tmp_path, ["    return 0\n"])
    with pytest.raises(InputError, match="would run code that the model writes: pass --allow-code-execution"):
        check_tasks(options(tmp_path, "humaneval"))
    with pytest.raises(InputError, match="local rows alone.*give --task-data"):
        check_tasks(options(None, "humaneval_instruct", allow_code_execution=True))
