"""What rows of other forms, and keys beside the known ones, become; and what is counted of them."""

import json

import pytest
from tiny import tiny_tokenizer

from secateur.data.documents import fingerprint, read_data, read_documents
from secateur.data.forms.document import Document
from secateur.data.forms.rows import document_of
from secateur.data.forms.tally import Tally
from secateur.data.labels import IGNORED
from secateur.data.tokens import evaluation_tokens, left_out_of, training_blocks
from secateur.system.errors import InputError

HI = [{"role": "user", "content": "Hi"}]
YO = [{"role": "assistant", "content": "Yo"}]
NO = [{"role": "assistant", "content": "No"}]
HI_YO = (("user", "Hi"), ("assistant", "Yo"))
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]


def read(row):
    tally = Tally()
    return document_of(row, "x", tally), tally.record()


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"instruction": "Add", "input": "2 3", "output": "5", "system": "S", "history": [["Hi", "Yo"]]},
         (("system", "S"), *HI_YO, ("user", "Add\n\n2 3"), ("assistant", "5"))),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}], "system": "S"},
         (("system", "S"), *HI_YO)),
        ({"messages": [{"role": "system", "content": "T"}, *HI, *YO], "system": "S"}, (("system", "S\n\nT"), *HI_YO)),
        ({"messages": [{"role": "system", "content": "S"}, *HI, *YO], "system": "S"}, (("system", "S"), *HI_YO)),
        ({"system_prompt": "S", "question": "Hi", "response": "Yo"}, (("system", "S"), *HI_YO)),
        ({"messages": HI + YO, "history": HI + NO}, (("user", "Hi"), ("assistant", "No"), *HI_YO)),
        ({"instruction": "Hi", "context": "C", "response": "Yo"}, (("user", "Hi\n\nC"), ("assistant", "Yo"))),
        ({"messages": HI + YO, "context": "C"}, (("user", "Hi\n\nC"), ("assistant", "Yo"))),
        ({"question": "Hi", "choices": ["a", "b"], "answer": 1}, (("user", "Hi\n\nA. a\nB. b"), ("assistant", "B"))),
        ({"question": "Hi", "options": {"A": "a", "B": "b"}, "answer": "A"},
         (("user", "Hi\n\nA. a\nB. b"), ("assistant", "A"))),
        ({"question": "Hi", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"},
         (("user", "Hi\n\n1. a\n2. b"), ("assistant", "2"))),
        ({"prompt": "Hi", "response": "Yo"}, HI_YO),
        ({"query": "Hi", "response": "Yo"}, HI_YO),
        ({"input": "Hi", "output": "Yo"}, HI_YO),
        ({"problem": "Hi", "solution": "Yo"}, HI_YO),
        ({"prompt": "Hi", "completion": "Yo", "system": "S"}, (("system", "S"), *HI_YO)),
        ({"prompt": HI, "completion": YO}, HI_YO),
        ({"prompt": HI, "completion": "Yo"}, HI_YO),
        ({"prompt": "Hi", "completion": YO}, HI_YO),
        ({"prompt": HI, "chosen": YO, "rejected": NO}, HI_YO),
        ({"prompt": "Hi", "chosen": HI + YO, "rejected": HI + NO}, HI_YO),
        ({"chosen": HI + YO, "rejected": HI + NO}, HI_YO),
        ({"messages": json.dumps(HI + YO)}, HI_YO),
        ({"messages": {"role": ["user", "assistant"], "content": ["Hi", "Yo"]}}, HI_YO),
        ({"conversation": [{"human": "Hi", "assistant": "Yo"}]}, HI_YO),
        ({"conversation": [{"system": "S", "input": "Hi", "output": "Yo"}]}, (("system", "S"), *HI_YO)),
        ({"conversations": HI, "chosen": {"from": "gpt", "value": "Yo"}, "rejected": NO[0]}, HI_YO),
        ({"messages": HI, "chosen": "Yo", "rejected": "No"}, HI_YO),
        ({"prompt": "Hi", "chosen": YO[0], "rejected": NO[0]}, HI_YO),
        ({"question": "Hi", "context": "C", "answers": {"text": ["Yo", "No"], "answer_start": [0, 1]}},
         (("user", "Hi\n\nC"), ("assistant", "Yo"))),
        ({"question": "Hi", "answer": ["Yo", "No"]}, HI_YO),
        ({"question": "Hi", "answer": {"value": "Yo", "aliases": ["No"]}}, HI_YO),
        ({"question": "Hi", "answer": 2}, (("user", "Hi"), ("assistant", "2"))),
        ({"Question": "Hi", " Response": "Yo"}, HI_YO),
        ({"instruction": "Hi", "input": float("nan"), "output": "Yo"}, HI_YO),
        ({"kind": "", "input": "Hi", "target": "Yo"}, HI_YO),
        ({"messages": None, "conversations": [], "prompt": "Hi", "response": "Yo"}, HI_YO),
        ({"messages": [{"role": "User", "content": [{"type": "text", "text": "H"}, "i"]}, *YO]}, HI_YO),
    ],
)  # fmt: skip
def test_conversations(row, messages):
    document, left_out = read(row)
    assert document is not None
    assert document.messages == messages
    assert left_out == {}


