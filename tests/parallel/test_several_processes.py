"""The commands on two processes: resumed on one, killed, evaluated and compared (gloo)."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from accelerate.commands.launch import launch_command, launch_command_parser
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny import save_tiny, tiny_llama
from zygote import launch, runner, runner_process

from secateur import Pruner
from secateur.cli import main
from secateur.system.errors import InputError
from tests.parallel.test_distributed import WORDS

FORKED = Path(__file__).parents[1] / "forked.py"


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


def train(processes: int, arguments: list[str]) -> None:
    """Run the command on one process (this one) or on two."""
    if processes == 1:
        assert main(arguments) == 0
        return
    done = launch(processes, "-m", "secateur", *arguments)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_a_checkpoint_goes_on_with_another_number_of_processes(place, tmp_path, first, then, capsys) -> None:
    """From before a cut, with scores of each process's own batches: the weights are those of the run it goes on with,
    which no other order of the data would give."""
    more = ("--criterion", "gate", "--lr", "5e-3", "--prune-start", "0", "--prune-end", "9", "--frequency", "3",
            "--save-steps", "7")  # fmt: skip
    arguments = [command(place, tmp_path / "whole", batch=4 // n, more=more) for n in (1, 2)]
    train(first, arguments[first - 1])
    cuts = json.loads((tmp_path / "whole" / "units.json").read_text())["cuts"]
    assert [cut["step"] for cut in cuts] == [3, 6, 9]
    work = tmp_path / "resumed.run"
    (tmp_path / "whole.run").rename(work)
    (work / "checkpoint-10" / "secateur-manifest.json").unlink()
    assert (work / "checkpoint-7" / "secateur-manifest.json").is_file()
    on = [command(place, tmp_path / "resumed", batch=4 // n, more=(*more, "--resume")) for n in (1, 2)]
    if then == 1:
        run = (work / "run.json").read_text()
        (work / "run.json").write_text(run.replace('"dropout": 0.0', '"dropout": 0.1'))
        assert main(on[0]) == 2
        assert "needs its 2 processes again" in capsys.readouterr().err
        (work / "run.json").write_text(run)
        assert main(on[1]) == 2
        assert "2 processes with --batch-size 2, a batch of 4; 1 with 2 make 2" in capsys.readouterr().err
    train(then, on[then - 1])
    again = json.loads((tmp_path / "resumed" / "units.json").read_text())["cuts"]
    assert [cut["removed"] for cut in again] == [cut["removed"] for cut in cuts]
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=1e-5, atol=1e-5 * float(value.abs().max()), msg=name)


def test_adapt_under_accelerate_is_the_run_of_one_process(place, tmp_path, monkeypatch) -> None:
    """`--multi_gpu` is what makes accelerate start more than one process without GPUs, too. It leaves that to torchrun,
    in whose place are forks with the environment that it was given."""
    save_tiny(tmp_path / "model", layers=2, dtype=torch.float64)  # a run in float32 widens, and does not narrow
    arguments = ["adapt", "--model", str(tmp_path / "model"), "--data", str(place / "text.txt"), "--steps", "10",
                 "--seq-len", "32", "--frequency", "3", "--dtype", "float32", "--init-rank", "8", "--rank", "2",
                 "--criterion", "sparsegpt", "--lr", "5e-3"]  # fmt: skip
    assert main([*arguments, "--batch-size", "4", "--output", str(tmp_path / "one")]) == 0
    ended = []

    def forked(given) -> None:
        assert os.environ["ACCELERATE_MIXED_PRECISION"] == "no"
        assert given.module
        ended.append(launch(int(given.nproc_per_node), "-m", given.training_script, *given.training_script_args))

    monkeypatch.setattr("torch.distributed.run.run", forked)
    quiet = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    two = [*arguments, "--batch-size", "2", "--output", str(tmp_path / "two")]
    parser = launch_command_parser()
    launch_command(parser.parse_args(["--multi_gpu", "--num_processes", "2", *quiet, "-m", "secateur", *two]))
    (done,) = ended
    assert done.returncode == 0, done.stderr[-2000:]
    records = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two")]
    ranks = [json.loads((tmp_path / name / "ranks.json").read_text()) for name in ("one", "two")]
    assert records[1]["data"] == records[0]["data"], "both saw the same, so there were two processes"
    assert ranks[0] == ranks[1]
    assert set(ranks[0]["end"].values()) == {2}
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        # activations' moments and the model's norms are in float32
        torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-5 * float(value.abs().max()), msg=name)


def test_one_shot_scores_the_batches_of_all(tmp_path) -> None:
    """Its scoring comes before Trainer: two processes with batch 2 score what one with batch 4 does, and each label
    counts alike, however many a process has."""
    save_tiny(tmp_path / "model", layers=2, dtype=torch.float64)
    rows = [{"instruction": "say it", "output": WORDS[: 4 + 7 * (i % 4)]} for i in range(64)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    more = ("--schedule", "one-shot", "--criterion", "taylor", "--data", str(tmp_path / "rows.jsonl"),
            "--response-only")  # fmt: skip
    train(2, command(tmp_path, tmp_path / "two", batch=2, more=more))
    train(1, command(tmp_path, tmp_path / "one", batch=4, more=more))
    one, two = (json.loads((tmp_path / name / "units.json").read_text()) for name in ("one", "two"))
    for pool, scores in one["scores_before_cuts"].items():
        assert two["scores_before_cuts"][pool] == pytest.approx(scores, rel=1e-6), pool  # the norms are in float32
    assert one["pools"] == two["pools"]


def test_a_killed_process_ends_the_run_and_it_resumes(place, tmp_path) -> None:
    output = tmp_path / "out"
    # Between cuts each process averages its own gate scores and moments: a checkpoint must hold them of all.
    more = ("--criterion", "gate", "--compensate", "lstsq", "--frequency", "6")
    arguments = ["-m", "secateur", *command(place, output, batch=2, more=more)]
    arguments[arguments.index("--steps") + 1] = "30"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(FORKED)]
    address = runner()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SECATEUR_TEST_RUNNER": address}
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    run = subprocess.Popen([*launcher, *arguments], env=environment, text=True, **pipes)
    try:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "out.run").glob("checkpoint-*/secateur-manifest.json")):
            assert run.poll() is None, run.communicate()[1][-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(max(children(runner_process())), signal.SIGKILL)
        _, said = run.communicate(timeout=120)  # the others do not wait for ever
    finally:
        run.kill()
    assert run.returncode != 0
    assert "-9" in said, "the launcher says which process was killed, and how"
    assert re.search(r"process [01] of 2 stops: another one ended", said), said
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
    with open(f"/proc/{pid}/task/{pid}/children", encoding="utf-8") as file:
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
               str(place / "text.txt"), "--sparsity", "0.3", "--criterion", "lora,random", "--steps", "2",
               "--batch-size", "2", "--seq-len", "32", "--frequency", "1", "--dtype", "float32"]  # fmt: skip
    found = []
    for processes in (1, 2):
        output = tmp_path / str(processes)
        done = launch(processes, "-m", "secateur", *options, "--output", str(output))
        assert done.returncode == 0, done.stderr[-2000:]
        cells = {path.parent.name: json.loads(path.read_text()) for path in output.glob("*/result.json")}
        found.append({name: cell["perplexity"][str(place / "text.txt")]["perplexity"] for name, cell in cells.items()})
        assert done.stdout.count("tables, plot and records") == 1
    assert len(found[0]) == 4  # and two baselines
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
        found.append((model.eval()(input_ids=ids).logits.detach(), pruner.removed_params))
    (expected, removed), (logits, also_removed) = found
    assert removed == also_removed > 0
    torch.testing.assert_close(logits, expected, rtol=0.0, atol=1e-5 * float(expected.abs().max()))


def test_weights_that_are_put_off_are_refused() -> None:
    base = cpu_offload(tiny_llama(layers=2), execution_device="cpu")
    with pytest.raises(InputError, match="other weights are not in memory: device_map has put them off"):
        Pruner(base, sparsity=0.4, criterion="magnitude")
