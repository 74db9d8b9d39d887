"""`secateur eval`: paired differences, presets as the papers prepare them, and warnings that are true."""

import hashlib
import json
import math
import random

import pytest
import torch
from tiny import save_tiny, tiny_llama, tiny_tokenizer
from transformers import Gemma3TextConfig, MistralConfig, Qwen2Config

from secateur.architecture.stock import window_of
from secateur.cli import main
from secateur.data import presets
from secateur.data.documents import Document, fingerprint
from secateur.data.overlap import overlap_of_rows, overlap_with_training
from secateur.data.presets import PRESETS, preset_text
from secateur.evaluation.perplexity import paired, segment_nlls
from secateur.evaluation.subjects import Subject, Text, find_warnings
from secateur.system.errors import InputError
from secateur.system.records import write_json


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    return save_tiny(place / "dense"), save_tiny(place / "pruned", ffn=64, seed=1)


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """A folder of preset files with the white space of the real ones."""
    folder = tmp_path / "data"
    folder.mkdir()
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    draw = random.Random(0)
    lines = [" " + " ".join(draw.choices(words, k=12)) + " " for _ in range(40)]
    (folder / "wikitext2_raw_test.txt").write_text(" \n = Title = \n \n" + "\n".join(lines) + "\n")
    for split in ("test", "valid"):
        (folder / f"ptb_{split}.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.setenv("SECATEUR_DATA", str(folder))
    return folder


def test_paired_difference() -> None:
    easy, hard = torch.tensor([1.0, 1.1, 0.9]), torch.tensor([5.0, 5.1, 4.9])
    base = torch.cat([easy, hard, easy, hard]).double()
    noise = torch.tensor([0.01, -0.01, 0.02, -0.02, 0.01, -0.01]).repeat(2).double()
    worse = paired(base + 0.1 + noise, base)
    assert worse.mean_difference_nll == pytest.approx(0.1)
    assert worse.stderr_difference_nll == pytest.approx(noise.std().item() / math.sqrt(12))
    assert worse.within_noise is False
    assert "outside the noise" in worse.verdict
    assert paired(base + noise, base).within_noise is True
    few = paired(base[:9] + 1, base[:9])
    assert few.within_noise is None
    assert "9 segments are too few to tell it from noise" in few.verdict
    assert math.isnan(paired(base[:1] + 1, base[:1]).stderr_difference_nll)
    # unpaired, the spread between easy and hard segments would hide the difference
    assert base.std().item() / math.sqrt(12) > 0.5


def test_eval_of_two_models(folders, texts, tmp_path, capsys) -> None:
    dense, pruned = map(str, folders)
    output = tmp_path / "eval.json"
    assert main(["eval", "--model", pruned, "--against", dense, "--preset", "wikitext2-128", "--dtype", "float32",
                 "--output", str(output)]) == 0  # fmt: skip
    record = json.loads(output.read_text())
    text, _ = preset_text("wikitext2-128")
    ids = tiny_tokenizer()(text, return_tensors="pt")["input_ids"][0]
    one, two = (
        segment_nlls(model, ids, seq_len=128, dtype=torch.float32)
        for model in (tiny_llama(ffn=64, seed=1), tiny_llama())
    )
    assert record["models"][pruned]["mean_nll"] == pytest.approx(one.mean().item(), rel=1e-5)
    assert record["paired"]["mean_difference_nll"] == pytest.approx((one - two).mean().item(), rel=1e-3)
    assert record["paired"]["segments"] == len(ids) // 128 == record["models"][dense]["segments"]
    data = record["data"]
    assert (data["text"], data["split"], data["joined"]) == (
        "WikiText-2 raw", "test", "43 rows joined by a blank line",
    )  # fmt: skip
    assert (data["tokens"], data["sha256"]) == (len(ids), hashlib.sha256(text.encode()).hexdigest())
    assert record["warnings"] == []
    printed = capsys.readouterr().out
    assert "the noise" in printed
    assert "segments of 128" in printed


def test_presets_join_rows_as_the_hub_has_them(texts) -> None:
    (texts / "wikitext2_raw_test.txt").write_text(" \n = A = \n \n x y \n z \n")
    (texts / "ptb_test.txt").write_text(" no it was n't \n but <unk> \n")
    # datasets: ["", " = A = \n", "", " x y \n", " z \n"]
    assert preset_text("wikitext2-2048")[0] == "\n\n = A = \n\n\n\n\n x y \n\n\n z \n"
    assert preset_text("ptb-1024")[0] == "no it was n't but <unk>"
    assert preset_text("ptb-lines-128")[0] == "no it was n't\n\nbut <unk>"
    (texts / "ptb_valid.txt").write_text(" it \n is <unk> \n")
    text, info = preset_text("ptb-valid-2048")
    assert (text, info["split"], info["data"]) == ("it\n\nis <unk>", "validation", "$SECATEUR_DATA/ptb_valid.txt")
    assert {preset.seq_len for preset in PRESETS.values()} == {128, 1024, 2048}


def test_presets_of_the_real_files(data_dir) -> None:
    for name, rows in (("wikitext2-128", 4358), ("wikitext2-unk-128", 4358), ("ptb-128", 3761),
                       ("ptb-valid-128", 3370)):  # fmt: skip
        text, info = preset_text(name)
        assert info["joined"].startswith(f"{rows:,} rows")
        assert text.strip()


def test_presets_from_the_hub(monkeypatch) -> None:
    monkeypatch.delenv("SECATEUR_DATA", raising=False)
    asked = []

    def rows(spec: str) -> list[Document]:
        asked.append(spec)
        return [Document("text", "", text) for text in ("", " = A = \n")]

    monkeypatch.setattr(presets, "read_documents", rows)
    text, info = preset_text("wikitext2-128")
    assert (text, info["data"]) == ("\n\n = A = \n", "Salesforce/wikitext:wikitext-2-raw-v1:test")
    assert asked == [info["data"]]
    with pytest.raises(InputError, match="--preset ptb-128 needs the file ptb_test.txt: set SECATEUR_DATA"):
        preset_text("ptb-128")


def trained_on(folder, *files) -> None:
    write_json(folder / "result.json", {"data": {"training": fingerprint(list(map(str, files)))}})


def test_overlap_is_counted(tmp_path) -> None:
    words = [f"w{i}" for i in range(30)]
    seen = tmp_path / "seen.txt"
    seen.write_text("x " + " ".join(words[:15]).upper() + "\n y")
    trained_on(tmp_path, seen)
    found = overlap_with_training(" ".join(words), str(tmp_path))
    assert found is not None
    assert (found.sequences, found.found) == (18, 3)  # 15 shared words hold three sequences of 13
    assert "3 of 18 distinct 13-word sequences" in found.warning
    assert str(seen) in found.warning
    unseen = overlap_with_training(" ".join(reversed(words)), str(tmp_path))
    assert unseen is not None
    assert (unseen.found, unseen.warning) == (0, "")
    assert overlap_with_training("a", str(tmp_path / "none")) is None
    seen.write_text("something else")
    changed = overlap_with_training(" ".join(words), str(tmp_path))
    assert changed is not None
    assert "is not known: " in changed.warning
    seen.unlink()
    assert "no such file" in overlap_with_training(" ".join(words), str(tmp_path)).warning


def test_overlap_reaches_the_user(folders, texts, tmp_path, capsys) -> None:
    folder = save_tiny(tmp_path / "leaky")
    trained_on(folder, texts / "ptb_test.txt")
    assert main(["eval", "--model", str(folder), "--preset", "ptb-128", "--dtype", "float32"]) == 0
    assert "warning: " in (printed := capsys.readouterr().out)
    assert "its figures may flatter it" in printed


def test_a_window_is_one_where_every_layer_has_it() -> None:
    assert [window_of(config) for config in WINDOWS] == [64, 64, None, None, None, None, 64]


WINDOWS = (
    MistralConfig(sliding_window=64),
    Gemma3TextConfig(sliding_window=64, num_hidden_layers=2, layer_types=["sliding_attention"] * 2),
    Gemma3TextConfig(sliding_window=64, num_hidden_layers=6),
    Qwen2Config(sliding_window=64, use_sliding_window=False),
    Qwen2Config(sliding_window=64, use_sliding_window=True, max_window_layers=2, num_hidden_layers=4),
    MistralConfig(sliding_window=None),
    Qwen2Config(sliding_window=64, use_sliding_window=True, max_window_layers=0, num_hidden_layers=4),
)


def test_warnings_of_windows_and_tokenizers() -> None:
    config = tiny_llama().config
    config.sliding_window = 64
    other = tiny_tokenizer()
    other.add_tokens(["new"])
    subjects = [Subject("a", None, config, tiny_tokenizer()), Subject("b", None, tiny_llama().config, other)]
    same = (torch.zeros(3), torch.zeros(3))
    found = find_warnings(subjects, Text(same, 128, {}, {"a": len(same[0]), "b": len(same[-1])}, []))
    assert "a sees at most the last 64 tokens" in found[0]
    assert "a and b have different tokenizers, though they cut this text alike" in found[1]
    assert "each reads the tasks' prompts in tokens of its own" in find_warnings(subjects, None)[0]
    assert len(found) == 2
    alike = [Subject("a", None, tiny_llama().config, tiny_tokenizer())] * 2
    assert find_warnings(alike, Text(same, 128, {}, {"a": len(same[0]), "b": len(same[-1])}, [])) == []
    assert find_warnings(alike, None) == []


def test_texts_cut_differently_are_warned_of_and_not_paired(folders, tmp_path, capsys) -> None:
    """The other tokenizer knows "the " as one token."""
    dense, other = folders[0], tmp_path / "other"
    tiny_llama(ffn=64, seed=1).save_pretrained(other)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["the "])
    tokenizer.save_pretrained(other)
    text, output = tmp_path / "text.txt", tmp_path / "eval.json"
    text.write_text("over the hill and the sea " * 40)
    assert main(["eval", "--model", str(other), "--against", str(dense), "--data", str(text), "--seq-len", "64",
                 "--dtype", "float32", "--output", str(output)]) == 0  # fmt: skip
    record = json.loads(output.read_text())
    assert record["paired"] is None
    assert "have different tokenizers and cut the text into 800 and 1,040 tokens" in record["warnings"][0]
    for folder, tokens in ((other, 800), (dense, 1040)):
        found = record["models"][str(folder)]
        assert found["segments"] == tokens // 64
        assert found["nats_per_byte"] == pytest.approx(found["mean_nll"] * tokens / 1040)
    printed = capsys.readouterr().out
    assert "nats per byte" in printed
    assert "ratio" not in printed