@pytest.mark.parametrize(
    ("row", "prompt", "reply"),
    [
        ({"prompt": "Review: fine\nSentiment:", "completion": " positive"}, "Review: fine\nSentiment:", " positive"),
        ({"prompt": "Hi ", "chosen": "Yo", "rejected": "No"}, "Hi ", "Yo"),
        ({"chosen": "Human: Hi Bot: Yo", "rejected": "Human: Hi Bot: No"}, "Human: Hi Bot:", " Yo"),
        ({"prompt": "Hi ", "completion": "Yo", "label": True, "messages": None}, "Hi ", "Yo"),
    ],
)
def test_completions_stay_as_they_are(row, prompt, reply):
    assert read(row) == (Document("completion", "x", prompt + reply, reply_from=len(prompt)), {})


def test_replies_begin_where_the_completion_does():
    document, _ = read({"prompt": HI + NO + HI, "completion": YO})
    assert document.reply_from == 3


def test_what_the_template_is_given_beside_the_turns():
    row = {"messages": HI + YO, "tools": json.dumps(TOOLS), "documents": [{"title": "t", "text": "x"}]}
    document, left_out = read(row | {"chat_template_kwargs": {"enable_thinking": False}})
    assert document.template_keys == {"tools": TOOLS, "documents": row["documents"], "enable_thinking": False}
    assert left_out == {}
    assert document.raw != read({"messages": HI + YO})[0].raw
    with pytest.raises(InputError, match=r"x: `tools` is text that is no valid JSON: 'add'"):
        read({"messages": HI + YO, "tools": "add"})
    with pytest.raises(InputError, match=r"x: `tools` is no list of objects"):
        read({"messages": HI + YO, "tools": ["add"]})


def test_calls_and_thoughts_of_a_turn():
    turns = [*HI, {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "2"}]
    document, _ = read({"messages": [*turns, YO[0] | {"thinking": "hm", "name": None}]})
    assert document.turn_keys == ({}, {"content": None, "tool_calls": [CALL]}, {}, {"thinking": "hm"})
    assert document.messages[1] == ("assistant", "")
    assert '"name": "add"' in document.raw
    assert "hm" in document.raw
    sharegpt = [
        {"from": "human", "value": "Hi"},
        {"from": "function_call", "value": json.dumps(CALL["function"])},
        {"from": "observation", "value": "2"},
        {"from": "gpt", "value": "Yo"},
    ]
    document, _ = read({"conversations": sharegpt})
    assert document.turn_keys[1] == {"tool_calls": [CALL]}
    assert [role for role, _ in document.messages] == ["user", "assistant", "tool", "assistant"]
    document, _ = read(
        {"messages": [*HI, {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, "Yo"]}]}
    )
    assert (document.messages, document.turn_keys) == (HI_YO, ({}, {"reasoning_content": "hm"}))
    with pytest.raises(InputError, match=r"x, turn 2: `tool_calls` is no list of calls"):
        read({"messages": [*HI, YO[0] | {"tool_calls": [{"nome": "add"}]}]})
    with pytest.raises(InputError, match=r"x, turn 1: `content` has a part of type 'image'"):
        read({"messages": [{"role": "user", "content": [{"type": "image"}]}, *YO]})


@pytest.mark.parametrize(
    "switch", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"trainable": False}, {"mask": True}, {"loss": 0}]
)
def test_turns_that_are_not_trained_on(switch):
    document, left_out = read({"messages": [*HI, NO[0] | switch, *HI, *YO]})
    assert document.untrained == {1}
    assert document.turn_keys == ()
    assert left_out == {"unlabelled_turns": {"`weight: 0`, `train: false` or the like": 1}}
    other, left_out = read({"messages": [*HI, NO[0] | {"weight": 1, "train": True, "mask": False}, *HI, *YO]})
    assert (other.untrained, left_out) == (frozenset(), {})
    assert other.raw == document.raw
    assert other.identity != document.identity


def test_empty_replies_are_dropped_and_counted():
    for row in (
        {"instruction": "Q", "input": "", "output": ""},
        {"instruction": "Q", "output": None},
        {"prompt": "Q", "completion": " "},
        {"messages": [*HI, {"role": "assistant", "content": ""}]},
        {"messages": [*HI, {"role": "assistant", "content": None}]},
        {"prompt": HI + YO + HI, "completion": [{"role": "assistant", "content": ""}]},
        {"question": "Q", "context": "C", "answers": {"text": [], "answer_start": []}},
    ):
        assert read(row) == (None, {"dropped_rows": {"empty reply": 1}})
    document, left_out = read({"messages": [*HI, *YO, *HI, {"role": "assistant", "content": "\n"}]})
    assert document.messages == (*HI_YO, ("user", "Hi"))
    assert left_out == {"unlabelled_turns": {"empty reply": 1}}
    document, _ = read({"messages": [*HI, {"role": "assistant", "content": ""}, *HI, *YO]})
    assert document.untrained == {1}
    assert read({"prompt": "Q", "completion": "bad", "label": False})[0] is None


