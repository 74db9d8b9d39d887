"""Full disks, memory that runs out, losses that diverge, two runs at once: said plainly, nothing lost."""

import errno
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tiny import save_tiny
from transformers import TrainerControl, TrainerState, TrainingArguments
from zygote import run

from secateur.cli import main
from secateur.data import embedded
from secateur.runs import prune
from secateur.system.errors import disk_is_full
from secateur.system.progress import Progress
from secateur.training import finetune, trainer
from secateur.training.checkpoints import find_latest
from secateur.training.guard import DivergenceWatch

WORDS = "the quick brown fox jumps over the lazy dog while seven wizards box and quarrel about nothing at all. "


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    save_tiny(folder / "model", layers=2, ffn=512)
    (folder / "text.txt").write_text(WORDS * 60)
    assert main(command(folder, folder / "whole")) == 0
    return folder


def command(place, output, *more):
    return [
        "prune", "--model", str(place / "model"), "--data", str(place / "text.txt"), "--output", str(output),
        "--sparsity", "0.3", "--steps", "8", "--batch-size", "2", "--seq-len", "32", "--frequency", "2", "--rank", "2",
        "--dtype", "float32", "--save-steps", "2", *more,
    ]  # fmt: skip


LIMITED = """
import resource, sys
from secateur.training import saving
from secateur.cli import main
largest, after = int(sys.argv[1]), int(sys.argv[2])
saves = 0
real = saving.SavingCallback.on_save
def limit():
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
def on_save(self, *args, **kwargs):
    global saves
    real(self, *args, **kwargs)
    saves += 1
    if saves == after:
        limit()
saving.SavingCallback.on_save = on_save
if after == 0:
    limit()
sys.exit(main(sys.argv[3:]))
"""
"""`secateur` whose files cannot grow beyond some bytes after so many checkpoints: as on a full disk, writes fail."""


@pytest.mark.parametrize(
    ("when", "after", "share"), [("the first checkpoint", 0, 0.3), ("a later one", 2, 0.3), ("the export", 0, 3.0)]
)
def test_a_full_disk(place, tmp_path, when, after, share) -> None:
    checkpoint, _ = find_latest(place / "whole.run")
    largest = int(share * max(path.stat().st_size for path in checkpoint.iterdir()))
    assert when != "the export" or largest < (place / "whole" / "model.safetensors").stat().st_size
    arguments = command(place, tmp_path / "out")
    done = limited(largest, after, arguments)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
    if when == "the export":
        assert "could not be written" in done.stderr
    else:
        assert "no space left in" in done.stderr
        assert ("goes on from checkpoint-4" if after else "starts anew") in done.stderr
    assert main([*arguments, "--resume"]) == 0
    whole, resumed = (load_file(folder / "model.safetensors") for folder in (place / "whole", tmp_path / "out"))
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def adapting(place, output, *more):
    return [
        "adapt", "--model", str(place / "model"), "--data", str(place / "text.txt"), "--output", str(output),
        "--init-rank", "6", "--rank", "2", "--steps", "8", "--batch-size", "2", "--seq-len", "32", "--frequency", "2",
        "--dtype", "float32", "--save-steps", "2", *more,
    ]  # fmt: skip


def limited(largest, after, arguments):
    return run(str(largest), str(after), *arguments, source=LIMITED)


@pytest.mark.parametrize(
    ("arguments", "largest"),
    [
        # an adapter's file grows with its rank 2, so a limit on all files from the last checkpoint on stops the export
        (lambda place, output: adapting(place, output), 5_000),
        (lambda place, output: command(place, output, "--stream-export"), 100_000),
        (lambda place, output: adapting(place, output, "--merge"), 100_000),
    ],
    ids=["adapt", "prune --stream-export", "adapt --merge"],
)
def test_a_full_disk_while_another_kind_of_result_is_written(place, tmp_path, arguments, largest) -> None:
    output = tmp_path / "out"
    done = limited(largest, 4, arguments(place, output))  # once the last step is saved
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert f"--output {output} could not be written" in done.stderr
    assert not output.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out.run"]
    assert find_latest(tmp_path / "out.run")[0].name == "checkpoint-8"