def test_tokens_without_an_embedding_are_one_message(folders, tmp_path, capsys) -> None:
    folder = tmp_path / "odd"
    tiny_llama(vocab=64).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    text = tmp_path / "text.txt"
    text.write_text("zz top " * 30)
    for command in (["eval", "--data", str(text), "--seq-len", "16"], ["sample", "--prompts", "zz"]):
        assert main([*command, "--model", str(folder)]) == 2
        assert "has embeddings of 64 tokens: it is another model's tokenizer" in capsys.readouterr().err
    ids = torch.full((32,), 64)
    with pytest.raises(InputError, match="gives token 64, and the model has embeddings of 64 tokens"):
        segment_nlls(tiny_llama(vocab=64), ids, seq_len=16, dtype=torch.float32)


def test_an_output_that_cannot_be_written_is_refused_first(folders, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("secateur.evaluation.assess.load_model", None)  # no model is loaded
    dense = str(folders[0])
    for command in (["eval", "--preset", "ptb-128"], ["sample", "--prompts", "a"], ["bench"]):
        for output, message in ((tmp_path / "none" / "x.json", "cannot be written"), (tmp_path, "is a folder")):
            assert main([*command, "--model", dense, "--output", str(output)]) == 2
            assert message in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["eval", "--preset", "ptb-128", "--model", dense, "--output", str(tmp_path / "file")]) == 2
    assert "pass --overwrite" in capsys.readouterr().err