def test_what_only_looks_like_the_reply(tmp_path):
    document, left_out = read({"problem": "1 + 1?", "answer": "2", "solution": "One and one is 2."})
    assert document.messages == (("user", "1 + 1?"), ("assistant", "One and one is 2."))
    assert left_out == {"unused_keys": {"`answer`": 1}}
    document, left_out = read({"messages": HI + NO, "label": False})
    assert (document, list(left_out)) == (None, ["dropped_rows"])
    assert read({"messages": HI + YO, "label": 0})[0].messages == HI_YO  # a class, not a judgement
    document, _ = read({"conversation": [{"human": "Hi", "assistant": "No", "weight": 0}, *HI, *YO]})
    assert (document.untrained, document.messages[2:]) == ({1}, HI_YO)
    document, left_out = read({"messages": HI + YO, "chat_template_kwargs": {"tokenize": True, "chat_template": "x"}})
    assert document.template_keys == {}
    assert sorted(left_out["unused_keys"]) == [
        f"`{key}` of `chat_template_kwargs`" for key in ("chat_template", "tokenize")
    ]


def test_nulls():
    null = (None, {"dropped_rows": {"null in place of a text": 1}})
    assert read({"text": float("nan")}) == null
    assert read({"instruction": None, "output": "x"}) == null
    assert read({"messages": [{"role": "user", "content": None}, *YO]}) == null
    assert read({"messages": None, "text": "x"}) == (Document("text", "x", "x"), {})
    assert read({"text": None, "url": "u"}) == (None, {"dropped_rows": {"null in place of a text": 1}})
    with pytest.raises(InputError, match="found the keys 'url'"):
        read({"url": None})


def test_keys_that_nothing_is_made_of_are_counted_and_named_once(tmp_path):
    rows = [{"text": f"text {i}", "url": "u", "id": i, "meta": None} for i in range(5)] + [{"text": None}]
    spec = write(tmp_path / "a.jsonl", *rows)
    documents, tally = read_data(spec)
    assert len(documents) == 5
    assert tally.record() == {"dropped_rows": {"null in place of a text": 1}, "unused_keys": {"`url`": 5, "`id`": 5}}
    assert tally.notes() == [
        f"data: rows dropped: null in place of a text (1, the first at {spec}:6).",
        f"data: keys that are not used: `url` (5, the first at {spec}:1), `id` (5, the first at {spec}:1).",
    ]
    tokenizer = tiny_tokenizer()
    assert training_blocks([spec], tokenizer, seq_len=8).left_out.record() == tally.record()
    info = evaluation_tokens(spec, tokenizer)[1]
    assert info["left_out"] == tally.record()
    assert left_out_of(info)[1] == f"evaluation data {spec}: keys that are not used: `url` (5), `id` (5)."


def test_one_row_that_a_template_refuses_does_not_end_the_run(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<{{ m.role }}>{{ m.content }}<|end|>{% endfor %}"
    )
    bad = {"messages": [{"role": "system", "content": "S"}, *HI, *YO]}
    spec = write(tmp_path / "a.jsonl", {"messages": HI + YO}, bad)
    blocks = training_blocks([spec], tokenizer, seq_len=23, response_only=True)
    assert blocks.n_documents == 1
    assert blocks.left_out.record() == {"dropped_rows": {"refused by the tokenizer's chat template": 1}}
    assert evaluation_tokens(spec, tokenizer)[1]["left_out"] == blocks.left_out.record()
    with pytest.raises(InputError, match=r":1: .* refuses this conversation \(no system\): its roles are system, user"):
        training_blocks([write(tmp_path / "b.jsonl", bad)], tokenizer, seq_len=8)


def test_the_same_text_with_other_labels_is_other_data(tmp_path):
    prints = []
    for weight in (1, 0):
        spec = write(tmp_path / "a.jsonl", {"messages": [*HI, NO[0] | {"weight": weight}, *HI, *YO]})
        prints.append(fingerprint([spec])[0])
    assert prints[0]["characters"] == prints[1]["characters"]
    assert prints[0]["sha256"] != prints[1]["sha256"]


def test_packing_keeps_completions_apart(tmp_path):
    rows = [{"prompt": "ab", "completion": "cd"}, {"messages": HI + YO}]
    blocks = training_blocks(
        [write(tmp_path / "a.jsonl", *rows)], tiny_tokenizer(), seq_len=30, response_only=True, packing="separate"
    )
    flat = [part for block in blocks.position_ids for part in block]
    assert flat.count(0) == 2
    assert sum(label != IGNORED for block in blocks.labels for label in block) == 3 + 3


def test_hub_rows_lose_the_nulls_inside(monkeypatch):
    import datasets

    rows = [{"messages": [{"role": "user", "content": "Hi", "tool_calls": None}, *YO], "text": None}]
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, split: rows)
    assert read_documents("org/name")[0].turn_keys == ()
