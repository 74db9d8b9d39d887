"""Pairs of a source and a target: what becomes of rows, and what a model is given of them."""

import json

import pytest
import torch
from tiny import tiny_t5, tiny_t5_tokenizer, tiny_tokenizer

from secateur.data.documents import read_data
from secateur.data.pairs import PairForm, evaluation_pairs, source_and_target, training_pairs
from secateur.data.tokens import training_blocks
from secateur.system.errors import InputError
from secateur.training.loss import causal_lm_loss

FORM = PairForm(source_len=20, target_len=6, start=0, pad=0)


def written(folder, *rows):
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_rows_of_every_known_form_are_pairs(tmp_path) -> None:
    rows = {
        ("a", "b"): [
            {"prompt": "a", "completion": "b"}, {"instruction": "a", "output": "b"}, {"question": "a", "answer": "b"},
            {"source": "a", "target": "b"}, {"input": "a", "target": "b"}, {"inputs": "a", "targets": "b"},
            {"document": "a", "summary": "b"}, {"article": "a", "highlights": "b"}, {"dialogue": "a", "summary": "b"},
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        ],
        ("s\n\na", "b"): [{"system": "s", "question": "a", "answer": "b"}],
        ("a\n\nc", "b"): [{"instruction": "a", "input": "c", "output": "b"}, {"question": "a", "context": "c",
                                                                            "answers": {"text": ["b", "d"]}}],
    }  # fmt: skip
    for wanted, given in rows.items():
        documents, tally = read_data(written(tmp_path, *given))
        assert [source_and_target(document, tally) for document in documents] == [wanted] * len(given)
        assert not tally.counts
    # Beside other keys `source` says where a row is from, as ever.
    (document,), _ = read_data(written(tmp_path, {"source": "wiki", "question": "a", "answer": "b", "target": "x"}))
    assert source_and_target(document, _) == ("a", "b")
    # A causal model reads such rows as a question and its reply.
    path = written(tmp_path, *[{"source": "aaaa", "target": "bbbb"}] * 8)
    assert training_blocks([path], tiny_tokenizer(), seq_len=16, response_only=True).n_label_tokens


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "a b"}, "rows.jsonl:1 is plain text"),
        ({"messages": [{"role": role, "content": "x"} for role in ("user", "assistant") * 2]}, "of 4 turns"),
        ({"prompt": " ", "completion": "b"}, "no pair of a source and a target"),
    ],
)
def test_what_is_no_pair_is_refused(tmp_path, row, said) -> None:
    with pytest.raises(InputError, match=rf"{said}.*`source` and `target`"):
        training_pairs([written(tmp_path, row)], tiny_t5_tokenizer(), FORM)


def test_a_batch_is_padded_on_the_right_and_its_loss_is_that_of_rows_alone(tmp_path) -> None:
    rows = [{"source": "x" * n, "target": "yz"[: 1 + n % 2] * 2} for n in (3, 30, 7)]
    pairs, info = evaluation_pairs(written(tmp_path, *rows), tiny_t5_tokenizer(), FORM)
    assert info["pairs"] == 3
    assert info["tokens"] == pairs.n_label_tokens == 5 + 3 + 5
    assert pairs.left_out.record() == {"cut_rows": {"a source, to 20 tokens": 1}}
    assert [len(ids) for ids in pairs.input_ids] == [4, 20, 8]
    assert pairs.input_ids[1][-1] == 1  # a source that is cut keeps its end
    inputs, labels = pairs.batch([0, 1, 2])
    assert inputs["attention_mask"].sum(1).tolist() == [4, 20, 8]
    assert labels.tolist()[1][:4] == [-100, *pairs.decoder_input_ids[1][1:]]
    assert labels.tolist()[1][4:] == [-100] * 2
    model = tiny_t5().double()
    theirs = []  # by transformers' own loss and shift, each row alone
    for ids, decoder_ids in zip(pairs.input_ids, pairs.decoder_input_ids, strict=True):
        wanted = torch.tensor([decoder_ids[1:]])
        theirs.append(model(input_ids=torch.tensor([ids]), labels=wanted).loss * wanted.numel())
    ours = causal_lm_loss(model(**inputs), labels)
    torch.testing.assert_close(ours, sum(theirs) / 13, rtol=1e-9, atol=0.0)


def test_long_targets_lose_their_end_and_are_counted(tmp_path) -> None:
    pairs = training_pairs([written(tmp_path, {"source": "a", "target": "b" * 9})], tiny_t5_tokenizer(), FORM)
    assert len(pairs.decoder_input_ids[0]) == 1 + 6
    assert 1 not in pairs.decoder_input_ids[0]
    assert pairs.left_out.notes() == [
        f"data: rows cut: a target, to 6 tokens (1, the first at {tmp_path}/rows.jsonl:1)."
    ]


def test_the_first_pairs_by_their_targets_tokens(tmp_path) -> None:
    rows = [{"source": "a", "target": "b" * n} for n in (3, 4, 1)]  # 4, 5 and 2 tokens
    path = written(tmp_path, *rows)
    for tokens, count in ((1, 1), (4, 1), (9, 2), (10, 2), (11, 3)):
        assert len(evaluation_pairs(path, tiny_t5_tokenizer(), FORM, max_tokens=tokens)[0]) == count
