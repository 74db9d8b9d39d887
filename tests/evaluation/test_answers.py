"""Rows of one's own: the likeliest of their answers, or what the model writes."""

import json

import pytest
import torch
from tiny import tiny_llama, tiny_tokenizer
from torch.nn.functional import cross_entropy

from secateur.cli.entry import main
from secateur.data.documents import read_documents
from secateur.data.forms.tally import Tally
from secateur.data.labels import Labeller
from secateur.data.packing import IGNORED
from secateur.evaluation.answers import Rows, row_name
from secateur.models.benchmark import generate_batch, generate_text

QUESTIONS = [f"is {word} good?" for word in ("tea", "a very long rainy day", "bread", "an ox", "x", "no sleep at all")]
ANSWERS = ["yes", "no", "quite so", "no", "yes", "no"]


@pytest.fixture
def place(tmp_path):
    for name, seed in (("model", 0), ("other", 1)):
        tiny_llama(seed=seed).save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    write(tmp_path / "dev.jsonl", [{"question": q, "answer": a} for q, a in zip(QUESTIONS, ANSWERS, strict=True)])
    return tmp_path


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def measured(place, *more, rows="dev.jsonl"):
    out = place / "out.json"
    command = ["eval", "--model", str(place / "model"), "--answers", str(place / rows), "--output", str(out)]
    assert main([*command, "--overwrite", "--dtype", "float32", *more]) == 0
    return json.loads(out.read_text())


def naive(row, choices, model, tokenizer, tmp_path):
    """The choice whose tokens, as training labels them, have the least loss; a row, a choice and a token at a time."""
    losses = []
    for choice in choices:
        path = write(tmp_path / "one.jsonl", [row | {"answer": choice}])
        ids, labels = Labeller(tokenizer, True, Tally()).tokenise(read_documents(str(path))[0])
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0]
        losses.append(sum(float(cross_entropy(logits[i - 1], torch.tensor(ids[i])))
                          for i, label in enumerate(labels) if label != IGNORED))  # fmt: skip
    return choices[losses.index(min(losses))]


@pytest.mark.parametrize("form", ["chat", "completion"])
def test_the_likeliest_answer_is_that_of_a_naive_loop(place, form):
    rows = [{"question": q, "answer": a} for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
    if form == "completion":
        tiny_tokenizer(chat_template=False).save_pretrained(place / "model")
        (place / "model" / "chat_template.jinja").unlink(missing_ok=True)
    model, tokenizer = tiny_llama(), tiny_tokenizer(chat_template=form == "chat")
    said = [naive(row, ["no", "quite so", "yes"], model, tokenizer, place) for row in rows]
    expected = [float(a == b) for a, b in zip(said, ANSWERS, strict=True)]
    assert 0 < sum(expected) < len(expected)  # else a count could be right by chance
    for batch in ("1", "4"):
        figure = measured(place, "--batch-size", batch)["models"][str(place / "model")]["tasks"]["dev"]
        assert figure["value"] == pytest.approx(sum(expected) / len(expected))
        assert figure["metrics"]["commonest answer alone"] == pytest.approx(0.5)
        assert "always 'no': 50.00%" in figure["source"]


def test_two_models_are_paired_row_by_row(place):
    record = measured(place, "--against", str(place / "other"))
    one, other = (record["models"][str(place / name)]["tasks"]["dev"]["value"] for name in ("model", "other"))
    assert record["paired_tasks"]["dev"]["difference"] == pytest.approx(one - other)


def test_more_answers_than_can_be_chosen_from_are_written(place):
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    said = [generate_text(model, tokenizer, q, max_new_tokens=6, dtype=torch.float32) for q in QUESTIONS]
    answers = [text if i % 2 else "something else" for i, text in enumerate(said)]
    write(place / "free.jsonl", [{"question": q, "answer": a} for q, a in zip(QUESTIONS, answers, strict=True)])
    figure = measured(place, "--max-new-tokens", "6", rows="free.jsonl")["models"][str(place / "model")]["tasks"][
        "free"
    ]
    assert figure["value"] == 0.5
    assert "writes" in figure["source"]


def test_prompts_of_a_batch_are_continued_as_alone():
    model, tokenizer = tiny_llama(), tiny_tokenizer(chat_template=False)
    ids = [tokenizer(q)["input_ids"] for q in QUESTIONS[:3]]
    longest = max(map(len, ids))
    padded = torch.tensor([[0] * (longest - len(row)) + row for row in ids])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids])
    found = generate_batch(model, tokenizer, {"input_ids": padded, "attention_mask": mask}, 8, torch.float32)
    alone = [generate_text(model, tokenizer, q, max_new_tokens=8, dtype=torch.float32) for q in QUESTIONS[:3]]
    assert found == alone
    assert any(found)


@pytest.mark.parametrize(
    ("said", "key"),
    [
        ("so 4\n#### 1,234", "1234"),
        ("#### 7.\nmore", "7"),
        ("no mark", ""),
        ("#### 1 #### 2", "2"),
        ("#### a, b", "a, b"),
    ],
)
def test_what_stands_behind_the_mark_counts(said, key):
    assert Rows("", (), (), (), "####").key(said) == key


@pytest.mark.parametrize(
    ("row", "more", "words"),
    [
        ({"text": "plain"}, [], "is no question with its answer"),
        ({"question": "q", "answer": "a"}, ["--answer-after", "####"], "has nothing behind '####'"),
        ({"question": "q" * 600, "answer": "a"}, [], "positions of"),
        ({"question": "q", "answer": "a"}, ["--answer-after", ""], "--answer-after is empty"),
    ],
)
def test_rows_that_cannot_be_answered_are_named_before_any_weight_is_read(place, capsys, monkeypatch, row, more, words):
    monkeypatch.setattr("secateur.evaluation.assess.load_model", None)
    path = write(place / "bad.jsonl", [row])
    assert main(["eval", "--model", str(place / "model"), "--answers", str(path), *more]) == 2
    assert words in capsys.readouterr().err


def test_rows_and_a_task_of_one_name_are_two_figures() -> None:
    assert row_name("there/piqa.jsonl", ("piqa",)) == "piqa (rows)"
    assert row_name("there/piqa.jsonl", ("boolq",)) == "piqa"
