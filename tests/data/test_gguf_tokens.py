"""Text of a GGUF file is split as the file says."""

import pytest
from tiny_gguf import save_gguf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from secateur.architecture.gguf import check_gguf
from secateur.data.gguf_tokens import follow_splits_
from secateur.models.source import resolve_model
from secateur.models.tokenizers import load_tokenizer
from secateur.system.errors import InputError


def tokenizer_of(path, pre=None):
    keys = {"tokenizer.ggml.pre": pre} if pre else {}
    return load_tokenizer(resolve_model(str(save_gguf(path / "m.gguf", keys=keys))))


def words(tokenizer, text):
    return [word for word, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def test_digits_go_apart_where_the_file_says_so(tmp_path):
    """As in SmolLM's own tokenizer.json: digits first, then GPT-2's words; blanks before a digit stay together."""
    assert words(tokenizer_of(tmp_path, "smollm"), "x\n    42") == ["x", "ĊĠĠĠĠ", "4", "2"]
    assert words(tokenizer_of(tmp_path, "gpt-2"), "x\n    42") == ["x", "ĊĠĠĠ", "Ġ42"]


def test_a_pipeline_that_is_not_known_is_refused_and_one_that_is_not_said_is_named(tmp_path, caplog):
    for name in ("viking", "porpoise"):
        with pytest.raises(InputError, match=rf"tokenizer\.ggml\.pre is '{name}', and transformers would split"):
            tokenizer_of(tmp_path, name)
    assert "does not say how text is split" not in caplog.text
    tokenizer_of(tmp_path)
    tokenizer_of(tmp_path, "default")
    assert caplog.text.count("does not say how text is split (tokenizer.ggml.pre)") == 2


class Holder:
    def __init__(self, backend):
        self.backend_tokenizer = backend


def test_a_sentencepiece_vocabulary_without_a_blank_in_front(tmp_path):
    keys = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.add_space_prefix": False}
    backend = Tokenizer(models.BPE({"\u2581": 0, "a": 1, "\u2581a": 2}, [("\u2581", "a")], byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    assert backend.encode("a").ids == [2]
    follow_splits_(Holder(backend), check_gguf(save_gguf(tmp_path / "m.gguf", keys=keys)))
    assert (backend.encode("a").ids, backend.encode(" a").ids, backend.decode([2])) == ([1], [2], " a")
    backend.normalizer = normalizers.Prepend("\u2581")  # Phi-3's way: as its architecture has it
    keys["tokenizer.ggml.add_space_prefix"] = True
    follow_splits_(Holder(backend), check_gguf(save_gguf(tmp_path / "n.gguf", keys=keys)))
    assert backend.encode("a").ids == [2]
