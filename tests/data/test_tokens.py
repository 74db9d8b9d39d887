"""From files of every accepted form to token blocks, and what is refused on the way."""

import hashlib
import json

import pytest
import torch
from tiny import tiny_tokenizer

from secateur.data.documents import Document, check_spec, fingerprint, read_documents
from secateur.data.labels import IGNORED
from secateur.data.tokens import evaluation_tokens, require_batches, training_blocks
from secateur.system.errors import InputError

TURNS = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi there"},
    {"role": "assistant", "content": "Hello. How are you?"},
    {"role": "user", "content": "Hello. How are you?"},
    {"role": "assistant", "content": "assistant of yours\nFine"},
]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def labelled(blocks, tokenizer):
    """The labelled runs of tokens as text, across blocks; labels must equal the tokens."""
    runs, last = [], IGNORED
    for ids, labels in zip(blocks.input_ids, blocks.labels, strict=True):
        for token, label in zip(ids, labels, strict=True):
            assert label in (token, IGNORED)
            if label != IGNORED:
                runs = [*runs[:-1], [*runs[-1], token]] if last != IGNORED else [*runs, [token]]
            last = label
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize("name", ["wiki.test.raw", "wiki.test.tokens", "WIKI.TXT"])
def test_a_text_file_is_one_document(tmp_path, name):
    (tmp_path / name).write_text("= A =\n\n{not json\n")
    assert read_documents(str(tmp_path / name)) == [Document("text", str(tmp_path / name), "= A =\n\n{not json\n")]


def test_row_forms(tmp_path):
    sharegpt = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]
    spec = write(
        tmp_path / "a.jsonl",
        {"text": "plain\u2028text", "url": 1},
        {"instruction": "Add.", "input": "1 2", "output": "3", "text": "all of it"},
        {"instruction": "Add.", "input": "", "output": "3"},
        {"question": "1+1?", "answer": "2"},
        {"messages": TURNS},
        {"conversations": sharegpt},
    )
    documents = read_documents(spec)
    assert documents[0] == Document("text", f"{spec}:1", "plain\u2028text")
    assert documents[1].messages == (("user", "Add.\n\n1 2"), ("assistant", "3"))
    assert documents[2].messages == (("user", "Add."), ("assistant", "3"))
    assert documents[3].messages == (("user", "1+1?"), ("assistant", "2"))
    assert documents[4].messages[0] == ("system", "Be kind.")
    assert documents[5] == Document("chat", f"{spec}:6", messages=(("user", "Hi"), ("assistant", "Yo")))
    assert documents[5].raw == "Hi\n\nYo"


def test_file_forms(tmp_path):
    (tmp_path / "b.txt").write_bytes("\ufeffOne\r\ntwo\n".encode())
    (tmp_path / "a.json").write_text(json.dumps([{"text": "x"}, {"text": "y"}], indent=1))
    (tmp_path / "c.json").write_bytes(b'{"text": "lines"}\r\n\n \n{"text": ""}\n')
    (tmp_path / "ignored.pdf").write_text("1,2")
    (tmp_path / ".hidden.txt").write_text("no")
    documents = read_documents(str(tmp_path))
    assert [d.text for d in documents] == ["x", "y", "One\r\ntwo\n", "lines", ""]
    assert [d.origin.removeprefix(str(tmp_path)) for d in documents] == [
        "/a.json, row 1",
        "/a.json, row 2",
        "/b.txt",
        "/c.json:1",
        "/c.json:4",
    ]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("./no.txt", r"'\./no\.txt': no such file or folder\. Check the path, or give a hub data set"),
        ("no.jsonl", "no such file or folder"),
        ("a/b/c", "no such file or folder"),
        ("sub/typo", "no such file or folder"),
        ("data.pdf", r"data file data\.pdf is '\.pdf': expected \.txt, .*\.arrow .*also packed.*; rename or convert"),
        ("README", "data file README is without a type"),
        ("sub", r"data folder sub has no \.txt, \.raw, \.tokens, \.jsonl, \.json, .* file"),
        ("stdlib-docs:test", r"unknown split 'test'\. Choose from: train, held-out"),
        ("stdlib-docs:heldout", r"Did you mean 'held-out'\?"),
        ("stdlib-doc", r"unknown data 'stdlib-doc'\. Did you mean 'stdlib-docs'\?"),
        ("two words", "no valid hub data set: give one of these"),
        ("a:b:c:d", "no valid hub data set"),
    ],
)
def test_check_spec_refuses(spec, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "data.pdf").touch()
    (tmp_path / "README").touch()
    with pytest.raises(InputError, match=message):
        check_spec(spec)


