"""A tokenizer reads text as its file says, whatever class is named beside it."""

import json

import pytest
from tokenizers import pre_tokenizers
from tokenizing import bytes_file, save_tokenizer, sentence_file

from secateur.models.source import ModelSource
from secateur.models.tokenizers import load_tokenizer
from secateur.system.errors import InputError

DIGITS = [pre_tokenizers.Digits(individual_digits=True)]
FILES = {
    "digits": lambda: bytes_file(DIGITS),
    "digits, BOS and EOS": lambda: bytes_file(DIGITS, post="<s> $A </s>"),
    "a prefix space": lambda: bytes_file(prefix=True),
    "no prefix space": lambda: sentence_file(prefix=False),
    "a prefix": lambda: sentence_file(prefix=True, post="<s> $A"),
    "legacy": lambda: sentence_file(prefix=True, legacy=True, post="<s> $A"),
}
CLASSES = ["GPT2Tokenizer", "LlamaTokenizer", "CodeLlamaTokenizer", "Qwen2Tokenizer", "GPTNeoXTokenizerFast",
           "T5Tokenizer", "GemmaTokenizer", None]  # fmt: skip
TEXTS = ["2024 the cat", " x\n    42", "caf\u00e9 \u6728 \U0001f333", "</s>the cat<|end|> a"]


def opened(folder, model_type="llama"):
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return load_tokenizer(ModelSource("m", str(folder)))


def test_digits_are_split_where_the_file_says_so(tmp_path, caplog):
    """transformers 5 makes a GPT2Tokenizer of the vocabulary, in which 2024 is one token."""
    save_tokenizer(tmp_path, bytes_file(DIGITS), "GPT2Tokenizer")
    assert opened(tmp_path).tokenize("2024") == ["2", "0", "2", "4"]
    (said,) = caplog.messages
    assert said.startswith(
        "m: the tokenizer's class in transformers is not what its tokenizer.json says (GPT2Tokenizer"
    )
    assert "reads '2024 the cat' with ['2024'" in said
    assert said.endswith("the file's own pipeline is used")


@pytest.mark.parametrize("kind", FILES)
def test_every_class_gives_the_tokens_of_the_file(tmp_path, kind):
    file = FILES[kind]()
    for number, named in enumerate(CLASSES):
        for model_type in ("llama", "qwen2"):
            folder = save_tokenizer(tmp_path / f"{number}{model_type}", file, named, chat_template="{{ 'x' }}")
            tokenizer = opened(folder, model_type)
            for text in TEXTS:
                assert tokenizer(text)["input_ids"] == file.encode(text).ids, (named, model_type, text)
            assert (tokenizer.eos_token, tokenizer.chat_template) == ("</s>", "{{ 'x' }}")


def test_a_class_that_agrees_stays_and_nothing_is_said(tmp_path, caplog):
    save_tokenizer(tmp_path, bytes_file(), "GPT2Tokenizer")
    assert type(opened(tmp_path)).__name__ == "GPT2Tokenizer"
    assert not caplog.messages


def test_tokens_of_the_settings_are_no_difference(tmp_path, caplog):
    """tokenizer_config.json may add tokens, or say how one takes blanks: both classes follow it."""
    file = bytes_file()
    added = {"3": {"content": "<|end|>", "lstrip": False, "rstrip": True, "normalized": False, "single_word": False,
                   "special": True}}  # fmt: skip
    save_tokenizer(tmp_path, file, "GPT2Tokenizer", added_tokens_decoder=added, additional_special_tokens=["<|new|>"])
    assert opened(tmp_path).convert_tokens_to_ids("<|new|>") == file.get_vocab_size()
    assert not caplog.messages


def test_truncation_and_padding_of_the_file_are_no_difference(tmp_path, caplog):
    file = bytes_file()
    file.enable_truncation(3)
    file.enable_padding(length=50)
    save_tokenizer(tmp_path, file)
    assert len(opened(tmp_path)("the cat sat")["input_ids"]) == len(bytes_file().encode("the cat sat").ids)
    assert not caplog.messages


def test_a_sentencepiece_model_names_what_is_missing(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    monkeypatch.setattr("secateur.models.tokenizers._installed", lambda name: name != "sentencepiece")
    message = r"tokenizer\.model is a sentencepiece model, and reading it needs sentencepiece: pip install sentencep"
    with pytest.raises(InputError, match=message):
        opened(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    with pytest.raises(InputError, match="tiktoken"):  # which is what this one is
        opened(tmp_path)


def test_a_file_that_no_class_reads_is_refused(tmp_path):
    save_tokenizer(tmp_path, bytes_file(), "GPT2Tokenizer")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer.json cannot be read \(KeyError"):
        opened(tmp_path)
