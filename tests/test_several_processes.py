"""The commands on two processes: resumed on one, killed, evaluated and compared (gloo)."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from accelerate import dispatch_model
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from test_distributed import ENVIRONMENT, WORDS, launch
from tiny import save_tiny, tiny_llama

from secateur import Pruner
from secateur.cli import main


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    save_tiny(folder / "model", layers=2)
    (folder / "text.txt").write_text(WORDS * 60)
    return folder


def command(place, output, *, batch: int, more: tuple[str, ...] = ()) -> list[str]:
    return ["prune", "--model", str(place / "model"), "--data", str(place / "text.txt"), "--output", str(output),
            "--sparsity", "0.3", "--steps", "10", "--batch-size", str(batch), "--seq-len", "32", "--frequency", "2",
            "--dtype", "float32", "--save-steps", "4", *more]  # fmt: skip


def weights(output):
    return load_file(output / "model.safetensors")


def test_a_checkpoint_of_two_processes_goes_on_in_one(place, tmp_path, capsys) -> None:
    done = launch(2, "-m", "secateur", *command(place, tmp_path / "two", batch=2))
    assert done.returncode == 0, done.stderr[-2000:]
    work = tmp_path / "one.run"
    (tmp_path / "two.run").rename(work)
    for last in work.glob("checkpoint-*"):
        if last.name != "checkpoint-8":
            (last / "secateur-manifest.json").unlink()
    arguments = command(place, tmp_path / "one", batch=4, more=("--resume",))
    run = (work / "run.json").read_text()
    (work / "run.json").write_text(run.replace('"dropout": 0.0', '"dropout": 0.1'))
    assert main(arguments) == 2
    assert "needs its 2 processes again" in capsys.readouterr().err
    (work / "run.json").write_text(run)
    assert main(command(place, tmp_path / "one", batch=2, more=("--resume",))) == 2
    assert "2 processes with --batch-size 2, a batch of 4; 1 with 2 make 2" in capsys.readouterr().err
    assert main(arguments) == 0, capsys.readouterr().err
    for name, value in weights(tmp_path / "two").items():
        torch.testing.assert_close(weights(tmp_path / "one")[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_one_shot_scores_the_batches_of_all(place, tmp_path) -> None:
    """Its scoring comes before Trainer: two processes with batch 2 score what one with batch 4 does."""
    more = ("--schedule", "one-shot", "--criterion", "taylor")
    done = launch(2, "-m", "secateur", *command(place, tmp_path / "two", batch=2, more=more))
    assert done.returncode == 0, done.stderr[-2000:]
    assert main(command(place, tmp_path / "one", batch=4, more=more)) == 0
    one, two = (json.loads((tmp_path / name / "units.json").read_text()) for name in ("one", "two"))
    for pool, scores in one["scores_before_cuts"].items():
        assert two["scores_before_cuts"][pool] == pytest.approx(scores, rel=1e-4), pool
    assert one["pools"] == two["pools"]


def test_a_killed_process_ends_the_run_and_it_resumes(place, tmp_path) -> None:
    output = tmp_path / "out"
    # Between cuts each process averages its own gate scores and moments: a checkpoint must hold them of all.
    more = ("--criterion", "gate", "--compensate", "lstsq", "--frequency", "6")
    arguments = ["-m", "secateur", *command(place, output, batch=2, more=more)]
    arguments[arguments.index("--steps") + 1] = "40"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    run = subprocess.Popen(launcher, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "out.run").glob("checkpoint-*/secateur-manifest.json")):
            assert run.poll() is None, run.communicate()[1][-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(max(children(run.pid)), signal.SIGKILL)
        _, said = run.communicate(timeout=120)  # the others do not wait for ever
    finally:
        run.kill()
    assert run.returncode != 0
    assert "-9" in said, "the launcher says which process was killed, and how"
    assert "process 0 of 2 stops: another one ended" in said, said
    assert "The same command with --resume goes on from checkpoint-" in said
    assert not output.exists()
    resumed = launch(2, *arguments, "--resume")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert "resuming from checkpoint-" in resumed.stdout + resumed.stderr
    whole = launch(2, *[str(tmp_path / "whole") if part == str(output) else part for part in arguments])
    assert whole.returncode == 0
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(weights(output)[name], value), name


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(number) for number in file.read().split()]


def test_eval_on_two_processes_gives_the_same_figures(place, tmp_path, capsys) -> None:
    arguments = ["eval", "--model", str(place / "model"), "--data", str(place / "text.txt"), "--seq-len", "32",
                 "--batch-size", "3", "--dtype", "float32"]  # fmt: skip
    assert main([*arguments, "--output", str(tmp_path / "one.json")]) == 0
    done = launch(2, "-m", "secateur", *arguments, "--output", str(tmp_path / "two.json"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("perplexity") == 1, "one process speaks"
    one, two = (json.loads((tmp_path / f"{name}.json").read_text())["models"] for name in ("one", "two"))
    for figures in (*one.values(), *two.values()):
        figures.pop("seconds")
    assert one == two


def test_a_comparison_is_spread_over_processes(place, tmp_path) -> None:
    options = ["compare", "--model", str(place / "model"), "--data", str(place / "text.txt"), "--evaluate-on",
               str(place / "text.txt"), "--sparsity", "0.3", "--criterion", "lora,magnitude,random", "--steps", "6",
               "--batch-size", "2", "--seq-len", "32", "--frequency", "2", "--dtype", "float32"]  # fmt: skip
    found = []
    for processes in (1, 2):
        output = tmp_path / str(processes)
        done = launch(processes, "-m", "secateur", *options, "--output", str(output))
        assert done.returncode == 0, done.stderr[-2000:]
        cells = {path.parent.name: json.loads(path.read_text()) for path in output.glob("*/result.json")}
        found.append({name: cell["perplexity"][str(place / "text.txt")]["perplexity"] for name, cell in cells.items()})
        assert done.stdout.count("tables, plot and records") == 1
    assert len(found[0]) == 5
    assert found[0] == found[1]


@pytest.mark.parametrize("criterion", ["lora", "gate", "wanda"])
def test_layers_placed_by_a_device_map(criterion) -> None:
    """accelerate's hooks, which move what passes between layers' devices, see a cut's smaller linears (on one CPU)."""
    found = []
    for mapped in (False, True):
        torch.manual_seed(0)
        base = tiny_llama(layers=2)
        if mapped:
            places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
            places |= {f"model.layers.{number}": "cpu" for number in range(2)}
            base = dispatch_model(base, places, main_device="cpu", force_hooks=True)
            assert hasattr(base.model.layers[1], "_hf_hook")
        model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
        pruner = Pruner(
            model, sparsity=0.4, total_steps=4, prune_start=1, prune_end=3, frequency=1, criterion=criterion
        )
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        ids = torch.arange(3, 40).unsqueeze(0)
        for _ in range(4):
            model(input_ids=ids, labels=ids).loss.backward()
            pruner.observe()
            optimizer.step()
            pruner.step(optimizer)
            optimizer.zero_grad()
        found.append((model.eval()(input_ids=ids).logits, pruner.removed_params))
    (expected, removed), (logits, also_removed) = found
    assert removed == also_removed > 0
    torch.testing.assert_close(logits, expected, rtol=0.0, atol=1e-5 * float(expected.abs().max()))