TORCH_LOST_ITS_PLACE = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 145088 vs 144976")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (TORCH_LOST_ITS_PLACE, "no space left in"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "no space left in"),
        (RuntimeError("open file failed with strerror: Read-only file system"), "(read-only file system): see to it"),
    ],
)
def test_a_checkpoint_that_cannot_be_written(place, tmp_path, capsys, monkeypatch, error, words) -> None:
    real = torch.save

    def failing(value, path, *args, **kwargs):
        if "checkpoint-6" in str(path):
            Path(path).write_bytes(b"half")
            raise error
        return real(value, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", failing)
    assert main(command(place, tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "the same command with --resume goes on from checkpoint-4" in said
    assert ("MB" in said or "GB" in said) == ("no space" in words)
    assert sorted(path.name for path in (tmp_path / "out.run").glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    monkeypatch.undo()
    assert main([*command(place, tmp_path / "out"), "--resume"]) == 0
    whole, resumed = (load_file(folder / "model.safetensors") for folder in (place / "whole", tmp_path / "out"))
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize("save_steps", [8, 0])
def test_a_result_that_has_no_room_says_what_becomes_of_the_training(
    place, tmp_path, capsys, monkeypatch, save_steps
) -> None:
    def failing(*args, **kwargs):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("secateur.checkpoint.export.save_model", failing)
    monkeypatch.setattr("shutil.disk_usage", lambda place: shutil._ntuple_diskusage(2_000_000, 1_700_000, 300_000))
    monkeypatch.setattr("secateur.training.job.check_output", lambda *args, **kwargs: None)
    assert main([*command(place, tmp_path / "out"), "--save-steps", str(save_steps)]) == 2
    said = capsys.readouterr().err
    assert re.search(r"\(about 0\.\d+ MB needed, 0\.3 MB free there\)", said), said
    assert ("--resume goes on from checkpoint-8" if save_steps else "The training is not saved") in said


def test_a_record_that_cannot_be_written_costs_no_figures(place, tmp_path, capsys, monkeypatch) -> None:
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("secateur.system.records.os.replace", full)
    given = ["--model", str(place / "model"), "--data", str(place / "text.txt"), "--seq-len", "64"]
    assert main(["eval", *given, "--max-tokens", "256", "--output", str(tmp_path / "e.json")]) == 2
    said = capsys.readouterr()
    assert "perplexity" in said.out
    assert f"{tmp_path / 'e.json'}: No space left on device" in said.err


@pytest.mark.parametrize("error", [
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    SafetensorError("Error while deserializing header: Cannot allocate memory (os error 12)"),
    RuntimeError("unable to mmap 57159888 bytes from file <model.safetensors>: Cannot allocate memory (12)"),
])  # fmt: skip
@pytest.mark.parametrize("at", ["secateur.models.files.safe_open", "secateur.models.loading.auto_class"])
def test_weights_that_cannot_be_mapped_for_lack_of_memory(place, tmp_path, capsys, monkeypatch, error, at) -> None:
    def failing(*args, **kwargs):
        raise error

    stands_in = failing if at.endswith("safe_open") else lambda config: SimpleNamespace(from_pretrained=failing)
    monkeypatch.setattr(at, stands_in)
    assert main(["sample", "--model", str(place / "model"), "--prompts", "x"]) == 3
    assert "secateur: error: out of memory while" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (RuntimeError("basic_ios::clear: iostream error"), True),
        (
            RuntimeError("[enforce fail at inline_container.cc:603] . PytorchStreamWriter failed writing file data/0"),
            True,
        ),
        (OSError(errno.EFBIG, "File too large"), True),
        (SafetensorError("I/O error: Disk quota exceeded (os error 122)"), True),
        (RuntimeError("[enforce fail at inline_container.cc:146] . PytorchStreamReader failed reading zip"), False),
        (RuntimeError("[enforce fail at inline_container.cc:88] . open file failed with errno 2"), False),
        (OSError(errno.EIO, "Input/output error"), False),
    ],
)
def test_what_libraries_say_of_a_full_disk(error, full) -> None:
    assert disk_is_full(error) == full
    chained = ValueError("it went wrong")
    chained.__cause__ = error
    assert disk_is_full(chained) == full


@pytest.mark.parametrize(
    ("owner", "name", "error", "part"),
    [
        (finetune, "load_model", MemoryError(), "loading the model"),
        (trainer.AutocastTrainer, "training_step", torch.OutOfMemoryError("CUDA out of memory"), "training"),
        (
            trainer.AutocastTrainer,
            "training_step",
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
            "training",
        ),
    ],
)
def test_out_of_memory_names_the_part(place, tmp_path, capsys, monkeypatch, owner, name, error, part) -> None:
    def failing(*args, **kwargs):
        raise error

    monkeypatch.setattr(owner, name, failing)
    assert main(command(place, tmp_path / "out")) == 3
    said = capsys.readouterr().err
    assert f"out of memory while {part}" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()
    if part == "training":
        assert main(["report", str(tmp_path / "out")]) == 0
        page = (tmp_path / "out.run" / "report.html").read_text()
        assert "This run failed after step 0: out of memory while training" in page


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_losses_that_are_not_finite(place, tmp_path, capsys, monkeypatch, policy) -> None:
    real, seen, bad = prune.add_lora, 0, {5, 6, 7}

    def add_lora(*args, **kwargs):
        model = real(*args, **kwargs)

        def hook(module, args, output):
            nonlocal seen
            seen += module.training and torch.is_grad_enabled()
            return output * float("nan") if module.training and seen in bad else output

        model.get_base_model().model.layers[1].mlp.register_forward_hook(hook)
        return model

    monkeypatch.setattr(prune, "add_lora", add_lora)
    arguments = command(place, tmp_path / "out", "--on-nan", policy)
    code = main(arguments)
    said = capsys.readouterr().err
    assert "step 5: the loss is not finite, first in the output of model.layers.1.mlp; the step is left out" in said
    lines = [json.loads(line) for line in (tmp_path / "out.run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "left_out" in line] == ([5, 6] if policy == "stop" else [5, 6, 7])
    if policy == "skip":
        assert code == 0
        found = json.loads((tmp_path / "out" / "result.json").read_text())["numerics"]
        assert [line["step"] for line in found["left_out"]] == [5, 6, 7]
        assert found["diverged_at"] is None
        return
    assert code == 5
    assert "step 7: the loss is not finite" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()
    last, _ = find_latest(tmp_path / "out.run")
    assert last.name == "checkpoint-6"
    state = load_file(last / "adapter_model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
    bad.clear()
    assert main([*arguments, "--resume"]) == 0


def test_divergence_is_reported_once(tmp_path, capsys) -> None:
    watch = DivergenceWatch(Progress(60))
    arguments, noted = TrainingArguments(output_dir=str(tmp_path), use_cpu=True), []
    for step in range(1, 61):
        loss = 3.0 - 0.01 * step if step < 30 else 3.0 + 0.3 * (step - 30)
        watch.on_log(arguments, TrainerState(global_step=step), TrainerControl(), logs={"loss": loss})
        noted += [step] * bool(watch.note())
    assert len(noted) == 1
    said = capsys.readouterr().err
    assert said.count("the loss diverges") == 1
    assert "--lr" in said


def test_a_noisy_loss_is_no_divergence(tmp_path, capsys) -> None:
    watch = DivergenceWatch(Progress(60))
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    for step in range(1, 61):
        loss = 3.0 + (step % 5) + (1.8 if step > 30 else 0)  # noise of 2 nats, and a cut to half the parameters
        watch.on_log(arguments, TrainerState(global_step=step), TrainerControl(), logs={"loss": loss})
    assert "diverges" not in capsys.readouterr().err


HOLDER = """
import os, signal, sys, time
from pathlib import Path
from secateur.cli import main
from secateur.runs import prune
def waiting(*args, **kwargs):
    folder = Path(sys.argv[1])
    (folder / "writing").write_text(str(os.getpid()))
    (folder / "writing").rename(folder / "here")
    while not (folder / "enough").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
prune.load_base = waiting
main(sys.argv[2:])
"""


def test_the_second_run_on_one_output_is_refused(place, tmp_path, capsys) -> None:
    first = Thread(target=lambda: run(str(tmp_path), *command(place, tmp_path / "out"), source=HOLDER))
    first.start()
    try:
        while not (tmp_path / "here").exists():
            assert first.is_alive(), "it ended before the second began"
            time.sleep(0.01)
        assert main(command(place, tmp_path / "out", "--overwrite")) == 2
        assert f"in use by process {(tmp_path / 'here').read_text()} on" in capsys.readouterr().err
    finally:
        (tmp_path / "enough").touch()
        first.join()
    assert main(command(place, tmp_path / "out")) == 0  # the dead run's lock holds nobody up


RACER = """
import json, sys, time
from pathlib import Path
from secateur.data import embedded
def convert(gguf, folder):
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights" * 1000)
    time.sleep(0.5)
    manifest = {"gguf_sha256": embedded.GGUF_SHA256, "files_bytes": {"model.safetensors": 7000}}
    (folder / embedded.MANIFEST).write_text(json.dumps(manifest))
    return folder
embedded._convert = convert
embedded._wheel = lambda root, work, say: work
embedded._extract = lambda wheel, folder: folder
folder = embedded.embedded_model_dir()
assert embedded._is_complete(folder), "not whole"
print(folder)
"""


def test_two_runs_that_fill_the_cache_at_once_both_get_the_model(tmp_path) -> None:
    environment = {"SECATEUR_CACHE": str(tmp_path), "PATH": "/usr/bin:/bin"}
    runs = [
        subprocess.Popen([sys.executable, "-c", RACER], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    found = {run.communicate(timeout=60)[0].strip() for run in runs}
    assert found == {str(tmp_path / embedded.EMBEDDED_MODEL)}
    assert all(run.returncode == 0 for run in runs)
    assert [path.name for path in tmp_path.iterdir()] == [embedded.EMBEDDED_MODEL]


def test_a_second_signal_stops_at_once(place, tmp_path) -> None:
    code = (
        "import signal, os, sys; from secateur.training import trainer; from secateur.cli import main\n"
        "real = trainer.AutocastTrainer.training_step\n"
        "def step(self, *a, **k):\n"
        "    if self.state.global_step == 3:\n"
        "        os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGINT)\n"
        "    return real(self, *a, **k)\n"
        "trainer.AutocastTrainer.training_step = step\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    started = time.monotonic()
    done = run(*command(place, tmp_path / "out"), source=code)
    assert done.returncode == 130
    assert "once more stops at once" in done.stdout
    assert "interrupted" in done.stderr
    assert time.monotonic() - started < 60
    assert not (tmp_path / "out").exists()
    steps = [json.loads(line)["step"] for line in (tmp_path / "out.run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]
