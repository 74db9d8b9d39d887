"""The tokenizer beside a result: the source's files as they are, read back as the run read them."""

import json
import sys

import pytest
from tiny import save_tiny, tiny_tokenizer
from tokenizers import pre_tokenizers
from tokenizing import bytes_file, save_tokenizer, sentence_file
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from secateur.checkpoint.export import save_model, write_checkpoint
from secateur.checkpoint.probe import default_probe
from secateur.checkpoint.tokenizer_files import write_tokenizer
from secateur.models.loading import load_model
from secateur.models.source import ModelSource
from secateur.models.tokenizers import load_tokenizer
from secateur.system.errors import VerificationError

DIGITS = [pre_tokenizers.Digits(individual_digits=True)]
BESIDE = {"special_tokens_map.json": "{}", "tokenizer.model": "not read", "chat_template.jinja": "{{ messages }}",
          "added_tokens.json": "{}", "additional_chat_templates/tool.jinja": "{{ tools }}"}  # fmt: skip


def source(folder, file, named="PreTrainedTokenizerFast", model_type="llama", **more):
    save_tokenizer(folder, file, named, **more)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "additional_chat_templates").mkdir()
    for name, content in BESIDE.items():
        (folder / name).write_text(content)
    return folder


def written(folder, tmp_path, **options):
    tokenizer = load_tokenizer(ModelSource("m", str(folder)), **options)
    made = tmp_path / "made"
    made.mkdir()
    (made / "config.json").write_text((folder / "config.json").read_text())
    return tokenizer, made, write_tokenizer(tokenizer, made)


def test_files_are_copied_as_they_are(tmp_path):
    folder = source(tmp_path / "m", sentence_file(prefix=True, post="<s> $A"), legacy=True, odd={"kept": 1})
    (folder / "tokenizer_config.json").chmod(0o600)
    _, made, found = written(folder, tmp_path)
    assert found.reader == "AutoTokenizer"
    for name in ("tokenizer.json", "tokenizer_config.json", *BESIDE):
        assert (made / name).read_bytes() == (folder / name).read_bytes(), name
    (tmp_path / "new").touch()
    assert (made / "tokenizer_config.json").stat().st_mode == (tmp_path / "new").stat().st_mode


@pytest.mark.parametrize(("model_type", "reader"), [("llama", "AutoTokenizer"), ("qwen2", "PreTrainedTokenizerFast")])
def test_a_class_that_reads_otherwise_is_named_no_more(tmp_path, model_type, reader):
    """transformers has types whose own class it takes whatever is named: there the reader itself is another."""
    file = bytes_file(DIGITS)
    folder = source(tmp_path / "m", file, "GPT2Tokenizer", model_type)
    _, made, found = written(folder, tmp_path)
    assert found.reader == reader
    before, after = (json.loads((place / "tokenizer_config.json").read_text()) for place in (folder, made))
    assert after == before | {"tokenizer_class": "PreTrainedTokenizerFast"}
    read = {"AutoTokenizer": AutoTokenizer, "PreTrainedTokenizerFast": PreTrainedTokenizerFast}[reader]
    assert read.from_pretrained(made)("2024")["input_ids"] == file.encode("2024").ids


def test_a_tokenizer_that_was_changed_is_saved_in_words_that_all_know(tmp_path):
    folder = source(tmp_path / "m", bytes_file())
    tokenizer = load_tokenizer(ModelSource("m", str(folder)))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    made = tmp_path / "made"
    made.mkdir()
    write_tokenizer(tokenizer, made)
    settings = json.loads((made / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "<|new|>" in settings["additional_special_tokens"]
    assert not (made / "tokenizer.model").exists()
    assert AutoTokenizer.from_pretrained(made)("a<|new|>")["input_ids"] == tokenizer("a<|new|>")["input_ids"]


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_files_that_transformers_5_wrote_are_put_in_words_that_all_know(tmp_path, model_type):
    """4.57 knows no TokenizersBackend, and fails on a list of extra tokens."""
    settings = {"extra_special_tokens": ["<|end|>"], "is_local": True}
    folder = source(tmp_path / "m", bytes_file(DIGITS), "TokenizersBackend", model_type, **settings)
    _, made, found = written(folder, tmp_path)
    after = json.loads((made / "tokenizer_config.json").read_text())
    assert after["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert after["additional_special_tokens"] == ["<|end|>"]
    assert "extra_special_tokens" not in after
    read = {"AutoTokenizer": AutoTokenizer, "PreTrainedTokenizerFast": PreTrainedTokenizerFast}[found.reader]
    assert [read.from_pretrained(made)(text)["input_ids"] for text in found.texts] == found.ids


def test_one_that_was_never_in_a_folder_is_saved(tmp_path):
    write_tokenizer(tiny_tokenizer(), tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert read("a <|end|>")["input_ids"] == tiny_tokenizer()("a <|end|>")["input_ids"]


def test_the_code_of_a_tokenizer_comes_along(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)  # another test's, in another folder
    folder = source(tmp_path / "m", bytes_file(), "Own", auto_map={"AutoTokenizer": [None, "tok.Own"]})
    (folder / "tok.py").write_text(
        "from transformers import PreTrainedTokenizerFast\nfrom .helper import NAME\n"
        "class Own(PreTrainedTokenizerFast):\n    label = NAME\n"
    )
    (folder / "helper.py").write_text("NAME = 'own'\n")
    tokenizer, made, found = written(folder, tmp_path, trust_remote_code=True)
    assert tokenizer.label == "own"
    assert found.trust
    for name in ("tok.py", "helper.py", "tokenizer_config.json"):
        assert (made / name).read_bytes() == (folder / name).read_bytes()


def test_a_fresh_process_reads_the_same_tokens(tmp_path, monkeypatch):
    """What is read back is compared with the run's own ids, so a tokenizer of another kind is found out."""
    folder = save_tiny(tmp_path / "m", layers=1, vocab=512)
    save_tokenizer(folder, bytes_file(DIGITS), "GPT2Tokenizer")
    origin = ModelSource("m", str(folder))
    model, tokenizer = load_model(origin), load_tokenizer(origin)
    ids = default_probe(tokenizer, 512)
    report = write_checkpoint(model, None, tmp_path / "out", "stock", ids, tokenizer, (0.0, 0.0), None)
    assert "AutoTokenizer" in report.loads_with
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode == (tmp_path / "out" / "config.json").stat().st_mode

    def copied(tokenizer, place):
        save_model(model, place, None)
        save_tokenizer(place, bytes_file(DIGITS), "GPT2Tokenizer")
        return found

    (tmp_path / "x").mkdir()
    found = write_tokenizer(tokenizer, tmp_path / "x")
    monkeypatch.setattr("secateur.checkpoint.export.write_tokenizer", copied)
    with pytest.raises(VerificationError, match="its tokenizer reads '2024 the cat' as"):
        write_checkpoint(model, None, tmp_path / "other", "stock", ids, tokenizer, (0.0, 0.0), None)
