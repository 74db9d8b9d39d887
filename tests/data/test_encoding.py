"""What a model reads of a text: with what the tokenizer puts before it, without what it puts after."""

import pytest
from tiny import tiny_tokenizer
from tokenizing import bytes_file, sentence_file
from transformers import PreTrainedTokenizerFast

from secateur.data.encoding import around, encode, encode_document
from secateur.data.tokens import evaluation_tokens, training_blocks
from secateur.models.benchmark import encode_prompt

BOS, EOS, END = 1, 2, 3


def made(post=None, **more):
    options = {"bos_token": "<s>", "eos_token": "</s>", **more}
    return PreTrainedTokenizerFast(tokenizer_object=bytes_file(post=post), **options)


@pytest.mark.parametrize(
    ("post", "before", "after"),
    [
        (None, [], []),
        ("<s> $A", [BOS], []),
        ("$A </s>", [], [EOS]),
        ("<s> $A </s>", [BOS], [EOS]),
        ("<s> <|end|> $A <|end|> </s>", [BOS, END], [END, EOS]),
    ],
)
def test_what_stands_around_a_text(post, before, after):
    tokenizer = made(post)
    bare = bytes_file().encode("ab </s>").ids
    assert around(tokenizer) == (before, after)
    assert encode(tokenizer, "ab </s>") == before + bare
    assert encode(tokenizer, "ab </s>", special=False) == bare
    assert encode(tokenizer, "") == before
    assert encode_prompt(tokenizer, "ab", chat=True)["input_ids"].tolist() == [before + bytes_file().encode("ab").ids]


def test_a_document_ends_once():
    ab = bytes_file().encode("ab").ids
    assert encode_document(made(), "ab") == [*ab, EOS]
    assert encode_document(made("$A </s>"), "ab") == [*ab, EOS]
    assert encode_document(made("<s> $A <|end|>"), "ab") == [BOS, *ab, EOS]
    assert encode_document(made("$A <|end|>", eos_token=None), "ab") == [*ab, END]
    assert encode_document(made(eos_token=None), "ab") == ab
    assert encode_document(made(), "ab</s>") == [*ab, EOS]


def test_blocks_and_evaluation_of_a_tokenizer_that_ends_texts(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "abcd"}\n{"text": "efgh"}\n')
    plain, ending = made(), made("$A </s>")
    for tokenizer in (plain, ending):
        assert training_blocks([str(tmp_path / "t.jsonl")], tokenizer, seq_len=5).input_ids == [
            *([*bytes_file().encode(text).ids, EOS] for text in ("abcd", "efgh"))
        ]
    for most in (None, 4):
        ids = [evaluation_tokens(str(tmp_path / "t.jsonl"), each, max_tokens=most)[0] for each in (plain, ending)]
        assert ids[0].tolist() == ids[1].tolist()


def test_sentencepiece_and_the_tests_own_tokenizer():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=sentence_file(prefix=True, post="<s> $A </s>"))
    assert around(tokenizer) == ([BOS], [EOS])
    assert around(tiny_tokenizer()) == ([], [])


def test_a_prompt_has_no_token_types():
    """Llama's forward takes none, and generate says that they are not used."""
    tokenizer = made(model_input_names=["input_ids", "token_type_ids", "attention_mask"])
    assert "token_type_ids" in tokenizer("ab")
    assert set(encode_prompt(tokenizer, "ab", chat=False)) == {"input_ids", "attention_mask"}
