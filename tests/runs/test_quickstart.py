"""A second quickstart replaces the first one's result, and nothing else."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from secateur.config.prune import QuickstartConfig
from secateur.runs import quickstart
from secateur.runs.summary import run_summary
from secateur.system.errors import InputError
from secateur.system.records import plain


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def stop(progress=None):
        raise InputError("the run begins")

    monkeypatch.setattr(quickstart, "embedded_model_dir", stop)
    (tmp_path / "secateur-quickstart").mkdir()
    return tmp_path


def result(folder, **changes) -> None:
    config = plain(asdict(quickstart.quickstart_options(QuickstartConfig(output=str(folder), steps=12)))) | changes
    (folder / "result.json").write_text(json.dumps({"config": config}))


def test_its_own_result_is_replaced(here, capsys) -> None:
    result(here / "secateur-quickstart")
    with pytest.raises(InputError, match="the run begins"):
        quickstart.quickstart(QuickstartConfig())
    assert "replacing the earlier quickstart's result in secateur-quickstart" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["another run", "no result", "half a result", "another folder"])
def test_anything_else_is_refused(here, what) -> None:
    folder = here / "secateur-quickstart"
    (folder / "notes.txt").write_text("mine")
    output = {}
    if what == "another run":
        result(folder, model="my/model")
    elif what == "half a result":
        (folder / "result.json").write_text('{"config": {"mod')
    elif what == "another folder":
        result(folder)
        output = {"output": str(folder.rename(here / "kept"))}
    with pytest.raises(InputError, match="is not empty"):
        quickstart.quickstart(QuickstartConfig(**output))
    assert (next(here.iterdir()) / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(("speedup", "said"), [(1.2, "1.20x faster"), (0.8, "1.25x slower")])
def test_the_summary_says_which_way_the_speed_went(speedup, said) -> None:
    record = json.loads((Path(__file__).parents[2] / "docs/results/quickstart.json").read_text())
    record["speed"]["speedup"] = speedup
    assert said in run_summary(record)
