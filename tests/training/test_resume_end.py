"""Stopped when all steps are done: nothing more is trained, and what stands is said and tidied up."""

import json
import os
import signal
from pathlib import Path

import pytest
from tiny import save_tiny

from secateur.cli import main
from secateur.runs import adapt, outcome, prune
from secateur.training import saving, trainer
from secateur.training.checkpoints import find_latest, is_done

WORDS = "the quick brown fox jumps over the lazy dog while seven wizards box and quarrel about nothing at all. "
STEPS = 6
TIMED = {"seconds", "tokens_per_s", "train_seconds", "total_seconds", "speed"}
OWN = {"output", "folder", "loads_with", "serves_with", "resume", "overwrite", "save_steps"}


class Died(BaseException):
    """No clean-up that an error would get."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("end")
    save_tiny(folder / "model", layers=2)
    (folder / "text.txt").write_text(WORDS * 6)  # 9 blocks of 64 tokens: 4 steps an epoch, and 6 are none
    return folder


def command(place, output, *more, kind="prune", save_steps=1):
    own = {"prune": ["--sparsity", "0.3", "--rank", "2"], "adapt": ["--init-rank", "6", "--rank", "2"]}
    return [
        kind, *own[kind], "--model", str(place / "model"), "--data", str(place / "text.txt"), "--output", str(output),
        "--steps", str(STEPS), "--batch-size", "2", "--accumulation", "2", "--seq-len", "64", "--frequency", "2",
        "--dropout", "0.2", "--dtype", "float32", "--save-steps", str(save_steps), "--lr", "5e-3", *more,
    ]  # fmt: skip


def dying(*args, **kwargs):
    raise Died


def killed(patch, owner, name, arguments) -> None:
    """The command dies where it comes to a function."""
    with patch.context() as only:
        only.setattr(owner, name, dying)
        with pytest.raises(Died):
            main(arguments)


def without(value, names):
    if isinstance(value, dict):
        return {key: without(item, names) for key, item in value.items() if key not in names}
    return [without(item, names) for item in value] if isinstance(value, list) else value


def records(output: Path) -> dict[str, object]:
    """What every file of a result says, but for times and its own name."""
    found: dict[str, object] = {}
    for path in sorted(output.iterdir()):
        if path.suffix == ".json":
            found[path.name] = json.dumps(without(json.loads(path.read_text()), TIMED | OWN))
        elif path.suffix == ".jsonl":
            found[path.name] = [without(json.loads(line), TIMED) for line in path.read_text().splitlines()]
        elif path.name not in ("report.html", "README.md"):  # which have times and the name in them
            found[path.name] = path.read_bytes()
        else:
            found[path.name] = None
    return found


ONE_SHOT = ["--schedule", "one-shot", "--prune-start", "1", "--prune-end", "1", "--criterion", "obs"]


@pytest.mark.parametrize(
    ("kind", "writer", "more"),
    [
        ("prune", "export_checkpoint", ["--lr-decay", "cosine", "--init-rank", "4"]),
        ("prune", "export_checkpoint", [*ONE_SHOT, "--compensate", "lstsq"]),
        ("adapt", "write_adapter", []),
    ],
    ids=["cosine", "one-shot", "adapt"],
)
def test_no_step_is_taken_after_the_last(place, tmp_path, monkeypatch, capsys, kind, writer, more) -> None:
    for module in (prune, adapt):
        monkeypatch.setattr(module, "report_on", lambda *args: None)
    assert main(command(place, tmp_path / "whole", *more, kind=kind)) == 0
    arguments = command(place, tmp_path / "out", *more, kind=kind)
    killed(monkeypatch, prune if kind == "prune" else adapt, writer, arguments)
    capsys.readouterr()
    monkeypatch.setattr(trainer.AutocastTrainer, "training_step", dying)
    killed(monkeypatch, prune if kind == "prune" else adapt, writer, [*arguments, "--resume"])
    assert main([*arguments, "--resume"]) == 0
    assert "resuming from checkpoint-" in capsys.readouterr().err
    whole, resumed = records(tmp_path / "whole"), records(tmp_path / "out")
    assert whole.keys() == resumed.keys()
    for name, content in whole.items():
        assert resumed[name] == content, name


def sent_at(monkeypatch, event, number) -> None:
    """The signal comes when the callback that saves is called with an event at the last step."""
    real = getattr(saving.SavingCallback, event)

    def wrapped(self, args, state, control, **kwargs):
        if state.global_step == STEPS:
            os.kill(os.getpid(), number)
        real(self, args, state, control, **kwargs)

    monkeypatch.setattr(saving.SavingCallback, event, wrapped)


@pytest.mark.parametrize(
    ("event", "number", "save_steps"),
    [("on_step_end", signal.SIGINT, 0), ("on_save", signal.SIGTERM, 2), ("on_save", signal.SIGHUP, 2)],
)
def test_a_signal_in_the_last_step(place, tmp_path, monkeypatch, capsys, event, number, save_steps) -> None:
    arguments = command(place, tmp_path / "out", save_steps=save_steps)
    with monkeypatch.context() as patch:
        sent_at(patch, event, number)
        assert main(arguments) == 128 + number
    assert f"stopped after step {STEPS}, which is saved." in capsys.readouterr().err
    assert find_latest(tmp_path / "out.run")[0].name == f"checkpoint-{STEPS}"
    monkeypatch.setattr(trainer.AutocastTrainer, "training_step", dying)
    assert main([*arguments, "--resume"]) == 0
    assert json.loads((tmp_path / "out" / "result.json").read_text())["data"]["trained_steps"] == STEPS
    assert (tmp_path / "out.run").exists() == bool(save_steps)


def test_a_signal_that_comes_too_late_to_be_saved_is_not_lost(place, tmp_path, monkeypatch, capsys) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(saving.Interruption, "on_train_end", lambda *a, **k: os.kill(os.getpid(), signal.SIGTERM))
        assert main(command(place, tmp_path / "out", save_steps=0)) == 143
    assert "interrupted; nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["prune", "adapt"])
@pytest.mark.parametrize("save_steps", [0, 4])
def test_a_result_that_is_complete_is_not_made_again(place, tmp_path, monkeypatch, capsys, kind, save_steps) -> None:
    module, output = (prune if kind == "prune" else adapt), tmp_path / "out"
    arguments = command(place, output, kind=kind, save_steps=save_steps)
    killed(monkeypatch, module, "report_on" if save_steps else "drop_work", arguments)  # what comes after the renaming
    (tmp_path / ".out.secateur-x.old").mkdir()  # as a kill would leave it
    (tmp_path / ".out.secateur-lock").touch()
    assert is_done(tmp_path / "out.run", output)
    before = records(output)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(module, "load_base", dying)
        assert main([*arguments, "--resume"]) == 0
        said = capsys.readouterr().out
        assert f"the result is complete in {output}: nothing is left to do" in said
        assert "To load it" in said
        assert records(output) == before | {"report.html": None}
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out"] + ["out.run"] * bool(save_steps)
        assert main([*arguments, "--resume"]) == 0  # a second time too, whether its folder is there or not
        assert main([*arguments, "--resume", "--seed", "1"]) == 2
        assert f"the run in {output} is done, and its options were others: seed: 0 -> 1" in capsys.readouterr().err
    assert main(arguments) == 2
    assert "is not empty" in capsys.readouterr().err


def test_a_run_that_replaces_a_result_goes_on_and_replaces_it(place, tmp_path, monkeypatch, capsys) -> None:
    output = tmp_path / "out"
    assert main(command(place, output)) == 0
    first = (output / "result.json").read_bytes()
    killed(monkeypatch, outcome, "write_json", command(place, output, "--overwrite"))  # its result is not in place
    assert (output / "result.json").read_bytes() == first
    assert main(command(place, output, "--resume")) == 0
    assert (output / "result.json").read_bytes() != first
    assert "nothing is left to do" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "number"), [("prune", signal.SIGINT), ("prune", signal.SIGHUP), ("adapt", signal.SIGTERM)]
)
def test_a_signal_while_the_report_is_drawn(place, tmp_path, monkeypatch, capsys, kind, number) -> None:
    monkeypatch.setattr("secateur.report.write_report", lambda folders: os.kill(os.getpid(), number))
    output = tmp_path / "out"
    assert main(command(place, output, kind=kind)) == 128 + number
    said = capsys.readouterr().err
    assert f"secateur: interrupted; the result is complete in {output}." in said
    assert f"secateur report {output}" in said
    assert "nothing was written" not in said
    assert not (tmp_path / "out.run" / "failure.json").exists()
