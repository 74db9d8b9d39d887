"""Each example runs as it is printed, here on a tiny model, and leaves what stock transformers load.

With $SECATEUR_EXAMPLES (`make examples`) they run on the real model, as a user runs them.
"""

import ast
import os
import re
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import save_tiny
from transformers import AutoModelForCausalLM
from zygote import launch

from secateur.data import embedded_model_dir

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
"""Trainer without a GPU."""
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))
OUTPUTS = {
    "compare_criteria": ("compare_criteria/lora", "compare_criteria/gate"),
    "own_task": ("own_task/half",),
}
"""Example -> folders under runs/, where it is not its own name."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def run(tiny, tmp_path, monkeypatch, capfd):
    """Runs an example in an empty folder and returns what it prints."""

    def run(name: str, *arguments: str) -> str:
        argv = [str(EXAMPLES / f"{name}.py"), "--model", str(tiny), *arguments]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", argv)
        runpy.run_path(argv[0], run_name="__main__")
        return capfd.readouterr().out

    return run


def perplexities(printed: str) -> list[float]:
    found = [float(number) for number in re.findall(r"perplexity +([\d.]+)", printed)]
    assert all(0 < value < 10_000 for value in found), printed
    return found


def smaller(folder: Path, tiny: Path, sparsity: float = 0.2) -> int:
    """Parameters of what stock transformers load; as many of the linears' are gone as was asked for."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__name__ == "LlamaForCausalLM"
    dense = AutoModelForCausalLM.from_pretrained(tiny)
    prunable = sum(p.numel() for name, p in dense.named_parameters() if "_proj" in name)
    assert abs(1 - (model.num_parameters() - dense.num_parameters() + prunable) / prunable - sparsity) <= 0.005
    return model.num_parameters()


@pytest.mark.parametrize("name", ["own_loop", "trainer"])
def test_a_loop_and_a_trainer(run, tiny, tmp_path, name) -> None:
    printed = run(name, "--steps", "8")
    parameters = smaller(tmp_path / "runs" / name, tiny)
    assert len(perplexities(printed)) == 2
    assert f"{parameters:,} parameters" in printed.splitlines()[-1]
    assert "<- cut" in printed or "'sparsity'" in printed


def test_trl_sft(run, tiny, tmp_path) -> None:
    printed = run("trl_sft", "--steps", "8")
    parameters = smaller(tmp_path / "runs" / "trl_sft", tiny)
    before, after = (float(loss) for loss in re.findall(r"held-out loss ([\d.]+)", printed))
    assert after > 0
    assert before != after
    assert f"runs/trl_sft: {parameters:,} parameters" in printed


def test_adapter_rank(run, tiny, tmp_path) -> None:
    printed = run("adapter_rank", "--steps", "8")
    ranks = [int(rank) for rank in re.findall(r"rank +(\d+)", printed)]
    assert ranks[0] == 32
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[-1] == 8
    assert len(perplexities(printed)) == 2
    adapted = AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "adapter_rank")
    factors = [p for name, p in adapted.named_parameters() if "lora_A" in name]
    assert factors
    assert {len(factor) for factor in factors} == {8}
    assert all(p.any() for name, p in adapted.named_parameters() if "lora_B" in name)


def test_compare_criteria(run, tiny, tmp_path) -> None:
    printed = run("compare_criteria", "--steps", "6")
    for folder in OUTPUTS["compare_criteria"]:
        smaller(tmp_path / "runs" / folder, tiny)
    dense, lora, gate = perplexities(printed)
    assert len({dense, lora, gate}) == 3
    assert re.search(r"^gate +perplexity", printed, re.MULTILINE)


def test_own_task(run, tiny, tmp_path) -> None:
    printed = run("own_task", "--steps", "6")
    smaller(tmp_path / "runs" / "own_task" / "half", tiny, sparsity=0.5)
    figure = r"[\d.]+% ± [\d.]+%"
    assert re.search(rf"^dev \(accuracy, 150 rows, 0-shot\) +{figure} +{figure} +[+-]", printed, re.MULTILINE)
    train, dev = (
        (tmp_path / "runs" / "own_task" / f"{part}.jsonl").read_text().splitlines() for part in ("train", "dev")
    )
    assert len(train) > 300
    assert not set(train) & set(dev)


@pytest.mark.parametrize("more", [(), ("--whole",)], ids=["sharded", "whole"])
def test_two_processes(tiny, tmp_path, more) -> None:
    there = tmp_path / "there.py"
    there.write_text(
        f"import os, runpy; os.chdir({str(tmp_path)!r})\n"
        f"runpy.run_path({str(EXAMPLES / 'two_processes.py')!r}, run_name='__main__')"
    )
    done = launch(2, str(there), "--model", str(tiny), "--steps", "4", *more)
    assert done.returncode == 0, done.stderr[-2000:]
    smaller(tmp_path / "runs" / "two_processes", tiny)
    held = {int(number.replace(",", "")) for number in re.findall(r"holds ([\d,]+) frozen", done.stdout)}
    dense = AutoModelForCausalLM.from_pretrained(tiny).num_parameters()
    assert held == {dense} if more else max(held) < 0.51 * dense
    assert "sparsity 20." in done.stdout or "sparsity 19." in done.stdout


REAL = pytest.mark.skipif(not os.environ.get("SECATEUR_EXAMPLES"), reason="takes minutes: make examples runs it")


@pytest.mark.slow
@REAL
@pytest.mark.parametrize("name", NAMES)
def test_on_the_real_model_as_a_user_runs_it(name, tmp_path, capsys) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if "processes" in name else []
    started = time.perf_counter()
    command = [sys.executable, *launcher, str(EXAMPLES / f"{name}.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    assert done.returncode == 0, done.stderr[-2000:]
    with capsys.disabled():
        print(f"\n{name}: {seconds:.0f} s\n{done.stdout.strip()}")
    dense = embedded_model_dir()
    if name == "adapter_rank":
        adapted = AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / name)
        assert {len(p) for path, p in adapted.named_parameters() if "lora_A" in path} == {8}
    else:
        for folder in OUTPUTS.get(name, (name,)):
            smaller(tmp_path / "runs" / folder, dense)


def test_each_is_short_says_what_it_costs_and_stands_in_the_table() -> None:
    table = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert len(NAMES) == 7
    for name in NAMES:
        source = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
        assert len(source.splitlines()) < 60, name
        says = ast.get_docstring(ast.parse(source)) or ""
        assert f"examples/{name}.py" in says
        assert re.search(r"\d+ s\b.* GB\b", says, re.DOTALL), f"{name} does not say what it costs"
        assert f"runs/{name}" in says
        assert table.count(f"]({name}.py)") == 1
    assert table.count("](quickstart.ipynb)") == 1
