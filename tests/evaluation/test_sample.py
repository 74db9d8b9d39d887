"""Two models answer the same prompts; sampling is repeatable."""

import json

import pytest
import torch
from tiny import save_tiny, tiny_llama, tiny_tokenizer

from secateur.cli import main
from secateur.config.evaluation import SampleConfig
from secateur.evaluation.sample import read_prompts
from secateur.models.benchmark import encode_prompt, generate_text


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    return save_tiny(place / "dense"), save_tiny(place / "pruned", ffn=64, seed=1)


def test_side_by_side(folders, tmp_path, capsys) -> None:
    dense, pruned = map(str, folders)
    file, output = tmp_path / "more.jsonl", tmp_path / "sample.json"
    file.write_text(json.dumps({"prompt": "second"}) + "\n")
    arguments = ["sample", "--model", pruned, "--against", dense, "--prompts", "first", "--prompt-file", str(file),
                 "--max-new-tokens", "5", "--dtype", "float32", "--output", str(output)]  # fmt: skip
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    record = json.loads(output.read_text())
    assert [s["prompt"] for s in record["samples"]] == ["first", "second"]
    assert [list(s["answers"]) for s in record["samples"]] == [[dense, pruned]] * 2
    expected = generate_text(tiny_llama(), tiny_tokenizer(), "first", max_new_tokens=5, dtype=torch.float32)
    assert record["samples"][0]["answers"][dense] == expected
    assert record["samples"][0]["answers"][pruned] != expected
    assert record["chat_template"] == {dense: True, pruned: True}
    assert "first" in printed
    assert main(arguments) == 2
    assert "exists: pass --overwrite" in capsys.readouterr().err


def test_chat_template_is_respected_and_can_be_left_out() -> None:
    tokenizer = tiny_tokenizer()
    chat, plain = (tokenizer.decode(encode_prompt(tokenizer, "ab", chat=on)["input_ids"][0]) for on in (True, False))
    assert chat == "<|start|>user\nab<|end|>\n<|start|>assistant\n"
    assert plain == "ab"


def test_sampling_is_seeded_and_leaves_the_random_state() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()

    def said(seed: int) -> str:
        return generate_text(
            model, tokenizer, "ab", max_new_tokens=12, dtype=torch.float32, temperature=1.5, top_p=0.95, seed=seed
        )

    before = torch.get_rng_state()
    first = said(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert said(1) == first
    assert len({said(seed) for seed in range(2, 6)} | {first}) > 1


def test_refusals(folders, tmp_path, capsys) -> None:
    dense = str(folders[0])
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "x"}\n{"text": "y"}\n')
    for arguments, message in (
        ([], "no prompt given"),
        (["--prompts", "a", " "], "prompt 2 is empty"),
        (["--prompts", "a", "--temperature", "-1"], "--temperature is -1.0"),
        (["--prompts", "a", "--top-p", "0.5"], "no effect on greedy answers"),
        (["--prompts", "a" * 500], "more than the 512 positions"),
        (["--prompt-file", str(bad)], "bad.jsonl:2 has no text under `prompt`"),
        (["--prompt-file", str(tmp_path / "none.txt")], "cannot be read"),
    ):
        assert main(["sample", "--model", dense, *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_files_of_other_systems_hold_the_same_prompts(tmp_path, start, end) -> None:
    """A byte-order mark is no part of the first prompt, and a carriage return none of any."""
    file = tmp_path / "p.txt"
    file.write_bytes(start + end.join([b"one", b"", b" two ", b"three"]))
    assert read_prompts(SampleConfig(model="m", prompt_file=str(file))) == ["one", " two ", "three"]
    file = tmp_path / "p.jsonl"
    file.write_bytes(start + end.join([b'{"prompt": "one"}', b'{"prompt": "a\\r\\nb"}', b""]))
    assert read_prompts(SampleConfig(model="m", prompt_file=str(file))) == ["one", "a\r\nb"]


def test_token_types_are_no_part_of_a_prompt(tmp_path, capsys) -> None:
    folder = save_tiny(tmp_path / "m", layers=1)
    settings = folder / "tokenizer_config.json"
    names = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | names))
    assert main(["sample", "--model", str(folder), "--prompts", "ab", "--max-new-tokens", "2"]) == 0
    assert capsys.readouterr().out.startswith("prompt\n    ab\n")


def test_control_sequences_are_not_printed() -> None:
    from secateur.evaluation.sample import shown

    assert "\x1b" not in shown([{"prompt": "\x1b[2Ja", "answers": {"\x1b]0;t\x07m": "\x1b[31mred"}}])


def test_what_ends_a_reply_in_the_template_ends_an_answer() -> None:
    model, tokenizer = tiny_llama(vocab=130), tiny_tokenizer()
    tokenizer.add_tokens(["<fin>"])
    tokenizer.chat_template = (
        "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}<fin>{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    ender = tokenizer.convert_tokens_to_ids("<fin>")
    prompt = tokenizer.decode(encode_prompt(tokenizer, "ab", chat=True)["input_ids"][0])
    assert prompt == "ab<fin>>"  # the content in parts, as the template wants it
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(130).index_fill(0, torch.tensor([ender]), 1.0))
    kwargs = {"max_new_tokens": 5, "dtype": torch.float32}
    assert generate_text(model, tokenizer, "ab", **kwargs) == ""
    assert generate_text(model, tokenizer, "ab", chat=False, **kwargs) == "<fin>" * 5


def test_how_an_answer_is_made_is_no_part_of_it(tmp_path, capsys) -> None:
    folder = save_tiny(tmp_path / "model")
    expected = generate_text(tiny_llama(), tiny_tokenizer(), "first", max_new_tokens=5, dtype=torch.float32)
    asked = ["sample", "--model", str(folder), "--prompts", "first", "--max-new-tokens", "5", "--dtype", "float32"]

    def said(**settings):
        (folder / "generation_config.json").write_text(json.dumps(settings))
        code = main(asked)
        return code, capsys.readouterr()

    for settings in (
        {"cache_implementation": "static"}, {"cache_implementation": "quantized"},
        {"return_dict_in_generate": True, "output_scores": True}, {"stop_strings": ["never said"]},
    ):  # fmt: skip
        code, captured = said(**settings)
        assert code == 0, captured.err
        assert expected.strip() in captured.out
    code, captured = said(eos_token_id=0, do_sample=True, top_k="x")
    assert code == 2
    assert "generation_config.json cannot be followed (TypeError" in captured.err
    assert "(do_sample, top_k)" in captured.err