def test_check_spec_accepts(tmp_path):
    (tmp_path / "a.TXT").touch()
    for spec in ("stdlib-docs", "stdlib-docs:train", "gsm8k", "org/name:test", "org/name:config-1.0:train[:10%]"):
        check_spec(spec)
    check_spec(str(tmp_path / "a.TXT"))
    check_spec(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b" \n\n", r"a\.txt is empty: give a file with text"),
        ("a.jsonl", b"", r"a\.jsonl is empty"),
        ("a.json", b"[]", r"a\.json has 0 rows and no text"),
        ("a.jsonl", b'{"text": " "}\n', r"a\.jsonl has 1 rows and no text"),
        ("a.txt", b"caf\xe9 au lait", r"a\.txt is not UTF-8: byte 3 is 0xe9\. Convert it"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": \n', r"a\.jsonl:3 is not valid JSON \(Expecting value, column"),
        ("a.json", b'[\n{"text": "a"},\n{"text" "b"}]', r"a\.json:3 is not valid JSON \(Expecting ':'"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl:1: JSON nested too deeply"),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"txt": "b", "id": 1}',
            r"a\.jsonl:2: expected `text`, or `instruction` .*; found the keys 'txt', 'id'\. Rename",
        ),
        ("a.json", b'[{"text": "a"}, {}]', r"a\.json, row 2: expected `text`.*; found the keys none"),
        ("a.jsonl", b'"text"', r"a\.jsonl:1: expected `text`.*; found text\."),
        ("a.jsonl", b'{"text": 3}', r"a\.jsonl:1: `text` is a number: expected text"),
        ("a.jsonl", b'{"text": null}', r"has 1 rows and no text in them \(1 with null in place of a text\)"),
        ("a.jsonl", b'{"text": "\\ud800"}', r"`text` has half of a surrogate pair"),
        ("a.jsonl", b'{"instruction": "a", "input": [], "output": "b"}', r"`input` is a list: expected text"),
        ("a.jsonl", b'{"instruction": "a"}', r"found the keys 'instruction'"),
        ("a.jsonl", b'{"messages": []}', r"`messages` is an empty list: expected a list of turns"),
        ("a.jsonl", b'{"messages": {"role": "user"}}', r"`messages` is an object: expected a list"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}', r"a\.jsonl:1, turn 1: `content` is missing"),
        ("a.jsonl", b'{"messages": [{"who": "user"}]}', r"turn 1: expected `role` .*found the keys 'who'"),
        ("a.jsonl", b'{"messages": ["hi"]}', r"turn 1: expected `role` and `content`.*; found text"),
        (
            "a.jsonl",
            b'{"messages": [{"role": "asistant", "content": "a"}]}',
            r"turn 1: unknown role 'asistant'\. Did you mean 'assistant'\? Known: system, ",
        ),
    ],
)
def test_bad_files(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_documents(str(tmp_path / name))


def test_unreadable_hub_data_set(monkeypatch):
    """Nor does anything of theirs draw a bar meanwhile."""
    import datasets
    import huggingface_hub

    def load_dataset(name, config, split):
        assert datasets.utils.are_progress_bars_disabled()
        assert huggingface_hub.utils.are_progress_bars_disabled()
        if name == "org/empty":
            return [{"text": " "}]
        raise ValueError(f"Unknown split \"{split}\". Should be one of ['train'].")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError, match=r"'org/name:dev' is no local file, .* split 'dev' .*Unknown split"):
        read_documents("org/name:dev")
    with pytest.raises(InputError, match="data set org/empty has no text"):
        read_documents("org/empty")
    assert not datasets.utils.are_progress_bars_disabled()
    assert not huggingface_hub.utils.are_progress_bars_disabled()


