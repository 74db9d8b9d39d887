"""A run that was stopped anywhere and resumed ends with the same weights, bit for bit (float32, one machine)."""

import json
import os
import shutil
import signal
from io import StringIO

import pytest
import torch
from product import some_of
from safetensors.torch import load_file, save_file
from tiny import save_tiny
from zygote import run_until

from secateur.cli import main
from secateur.config.options import build
from secateur.config.prune import PruneConfig
from secateur.pruning.search.evolution import Search
from secateur.runs.prune import prune
from secateur.system.errors import InputError
from secateur.system.locks import locked
from secateur.system.progress import Progress
from secateur.training import saving
from secateur.training.callback import PruningCallback
from secateur.training.checkpoints import MANIFEST, drop_damaged, fault_of, find_latest, rotate, seal
from secateur.training.prepare import prepare

WORDS = "the quick brown fox jumps over the lazy dog while seven wizards box and quarrel about nothing at all. "


class Died(Exception):
    pass


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    save_tiny(folder / "model", layers=2)
    (folder / "text.txt").write_text(WORDS * 60)
    return folder


def options(place, output, **more):
    given = {
        "model": str(place / "model"), "data": (str(place / "text.txt"),), "output": str(output), "sparsity": 0.3,
        "steps": 12, "batch_size": 2, "accumulation": 2, "seq_len": 32, "frequency": 2, "dropout": 0.2,
        "dtype": "float32", "save_steps": 2, "prune_start": 0.2, "prune_end": 0.8, "lr": 5e-3,
    }  # fmt: skip
    return {**given, **more}


def run(place, output, **more):
    job = prepare(build(PruneConfig, options(place, output, **more)))
    prune(job, Progress(job.total_steps, stream=StringIO()))
    return load_file(output / "model.safetensors")


WAYS = {
    "shrinking": {},
    "masking": {"shrink": False},
    "compensated": {"criterion": "obs", "compensate": "lstsq"},
    "one-shot": {"schedule": "one-shot", "criterion": "taylor"},
    "searched": {"allocation": "search", "search_evaluations": 5, "calibration_tokens": 64, "criterion": "gate"},
    "more trained, LoRA anew": {
        "train_also": ("norms,gains,weights",), "restart_lora": "cuts,1", "lora_plus": 4.0, "lr_after": "0.5x",
        "criterion": "gate", "compensate": "lstsq",
    },
    "gains, distilled": {"train_also": ("norms,gains",), "distill": 0.5, "shrink": False, "restart_lora": "cuts"},
    "layers": {"units": "layers", "criterion": "gate", "train_also": ("norms,gains",), "sparsity": 0.5},
    "blocks": {"units": "blocks", "criterion": "gate", "sparsity": 0.4},
    "masked layers": {"units": "layers", "criterion": "loss", "shrink": False, "distill": 0.5, "sparsity": 0.5},
    "masks and LoRA": {"criterion": "learned", "allocation": "global", "distill": 0.5, "shrink": False},
    "masks with noise": {"criterion": "compresso", "allocation": "global"},
    "masks alone": {"criterion": "projected", "schedule": "one-shot"},
    "pissa, distilled": {"lora_init": "pissa", "distill": 0.5, "shrink": False, "criterion": "gate"},
}  # fmt: skip


SOME = some_of(
    list(WAYS),
    ["shrinking", "compensated", "searched", "more trained, LoRA anew", "masks and LoRA", "blocks", "pissa, distilled"],
)


@pytest.mark.parametrize("way", SOME)
def test_resumed_is_uninterrupted(place, tmp_path, monkeypatch, way) -> None:
    whole = run(place, tmp_path / "whole", **WAYS[way])
    real = PruningCallback.on_optimizer_step
    steps_before = json.loads((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[0])["step"] - 1

    def dying(self, args, state, control, **kwargs):
        if state.global_step + steps_before == 7:  # the update of step 8 is done, its cut is not
            raise Died
        real(self, args, state, control, **kwargs)

    monkeypatch.setattr(PruningCallback, "on_optimizer_step", dying)
    with pytest.raises(Died):
        run(place, tmp_path / "out", **WAYS[way])
    monkeypatch.setattr(PruningCallback, "on_optimizer_step", real)
    checkpoint, _ = find_latest(tmp_path / "out.run")
    assert checkpoint is not None
    resumed = run(place, tmp_path / "out", resume=True, **WAYS[way])
    assert resumed.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name
    metrics = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "out")]
    losses = [[(json.loads(line)["step"], json.loads(line)["loss"]) for line in lines] for lines in metrics]
    assert losses[0] == losses[1]
    cuts = [json.loads((tmp_path / name / "units.json").read_text())["cuts"] for name in ("whole", "out")]
    assert cuts[0] == cuts[1]


