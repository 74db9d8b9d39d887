"""`secateur bench`: the figures are of the models given, the ratios of what was measured."""

import json
import multiprocessing
import pickle
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import save_tiny, tiny_llama

from secateur.cli import main
from secateur.evaluation import bench


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    save_tiny(folder / "large", layers=4, hidden=128, ffn=1024, heads=8, kv_heads=4)
    save_tiny(folder / "small", layers=4, hidden=128, ffn=64, heads=8, kv_heads=4)
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = tiny_llama(layers=4, hidden=128, ffn=64, heads=8, kv_heads=4)
    get_peft_model(model, lora).save_pretrained(folder / "adapter")
    return folder


@pytest.fixture
def imports_made_once(monkeypatch) -> None:
    """What measures memory is forked from this process with its imports, which `spawn` would make for each model. What
    it is given is pickled and read back, as `spawn` does."""
    context = multiprocessing.get_context("fork")

    def process(target, args):
        *given, sender = args  # a pipe's end is pickled while a process is spawned, alone
        target, given = pickle.loads(pickle.dumps((target, given)))
        return context.Process(target=target, args=(*given, sender))

    alike = SimpleNamespace(Pipe=context.Pipe, Process=process)
    monkeypatch.setattr(bench.multiprocessing, "get_context", lambda method: alike)


@pytest.mark.usefixtures("imports_made_once")
def test_side_by_side(place, tmp_path, capsys) -> None:
    output = tmp_path / "bench.json"
    command = [
        "bench", "--model", str(place / "small"), "--against", str(place / "large"), "--adapter",
        str(place / "adapter"), "--seq-len", "128", "--decode-tokens", "8", "--repeats", "5", "--dtype", "float32",
        "--output", str(output),
    ]  # fmt: skip
    assert main(command) == 0
    printed = capsys.readouterr().out
    record = json.loads(output.read_text())["models"]
    small, large = record[str(place / "small")], record[str(place / "large")]
    assert list(record) == [str(place / "large"), str(place / "small"), "LoRA unmerged", "LoRA merged"]
    assert small["bytes_on_disk"] == (place / "small" / "model.safetensors").stat().st_size
    assert small["parameters"] < large["parameters"]
    assert record["LoRA merged"]["parameters"] == small["parameters"] < record["LoRA unmerged"]["parameters"]
    assert small["prefill"]["8"]["median_ms"] < large["prefill"]["8"]["median_ms"]
    assert small["prefill"]["8"]["median_ms"] > small["prefill"]["1"]["median_ms"]
    assert all(model["decode"]["tokens_per_s"] > 0 for model in record.values())
    assert small["peak_memory_bytes"] > 0
    ratio = small["prefill"]["1"]["median_ms"] / large["prefill"]["1"]["median_ms"]
    assert f"({ratio:.2f})" in printed
    spread = max(m["decode"]["spread_ms"] / m["decode"]["median_ms"] for m in record.values())
    assert f"decoding (spread {spread:.0%})" in printed
    assert main(command) == 2  # an earlier record is not overwritten
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--seq-len", "600"), "600 tokens are more than its 512 positions"),
        (("--batch-sizes", "0"), "--batch-sizes '0'"),
        (("--against", "{place}/small"), "give two models"),
        (("--adapter", "{place}/large"), "--adapter"),
        (("--repeats", "0"), "--repeats is 0"),
    ],
)
def test_bad_input(place, capsys, more, message) -> None:
    given = [word.format(place=place) for word in more]
    assert main(["bench", "--model", str(place / "small"), "--no-memory", *given]) == 2
    assert message in capsys.readouterr().err