def test_hub_splits(monkeypatch):
    import datasets

    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, split: asked.append((*a, split)) or [{"text": "a"}])
    read_documents("org/name")
    read_documents("org/name", evaluation=True)
    read_documents("org/name:dev[:10%]")
    read_documents("org/name:config:dev")
    assert asked == [
        ("org/name", None, "train"),
        ("org/name", None, "test"),
        ("org/name", None, "dev[:10%]"),
        ("org/name", "config", "dev"),
    ]


def test_one_name_never_trains_and_tests_on_the_same_text():
    train = {d.origin for d in read_documents("stdlib-docs")}
    assert not train & {d.origin for d in read_documents("stdlib-docs", evaluation=True)}
    assert train == {d.origin for d in read_documents("stdlib-docs:train", evaluation=True)}


def test_fingerprint(tmp_path):
    spec = write(tmp_path / "a.jsonl", {"text": "Zoë"}, {"question": "a", "answer": "b"})
    digest = hashlib.sha256("Zoëa\n\nb".encode()).hexdigest()
    assert fingerprint([spec]) == [{"name": spec, "rows": 2, "characters": 7, "sha256": digest}]


def test_blocks_are_the_documents_one_after_the_other(tmp_path, tokenizer):
    texts = [f"Text {i} " * (i + 1) for i in range(9)]
    spec = write(tmp_path / "a.jsonl", *({"text": text} for text in texts), {"text": " \n"})
    blocks = training_blocks([spec], tokenizer, seq_len=16, seed=3)
    stream = [token for block in blocks.input_ids for token in block]
    assert all(len(block) == 16 for block in blocks.input_ids)
    assert blocks.labels == blocks.input_ids
    found = tokenizer.decode(stream).split("<|end|>")
    assert set(found[:-1]) <= set(texts)
    assert found[:-1] != texts[: len(found) - 1]  # shuffled
    assert blocks.n_tokens == blocks.n_label_tokens == len(stream)
    assert blocks.n_tokens + blocks.n_dropped_tokens == sum(map(len, texts)) + len(texts)
    assert blocks.n_documents == 9
    assert blocks[1] == {"input_ids": blocks.input_ids[1], "labels": blocks.labels[1]}
    assert training_blocks([spec], tokenizer, seq_len=16, seed=3) == blocks
    assert training_blocks([spec], tokenizer, seq_len=16, seed=4) != blocks
    whole = training_blocks([spec], tokenizer, seq_len=blocks.n_tokens + blocks.n_dropped_tokens, seed=3)
    assert sorted(tokenizer.decode(whole.input_ids[0]).split("<|end|>")) == sorted([*texts, ""])
    assert whole.input_ids[0][: len(stream)] == stream