def test_rows_of_tasks_in_the_training_text_are_counted(tmp_path) -> None:
    words = [f"w{i}" for i in range(30)]
    seen = tmp_path / "seen.txt"
    seen.write_text(" ".join(words))
    trained_on(tmp_path, seen)
    texts = {"boolq": [" ".join(words[5:20]), " ".join(reversed(words)), "short one"], "piqa": ["nothing " * 20]}
    found = overlap_of_rows(texts, str(tmp_path))
    assert (found.found, found.rows) == ({"boolq": 1, "piqa": 0}, {"boolq": 2, "piqa": 1})
    [line] = found.warnings
    assert line.startswith("1 of the 2 rows of boolq of 13 words or more share 13 in a row with the text")
    assert overlap_of_rows(texts, str(tmp_path / "none")) is None
    seen.unlink()
    assert "is not known" in overlap_of_rows(texts, str(tmp_path)).warnings[0]


def test_refusals(folders, texts, tmp_path, capsys) -> None:
    dense = str(folders[0])
    for arguments, message in (
        ([], "nothing to evaluate on"),
        (["--preset", "wikitext2-127"], "Did you mean 'wikitext2-128'?"),
        (["--preset", "ptb-128", "--data", "x.txt"], "leave one out"),
        (["--preset", "ptb-128", "--seq-len", "64"], "--seq-len 64 contradicts --preset ptb-128"),
        (["--preset", "ptb-128", "--against", dense + "/"], "give two models"),
        (["--preset", "ptb-2048"], "segments of 2048 tokens are longer than the 512 positions"),
    ):
        assert main(["eval", "--model", dense, *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("process", [0, 1])
def test_processes_that_only_share_the_text_do_not_wait_for_tasks(folders, texts, monkeypatch, process) -> None:
    """The harness asks the first process alone, and sums over processes wait for all of them."""
    done: list[str] = []
    real = segment_nlls
    monkeypatch.setattr("secateur.evaluation.assess.rank", lambda: process)
    monkeypatch.setattr("secateur.evaluation.assess.leave", lambda: done.append("leave"))
    monkeypatch.setattr("secateur.evaluation.assess.check_tasks", lambda options: None)
    monkeypatch.setattr("secateur.evaluation.assess.segment_nlls", lambda *a, **k: done.append("text") or real(*a, **k))
    monkeypatch.setattr("secateur.evaluation.assess.run_tasks", lambda *a: done.append("tasks") or ({}, []))
    monkeypatch.setattr("secateur.evaluation.assess.task_lines", lambda *a: [])
    dense, pruned = map(str, folders)
    assert main(["eval", "--model", pruned, "--against", dense, "--preset", "ptb-128", "--tasks", "piqa"]) == 0
    assert done == ["text", "text", "leave", *(["tasks", "tasks"] if process == 0 else [])]
