"""The command line on tiny models: one whole run, and bad input that never gets far."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import save_tiny, tiny_tokenizer
from transformers import AutoModelForCausalLM

from secateur.cli import main
from secateur.cli.commands import COMMANDS
from secateur.config.evaluation import EvalConfig, SampleConfig
from secateur.config.prune import ExportConfig, PruneConfig, QuickstartConfig
from secateur.data.embedded import stdlib_docs
from secateur.evaluation.perplexity import perplexity


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a tiny model and some text of printable characters."""
    folder = tmp_path_factory.mktemp("place")
    save_tiny(folder / "model", layers=5, ffn=160)
    text = stdlib_docs("train")[0][1].encode("ascii", "ignore").decode()
    (folder / "text.txt").write_text(text * 3, encoding="utf-8")
    return folder


def arguments(place: Path, output: Path, **changes: object) -> list[str]:
    options = {
        "model": place / "model", "data": place / "text.txt", "output": output, "steps": 12, "seq_len": 32,
        "batch_size": 4, "frequency": 2, "sparsity": 0.4, "dtype": "float32", **changes,
    }  # fmt: skip
    found = ["prune"]
    for name, value in options.items():
        if value is not None:
            found += ["--" + name.replace("_", "-"), str(value)]
    return found


def test_prune_eval_export(place, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert (
        main([*arguments(place, out, eval_data=place / "text.txt", eval_steps=5, allocation="global", dropout=0.1)])
        == 0
    )
    printed = capsys.readouterr()
    assert "trust_remote_code=True" in printed.out
    assert f"vllm serve {out} --trust-remote-code\n" in printed.out
    assert "importance that each allocation removes" in printed.out.lower()
    assert printed.err.count("cut after step") == 3
    result = json.loads((out / "result.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    dense = AutoModelForCausalLM.from_pretrained(place / "model")
    count = lambda m: sum(p.numel() for p in m.parameters())  # noqa: E731
    assert result["pruned"]["parameters"] == count(model)
    gone = count(dense) - count(model)
    assert result["sparsity"]["reached"] == gone / result["sparsity"]["prunable_parameters"]
    assert abs(result["sparsity"]["reached"] - 0.4) <= 0.005
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().split("\n") if line]
    assert [line["step"] for line in metrics] == list(range(1, 13))
    assert "eval_perplexity" in metrics[4]
    assert metrics[-1]["sparsity"] == result["sparsity"]["reached"]
    assert metrics[-1]["parameters"] == count(model)
    units = json.loads((out / "units.json").read_text())
    removed = [u for cut in units["cuts"] for name, ids in cut["removed"].items() for u in ids]
    assert len(removed) == sum(p["units"] - len(p["kept"]) for p in units["pools"].values())
    card = (out / "README.md").read_text()
    assert "sha256" in card
    assert "\nvllm serve out --trust-remote-code\n" in card
    assert "Pruned with [LoRAPrune]" in card
    assert "of text.txt," in card
    assert "perplexity, text.txt," in card
    assert str(tmp_path) not in card  # paths are private
    assert str(place) not in card
    assert "<h1>model, " in (out / "report.html").read_text()
    assert not out.with_name("out.run").exists()
    text = str(place / "text.txt")
    evaluated = [
        "eval", "--model", str(out), "--against", str(place / "model"), "--data", text, "--seq-len", "32",
        "--max-tokens", "2048", "--dtype", "float32", "--trust-remote-code", "--output", str(tmp_path / "eval.json"),
    ]  # fmt: skip
    assert main(evaluated) == 0
    figures = json.loads((tmp_path / "eval.json").read_text())
    assert set(figures["models"]) == {str(out), str(place / "model")}
    assert "2,048" in capsys.readouterr().out
    again = arguments(place, tmp_path / "again", model=out, sparsity=0.2, allocation="global", steps=6, frequency=1)
    assert main(again) == 0  # our own modelling file is not run, ours is
    assert json.loads((tmp_path / "again" / "result.json").read_text())["dense"]["parameters"] == count(model)
    assert main(["export", "--model", str(out), "--output", str(tmp_path / "padded"), "--format", "padded"]) == 0
    padded = AutoModelForCausalLM.from_pretrained(tmp_path / "padded")
    padded_card = (tmp_path / "padded" / "README.md").read_text()
    assert padded_card.split("```")[0].startswith(card.split("```")[0].rstrip())  # front matter, what was done, figures
    assert "This is the `padded` form" in padded_card
    assert 'from_pretrained("padded")' in padded_card
    assert "trust_remote_code" not in padded_card
    assert re.findall("^(?:vllm|llama-server) .*", padded_card, re.M) == [
        "vllm serve padded",
        "llama-server -m padded.gguf",
    ]
    assert "sha256" not in padded_card
    ids = torch.arange(3, 60).unsqueeze(0)
    torch.testing.assert_close(padded(ids).logits, model(ids).logits, rtol=0.0, atol=2e-4)


def test_a_float32_run_of_a_bfloat16_checkpoint_measures_in_float32(place, tmp_path, capsys) -> None:
    """As on hardware without bfloat16: what is read back has bfloat16 weights, and nothing but a cast widens them."""
    save_tiny(tmp_path / "narrow", layers=3, dtype=torch.bfloat16)
    out, text = tmp_path / "out", str(place / "text.txt")
    given = {"model": tmp_path / "narrow", "eval_data": text, "eval_tokens": 1024, "eval_seq_len": 32, "steps": 6}
    assert main(arguments(place, out, **given)) == 0
    measured = json.loads((out / "result.json").read_text())["pruned"]["perplexity"]["perplexity"]
    ids = torch.tensor(tiny_tokenizer()(Path(text).read_text(encoding="utf-8")).input_ids)
    expected = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModelForCausalLM.from_pretrained(out, dtype=dtype)
        expected[dtype] = perplexity(model, ids[:1024], seq_len=32, batch_size=2, dtype=torch.float32).perplexity
    assert measured == pytest.approx(expected[torch.float32], rel=1e-6)
    assert measured != pytest.approx(expected[torch.bfloat16], rel=1e-5)
    evaluated = ["eval", "--model", str(out), "--data", text, "--seq-len", "32", "--max-tokens", "1024"]
    assert main([*evaluated, "--dtype", "float32", "--output", str(tmp_path / "eval.json")]) == 0
    found = json.loads((tmp_path / "eval.json").read_text())["models"][str(out)]["perplexity"]
    assert found == pytest.approx(measured, rel=1e-6)


def test_a_pruned_model_is_pruned_again_from_yaml(place, tmp_path, capsys) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(arguments(place, first, sparsity=0.3)) == 0
    lines = [
        f"model: {first}", f"data: {place / 'text.txt'}", "steps: 12", "seq-len: 32", "batch_size: 4", "sparsity: 0.2",
        "attention: none", "criterion: magnitude", "prune_end: 0.5",
    ]  # fmt: skip
    (tmp_path / "run.yaml").write_text("\n".join(lines))
    assert main(["prune", "--config", str(tmp_path / "run.yaml"), "--output", str(second), "--dtype", "float32"]) == 0
    result = json.loads((second / "result.json").read_text())
    assert result["config"]["criterion"] == "magnitude"
    assert "LoRAPrune" not in (second / "README.md").read_text()
    assert "criterion `magnitude` (the size of the adapted weight" in (second / "README.md").read_text()
    assert result["dense"]["parameters"] == json.loads((first / "result.json").read_text())["pruned"]["parameters"]
    assert json.loads((second / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_a_run_repeats_from_its_own_yaml_to_the_bit(place, tmp_path) -> None:
    """Also by way of a recipe and of an adapter, whose options come from elsewhere."""
    first, again = tmp_path / "first", tmp_path / "again"
    assert main([*arguments(place, first, sparsity=0.3), "--recipe", "best", "--seed", "7"]) == 0
    assert main(["prune", "--config", str(first / "run.yaml"), "--output", str(again)]) == 0
    assert (first / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    assert (first / "run.yaml").read_text() == (again / "run.yaml").read_text()
    lora, more, same = tmp_path / "lora", tmp_path / "more", tmp_path / "same"
    run = ["--model", str(place / "model"), "--data", str(place / "text.txt"), "--steps", "4", "--frequency", "1"]
    run += ["--seq-len", "32", "--batch-size", "2", "--dtype", "float32"]
    assert main(["adapt", *run, "--output", str(lora), "--init-rank", "6", "--rank", "4", "--alpha", "3"]) == 0
    assert main(["adapt", *run, "--output", str(more), "--adapter", str(lora), "--rank", "2"]) == 0
    assert main(["adapt", "--config", str(more / "run.yaml"), "--output", str(same)]) == 0
    weights = "adapter_model.safetensors"
    assert (more / weights).read_bytes() == (same / weights).read_bytes()


def test_a_current_folder_that_is_gone_is_said(tmp_path, capsys, monkeypatch) -> None:
    """Where it is not, MKL ends the process with words of its own."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["criteria"]) == 2
    assert "error: the current folder is not there any more" in capsys.readouterr().err


def test_no_disk_space_is_known_before_the_run(place, tmp_path, capsys, monkeypatch) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("secateur.system.output.shutil.disk_usage", lambda path: usage._replace(free=1000))
    assert main(arguments(place, tmp_path / "out")) == 2
    assert "0.001 MB free: make room" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["--help"], ["prune", "--help"]])
def test_help_is_fast_and_loads_no_torch(command) -> None:
    """Under 0.3 s of one core with the interpreter's own start, the best of some."""
    code = (
        "import sys, time; from secateur.cli import main\n"
        f"try: main({command})\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'rich', 'matplotlib', 'gguf', 'datasets', 'pyarrow'}\n"
        "assert not heavy & set(sys.modules)\n"
        "print(time.process_time(), file=sys.stderr)"
    )
    seconds = []
    while len(seconds) < 5 and min(seconds, default=1.0) >= 0.3:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "secateur" in done.stdout
        seconds.append(float(done.stderr))
    assert min(seconds) < 0.3


def test_every_option_has_a_flag(capsys) -> None:
    from dataclasses import fields

    for command, cls in (
        ("prune", PruneConfig), ("eval", EvalConfig), ("export", ExportConfig), ("quickstart", QuickstartConfig),
        ("sample", SampleConfig),
    ):  # fmt: skip
        assert COMMANDS[command].options[0] is cls
        with pytest.raises(SystemExit):
            main([command, "--help-all"])
        text = capsys.readouterr().out
        assert all("--" + f.name.replace("_", "-") in text for f in fields(cls))


def test_lists(capsys) -> None:
    assert main(["criteria"]) == 0
    assert "lora_grad" in capsys.readouterr().out


def test_families_are_listed_with_kinds_formats_and_limits(capsys) -> None:
    from secateur.architecture.families import FAMILIES

    assert main(["families"]) == 0
    printed = capsys.readouterr().out.splitlines()
    formats, notes = {}, dict.fromkeys(FAMILIES, "")
    for line in printed[1 : printed.index("")]:
        name, kinds, read, *note = re.split(r"  +", line)
        formats |= {(name, kind): read for kind in kinds.split(", ")}
        notes[name] += "; ".join(note)
    assert formats == {
        (name, kind): ", ".join(family.formats[kind]) for name, family in FAMILIES.items() for kind in family.kinds
    }
    for name, family in FAMILIES.items():
        assert ("no heads: " in notes[name]) == (family.no_heads is not None)
        experts_go = family.experts is not None and family.experts_stay is None
        assert ("whole experts, before training: --experts (stock)" in notes[name]) == experts_go
        assert ("an encoder-decoder" in notes[name]) == family.encoder_decoder
    assert formats["llama", "ffn"] == "stock, layered, padded"
    assert formats["gpt2", "kv_group"] == "layered, padded"
    assert notes["phi"] == "with qk_layernorm in its config no head goes in stock format"


def test_unknown_trackers_are_refused(place, tmp_path, capsys, monkeypatch) -> None:
    assert main([*arguments(place, tmp_path / "out"), "--report-to", "tensorbord"]) == 2
    assert "--report-to tensorbord: choose from tensorboard, wandb, mlflow, trackio" in capsys.readouterr().err
    # A folder of that name, as wandb makes one, is no package.
    monkeypatch.setattr("secateur.config.run.TRACKERS", ("some_tracker",))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "some_tracker").mkdir()
    assert main([*arguments(place, tmp_path / "out"), "--report-to", "some_tracker"]) == 2
    assert (
        "--report-to some_tracker: the package is not installed: pip install some_tracker." in capsys.readouterr().err
    )