def test_response_labels_are_exactly_the_assistants_words(tmp_path, tokenizer):
    spec = write(tmp_path / "a.jsonl", {"messages": TURNS}, {"messages": TURNS[1:3]})
    n_tokens = training_blocks([spec], tokenizer, seq_len=8).n_tokens
    blocks = training_blocks([spec], tokenizer, seq_len=n_tokens // 2, response_only=True)
    hello, fine = "Hello. How are you?<|end|>", "assistant of yours\nFine<|end|>"
    assert "".join(labelled(blocks, tokenizer)) in (hello + fine + hello, hello + hello + fine)
    assert blocks.n_label_tokens == 2 * 20 + 24
    everything = training_blocks([spec], tokenizer, seq_len=n_tokens // 2)
    assert everything.input_ids == blocks.input_ids
    assert everything.labels == everything.input_ids


def test_response_labels_without_a_template(tmp_path):
    tokenizer = tiny_tokenizer(chat_template=False)
    spec = write(tmp_path / "a.jsonl", {"instruction": "Add.", "input": "1 2", "output": "3"})
    text = "### Instruction:\nAdd.\n\n1 2\n\n### Response:\n3<|end|>"
    n_tokens = len(text.replace("<|end|>", "E"))
    blocks = training_blocks([spec], tokenizer, seq_len=n_tokens, response_only=True)
    assert tokenizer.decode(blocks.input_ids[0]) == text
    assert labelled(blocks, tokenizer) == ["3<|end|>"]


def test_response_labels_when_earlier_turns_are_rendered_otherwise(tmp_path):
    """Qwen3's template writes an empty thought into the last response only, so prefixes differ."""
    other = tiny_tokenizer()
    other.chat_template = (
        "{% for m in messages %}<|start|>{{ m['role'] }}\n{% if loop.last %}<think></think>\n{% endif %}"
        "{{ m['content'].strip() }}<|end|>\n{% endfor %}"
    )
    turns = [*TURNS[:4], {"role": "assistant", "content": " Fine\n"}]
    spec = write(tmp_path / "a.jsonl", {"messages": turns}, {"messages": turns})
    blocks = training_blocks([spec], other, seq_len=100, response_only=True)
    assert labelled(blocks, other)[:2] == ["Hello. How are you?<|end|>", "Fine<|end|>"]


def test_blocks_without_a_label_are_dropped(tmp_path, tokenizer):
    long = [{"role": "user", "content": "x" * 100}, {"role": "assistant", "content": "y" * 10}]
    spec = write(tmp_path / "a.jsonl", {"messages": long})
    blocks = training_blocks([spec], tokenizer, seq_len=16, response_only=True)
    assert len(blocks) == 1 < len(training_blocks([spec], tokenizer, seq_len=16))
    assert any(label != IGNORED for label in blocks.labels[0][1:])
    spec = write(tmp_path / "b.jsonl", {"messages": long[:1]})
    with pytest.raises(InputError, match="no sequence has a response in it: check the roles"):
        training_blocks([spec], tokenizer, seq_len=16, response_only=True)


def test_training_refusals(tmp_path, tokenizer):
    text = write(tmp_path / "a.jsonl", {"text": "abc"})
    with pytest.raises(InputError, match=r"a\.jsonl:1 is plain text: leave out the option"):
        training_blocks([text], tokenizer, seq_len=4, response_only=True)
    with pytest.raises(InputError, match=r"has 4 tokens in 1 documents and one sequence takes --seq-len 5: give"):
        training_blocks([text], tokenizer, seq_len=5)
    blocks = training_blocks([text], tokenizer, seq_len=2)
    require_batches(blocks, 2)
    with pytest.raises(InputError, match=r"2 sequences of 2 tokens, fewer tokens than one batch: --batch-size is"):
        require_batches(blocks, 3)
    chat = write(tmp_path / "b.jsonl", {"messages": TURNS})
    other = tiny_tokenizer()
    other.chat_template = "{% for m in messages %}{{ m['content'] | length }}<|end|>{% endfor %}"
    with pytest.raises(
        InputError, match=r"b\.jsonl:1, turn 3: --response-only cannot follow .* does not write this reply as"
    ):
        training_blocks([chat], other, seq_len=4, response_only=True)
    other.chat_template = "{{ raise_exception('Roles must alternate') }}"
    with pytest.raises(
        InputError, match=r"^the tokenizer's chat template cannot be rendered \(TemplateError: Roles must alternate\)"
    ):
        training_blocks([chat], other, seq_len=4)


def test_evaluation_text_goes_in_as_it_is(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("Some text.\n\n = Title = \n" * 100)
    ids, info = evaluation_tokens(str(tmp_path / "a.txt"), tokenizer)
    assert tokenizer.decode(ids) == "Some text.\n\n = Title = \n" * 100
    assert ids.dtype == torch.long
    assert info == {
        "data": str(tmp_path / "a.txt"),
        "joined": "one text",
        "characters": 2400,
        "tokens": 2400,
        "sha256": hashlib.sha256((tmp_path / "a.txt").read_bytes()).hexdigest(),
    }
    rows = write(tmp_path / "a.jsonl", {"text": "a"}, {"text": ""}, {"text": "b"})
    ids, info = evaluation_tokens(rows, tokenizer)
    assert tokenizer.decode(ids) == "a\n\n\n\nb"
    assert info["joined"] == "3 rows joined by a blank line"
    chat = write(tmp_path / "b.jsonl", {"messages": TURNS[:2]})
    ids, info = evaluation_tokens(chat, tokenizer)
    assert tokenizer.decode(ids) == "<|start|>system\nBe kind.<|end|>\n<|start|>user\nHi there<|end|>\n"
    assert info["joined"] == "one text, through the chat template"
    with pytest.raises(InputError, match="has 1 tokens: two are needed"):
        evaluation_tokens(write(tmp_path / "c.jsonl", {"text": "a"}), tokenizer)


def test_a_cut_text_gives_the_first_tokens_of_the_whole():
    """A tokenizer that merges, so that a careless cut would change the last tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = [d.text for d in read_documents("stdlib-docs:held-out")]
    core.train_from_iterator(texts[:2], trainers.BpeTrainer(vocab_size=400, show_progress=False))
    merging = PreTrainedTokenizerFast(tokenizer_object=core)
    whole, _ = evaluation_tokens("stdlib-docs:held-out", merging)
    for max_tokens in (2, 10, 333, len(whole) - 1, len(whole), len(whole) + 1):
        ids, info = evaluation_tokens("stdlib-docs:held-out", merging, max_tokens=max_tokens)
        assert torch.equal(ids, whole[:max_tokens])
        assert info["tokens"] == min(max_tokens, len(whole))


def test_token_that_swallows_the_blank_before_the_response(tmp_path):
    """Sentence-piece-like pieces begin with a space that belongs to the prompt."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<s>", "</s>", "A:", " yes", " no", "B:", "?"]
    core = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[a-z]+|[AB]:"), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="?")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ 'A:' if m['role'] == 'user' else 'B:' }} {{ m['content'] }}"
        "{% if m['role'] != 'user' %}</s>{% endif %}{% endfor %}"
    )
    turns = [{"role": r, "content": c} for r, c in (("user", "yes"), ("assistant", "no"), ("user", "no"))]
    spec = write(tmp_path / "a.jsonl", {"messages": turns})
    blocks = training_blocks([spec], tokenizer, seq_len=7, response_only=True)
    assert blocks.input_ids == [[2, 3, 5, 4, 1, 2, 4]]
    assert blocks.labels == [[IGNORED] * 3 + [4, 1] + [IGNORED] * 2]


def test_importing_data_loads_no_torch():
    import subprocess
    import sys

    code = "import sys, secateur.data.tokens; print({'torch', 'transformers', 'datasets'} & {*sys.modules} or 'none')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "none"


def test_the_split_that_a_name_stands_for_is_recorded(monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *a, split: [{"text": "some text"}])
    tokenizer = tiny_tokenizer()
    for spec, expected in (
        ("stdlib-docs", "stdlib-docs:held-out"),
        ("stdlib-docs:train", "stdlib-docs:train"),
        ("org/name", "org/name:test"),
        ("org/name:validation", "org/name:validation"),
        ("org/name:config:test", "org/name:config:test"),
    ):
        assert evaluation_tokens(spec, tokenizer, max_tokens=8)[1]["data"] == expected
    path = tmp_path / "a.txt"
    path.write_text("some text")
    assert evaluation_tokens(str(path), tokenizer)[1]["data"] == str(path)