def test_a_search_that_was_stopped_goes_on(place, tmp_path, monkeypatch) -> None:
    """Also where nothing else is kept yet: with the one-shot order there is no checkpoint before the cut."""
    way = WAYS["searched"] | {"schedule": "one-shot", "prune_start": 2, "steps": 3, "search_evaluations": 24}
    whole = run(place, tmp_path / "whole", **way)
    write = Search._write

    def dying(self):
        write(self)
        raise Died

    monkeypatch.setattr(Search, "_write", dying)
    with pytest.raises(Died):
        run(place, tmp_path / "out", **way)
    monkeypatch.setattr(Search, "_write", write)
    monkeypatch.delattr(Search, "_begin")  # what was looked at is not looked at again
    resumed = run(place, tmp_path / "out", resume=True, **way)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    found = [json.loads((tmp_path / name / "result.json").read_text())["search"] for name in ("whole", "out")]
    assert found[0] | {"seconds": 0} == found[1] | {"seconds": 0}
    assert found[0]["candidates"] == 24


def test_a_fault_in_the_export_costs_no_training(place, tmp_path, monkeypatch) -> None:
    whole = run(place, tmp_path / "whole")

    def failing(*args, **kwargs):
        raise Died

    monkeypatch.setattr("secateur.runs.prune.export_checkpoint", failing)
    with pytest.raises(Died):
        run(place, tmp_path / "out")
    monkeypatch.undo()
    assert find_latest(tmp_path / "out.run")[0].name == "checkpoint-12"
    resumed = run(place, tmp_path / "out", resume=True)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_other_options_are_refused(place, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("secateur.runs.prune.export_checkpoint", lambda *a, **k: (_ for _ in ()).throw(Died()))
    with pytest.raises(Died):
        run(place, tmp_path / "out")
    changed = {"lr": 1e-4, "sparsity": 0.4, "resume": True}
    with pytest.raises(InputError, match=r"sparsity: 0.3 -> 0.4"):
        prepare(build(PruneConfig, options(place, tmp_path / "out", **changed)))
    with pytest.raises(InputError, match=r"pass --resume to go on with it"):
        prepare(build(PruneConfig, options(place, tmp_path / "out")))
    prepare(build(PruneConfig, options(place, tmp_path / "out", save_steps=5, resume=True)))
    with pytest.raises(InputError, match="leave one out"):
        build(PruneConfig, options(place, tmp_path / "out", resume=True, overwrite=True))


def test_another_model_under_the_same_name_is_refused(place, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("secateur.runs.prune.export_checkpoint", lambda *a, **k: (_ for _ in ()).throw(Died()))
    model = tmp_path / "model"
    shutil.copytree(place / "model", model)
    given = options(place, tmp_path / "out", model=str(model), steps=4)
    job = prepare(build(PruneConfig, given))
    with pytest.raises(Died):
        prune(job, Progress(job.total_steps, stream=StringIO()))
    again = build(PruneConfig, given | {"resume": True})
    prepare(again)
    config = (model / "config.json").read_text()
    (model / "config.json").write_text(config.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    with pytest.raises(InputError, match=r"options were others: the contents of --model"):
        prepare(again)
    (model / "config.json").write_text(config)
    state = load_file(model / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in state.items()}, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="the contents of --model"):
        prepare(again)


def test_half_written_checkpoints_are_skipped_and_rotation_keeps_complete_ones(tmp_path) -> None:
    for step in (5, 10, 15):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "weights").write_bytes(b"x" * step)
        if step < 15:
            seal(folder)
    latest, skipped = find_latest(tmp_path)
    assert latest.name == "checkpoint-10"
    assert skipped == ["checkpoint-15 is skipped: it was not finished"]
    (tmp_path / "checkpoint-10" / "weights").write_bytes(b"y" * 10)
    assert find_latest(tmp_path)[0].name == "checkpoint-5"
    assert fault_of(tmp_path / "checkpoint-10") == "weights is not as it was written"
    (tmp_path / "checkpoint-5" / MANIFEST).write_text('{"files": [1]}')
    assert find_latest(tmp_path)[0] is None
    rotate(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3  # none is complete, so none may go
    seal(tmp_path / "checkpoint-10")  # what is there counts, not what an older manifest says
    assert find_latest(tmp_path)[0].name == "checkpoint-10"
    rotate(tmp_path, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]


def test_rotation_never_deletes_the_only_complete_checkpoint(tmp_path) -> None:
    for step in (5, 10, 15):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "weights").write_bytes(b"x" * step)
        seal(folder)
    for step in (10, 15):  # manifests, and files that are not as they say
        (tmp_path / f"checkpoint-{step}" / "weights").write_bytes(b"y" * step)
    rotate(tmp_path, keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


def test_a_checkpoint_written_a_second_time_is_not_complete_before_it_is_sealed_again(tmp_path, monkeypatch) -> None:
    (tmp_path / "weights").write_bytes(b"first")
    seal(tmp_path)
    first = (tmp_path / MANIFEST).read_bytes()

    def killed(path):
        raise Died

    monkeypatch.setattr("secateur.training.checkpoints._sha256", killed)
    with pytest.raises(Died):
        seal(tmp_path)
    monkeypatch.undo()
    assert fault_of(tmp_path) == "it was not finished"
    (tmp_path / f".{MANIFEST}.abcd").write_bytes(b"half")
    seal(tmp_path)
    assert (tmp_path / MANIFEST).read_bytes() == first


def test_damaged_later_checkpoints_go_when_a_run_goes_on(tmp_path) -> None:
    for step in (5, 10, 15):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "weights").write_bytes(b"x" * step)
        if step == 5:
            seal(folder)
    drop_damaged(tmp_path, find_latest(tmp_path)[0])
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


def test_a_second_run_in_the_same_place_is_refused(tmp_path) -> None:
    with locked(tmp_path / "work"):  # noqa: SIM117
        with pytest.raises(InputError, match=f"in use by process {os.getpid()} on "):
            with locked(tmp_path / "work"):
                pass
    with locked(tmp_path / "work"):
        pass


def test_an_interrupt_saves_and_says_how_to_resume(place, tmp_path, monkeypatch, capsys) -> None:
    whole = run(place, tmp_path / "whole")
    real = saving.SavingCallback.on_step_end

    def interrupting(self, args, state, control, **kwargs):
        real(self, args, state, control, **kwargs)
        if state.global_step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(saving.SavingCallback, "on_step_end", interrupting)
    given = options(place, tmp_path / "out", save_steps=0)
    flags = [
        part
        for key, value in given.items()
        for part in ("--" + key.replace("_", "-"), *(value if isinstance(value, tuple) else (str(value),)))
    ]
    assert main(["prune", *flags]) == 130
    assert "stopped after step" in capsys.readouterr().err
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    resumed = run(place, tmp_path / "out", save_steps=0, resume=True)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    assert not (tmp_path / "out.run").exists()


def test_killed_for_real(place, tmp_path) -> None:
    """kill -9 as soon as the first checkpoint is complete."""
    whole = run(place, tmp_path / "whole", steps=20, save_steps=2)
    given = options(place, tmp_path / "out", steps=20, save_steps=2)
    flags = [
        part
        for key, value in given.items()
        for part in ("--" + key.replace("_", "-"), *(value if isinstance(value, tuple) else (str(value),)))
    ]
    killed = run_until(tmp_path / "out.run", f"checkpoint-*/{MANIFEST}", "prune", *flags)
    assert killed.returncode == -signal.SIGKILL, "it finished before it could be killed"
    resumed = run(place, tmp_path / "out", steps=20, save_steps=2, resume=True)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
