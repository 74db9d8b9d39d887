"""For a tokenizer that puts a token before texts, each segment and block begins with it; for others nothing changes."""

import json
import math

import pytest
import torch
from tiny import save_tiny, tiny_llama, tiny_tokenizer
from tokenizing import bytes_file, save_tokenizer
from transformers import PreTrainedTokenizerFast

from secateur.cli import main
from secateur.data.tokens import evaluation_tokens, training_blocks
from secateur.evaluation.perplexity import perplexity
from secateur.system.errors import InputError
from secateur.training.checkpoints import check_same_run, write_run

BOS, EOS = 1, 2
TEXT = "abcdefghijklmnopqrstuvwxyz"


def made(post=None, **more):
    return PreTrainedTokenizerFast(
        tokenizer_object=bytes_file(post=post), **{"bos_token": "<s>", "eos_token": "</s>", **more}
    )


def ids_of(text):
    return bytes_file().encode(text).ids


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "t.txt").write_text(TEXT)
    return str(tmp_path / "t.txt")


def test_each_segment_begins_with_it_and_as_many_tokens_are_scored(spec):
    ids, info = evaluation_tokens(spec, made("<s> $A"), seq_len=6)
    letters = ids_of(TEXT)
    assert ids[:24].view(4, 6).tolist() == [[BOS, *letters[i : i + 5]] for i in (0, 5, 10, 15)]
    assert ids[24:].tolist() == [BOS, *letters[20:25], BOS, *letters[25:]]
    assert info["begins"] == "each segment begins with <s>"
    assert info["tokens"] == 27  # of the text, as it was counted before
    model = tiny_llama(vocab=300)
    measured = perplexity(model, ids, seq_len=6, dtype=torch.float32)
    assert (measured.segments, measured.tokens_scored) == (5, 25)
    nlls = []
    with torch.inference_mode():
        for i in range(0, 25, 5):
            row = torch.tensor([[BOS, *letters[i : i + 5]]])
            losses = model(row).logits[0, :-1].log_softmax(-1).gather(1, row[0, 1:, None])
            nlls += (-losses[:, 0]).tolist()
    assert measured.perplexity == pytest.approx(math.exp(sum(nlls) / len(nlls)), rel=1e-5)


def test_of_two_tokens_that_each_segment_begins_with_none_is_scored(spec):
    """As ChatGLM's `[gMASK]<sop>`."""
    ids, info = evaluation_tokens(spec, made("<unk> <s> $A"), seq_len=6)
    assert (info["begins"], info["unscored"]) == ("each segment begins with <unk><s>", 2)
    model = tiny_llama(vocab=300)
    measured = perplexity(model, ids, seq_len=6, dtype=torch.float32, unscored=2)
    with torch.inference_mode():
        rows = ids[: len(ids) // 6 * 6].view(-1, 6)
        losses = model(rows).logits[:, 1:-1].log_softmax(-1).gather(2, rows[:, 2:, None])
    assert measured.mean_nll == pytest.approx(-float(losses.mean()), rel=1e-5)
    assert measured.tokens_scored == losses.numel() == 24


@pytest.mark.parametrize(("post", "bos"), [(None, "auto"), (None, "never"), ("<s> $A", "never")])
def test_without_one_segments_are_the_text_itself(spec, post, bos):
    ids, info = evaluation_tokens(spec, made(post), seq_len=6, bos=bos)
    assert ids.tolist() == ids_of(TEXT)
    assert info["begins"] == "each segment begins with its own first token"


def test_always_takes_the_token_that_the_tokenizer_has(spec):
    ids, _ = evaluation_tokens(spec, made(), seq_len=6, bos="always")
    assert ids.tolist() == evaluation_tokens(spec, made("<s> $A"), seq_len=6)[0].tolist()
    with pytest.raises(InputError, match="--bos always: the tokenizer has no bos_token"):
        evaluation_tokens(spec, tiny_tokenizer(), seq_len=6, bos="always")


def test_each_block_begins_with_it_once(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "abcdefg"}\n{"text": "hijklm"}\n')
    one, other = ids_of("abcdefg"), ids_of("hijklm")
    blocks = training_blocks([str(path)], made("<s> $A"), seq_len=4)
    run = [BOS, *one, EOS, BOS, *other, EOS]
    # the run is cut where a block is full; the fourth block begins in the second text
    expected = [run[:4], [BOS, *run[4:7]], [BOS, *run[7:10]], [BOS, *run[10:13]], [BOS, *run[13:16]]]
    assert blocks.input_ids == [row for row in expected if len(row) == 4]
    assert [row[0] for row in blocks.labels] == [BOS] + [-100] * (len(blocks) - 1)
    assert blocks.n_dropped_tokens == len(run) - sum(map(len, expected)) + len(blocks) - 1
    apart = training_blocks([str(path)], made("<s> $A"), seq_len=4, packing="separate")
    assert apart.input_ids == blocks.input_ids
    assert apart.position_ids[:2] == [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert apart.position_ids[2] == [0, 1, 2, 0]  # the rest of the first text, then the second
    never = training_blocks([str(path)], made("<s> $A"), seq_len=4, bos="never")
    assert never.input_ids == training_blocks([str(path)], made(), seq_len=4).input_ids
    assert all(BOS not in row for row in never.input_ids)


def test_a_run_of_an_earlier_version_goes_on_where_nothing_changed(tmp_path):
    """It has no such option. Its blocks are today's if no token is put before them."""
    options = {"lr": 1.0, "bos": "auto"}
    write_run(tmp_path, {"lr": 1.0}, [], None)
    check_same_run(tmp_path, options, [], (), formerly={"bos": "auto"})
    with pytest.raises(InputError, match="bos: None -> auto"):
        check_same_run(tmp_path, options, [], (), formerly={"bos": None})


def test_records_say_what_segments_begin_with(tmp_path, spec, capsys):
    folder = save_tiny(tmp_path / "m", layers=1, vocab=300)
    save_tokenizer(folder, bytes_file(post="<s> $A"))
    output = tmp_path / "eval.json"
    command = ["eval", "--model", str(folder), "--data", spec, "--seq-len", "6", "--dtype", "float32", "--overwrite",
               "--output", str(output)]  # fmt: skip
    found = {}
    for bos in ("auto", "never"):
        assert main([*command, "--bos", bos]) == 0
        record = json.loads(output.read_text())
        assert record["config"]["bos"] == bos
        found[record["data"]["begins"][str(folder)]] = record["models"][str(folder)]["perplexity"]
    assert list(found) == ["each segment begins with <s>", "each segment begins with its own first token"]
    assert len(set(found.values())) == 2
    printed = capsys.readouterr().out
    assert printed.count("5 segments of 6, each segment begins with <s>, float32") == 1
