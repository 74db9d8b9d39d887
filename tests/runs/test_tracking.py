"""What trackers are told through `--report-to` by a run that was stopped and resumed, as their own readers find it.

TensorBoard is among the packages of the tests; the others are tested where they are installed.
"""

import json
import struct
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import pytest
from tiny import save_tiny

from secateur.cli import main
from secateur.config.adapt import AdaptConfig
from secateur.config.options import build
from secateur.config.prune import PruneConfig
from secateur.runs import tracking
from secateur.runs.adapt import adapt, prepare_adapt
from secateur.runs.prune import prune
from secateur.system.progress import Progress
from secateur.training.prepare import prepare
from secateur.training.recording import RecordingCallback

WORDS = "the quick brown fox jumps over the lazy dog while seven wizards box and quarrel about nothing at all. "
Series = dict[str, dict[int, float]]


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tracked")
    save_tiny(folder / "model", layers=2)
    (folder / "text.txt").write_text(WORDS * 20)
    return folder


def options(place: Path, output: Path, **more: object) -> dict[str, object]:
    text = str(place / "text.txt")
    return {
        "model": str(place / "model"), "data": (text,), "eval_data": text, "eval_tokens": 256, "output": str(output),
        "steps": 8, "batch_size": 2, "seq_len": 32, "frequency": 2, "dtype": "float32", "save_steps": 4,
        "prune_start": 0.2, "prune_end": 0.8, **more,
    }  # fmt: skip


def run(place: Path, output: Path, **more: object) -> str:
    """What the run says."""
    job, stream = prepare(build(PruneConfig, options(place, output, sparsity=0.3, **more))), StringIO()
    prune(job, Progress(job.total_steps, stream=stream))
    return stream.getvalue()


def of_tensorboard(output: Path) -> tuple[int, str, Series]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(output / "runs")).Reload()
    series = {name: {p.step: p.value for p in found.Scalars(name)} for name in found.Tags()["scalars"]}
    assert all(len(found.Scalars(name)) == len(points) for name, points in series.items())  # none is said twice
    (text,) = found.Tensors("options/text_summary")
    return 1, text.tensor_proto.string_val[0].decode(), series


def of_wandb(output: Path) -> tuple[int, str, Series]:
    from wandb.proto.wandb_internal_pb2 import Record

    def records(content: bytes) -> Iterator[Record]:
        """A log as LevelDB's: blocks of 32 kB, in them parts with a checksum, a size and a kind."""
        at, whole = 7, b""
        while at + 7 <= len(content):
            if (room := 32768 - at % 32768) < 7:
                at += room
                continue
            size, kind = struct.unpack("<HB", content[at + 4 : at + 7])
            whole = (whole if kind in (3, 4) else b"") + content[at + 7 : at + 7 + size]
            at += 7 + size
            if kind in (1, 4):
                yield Record.FromString(whole)

    names, configs, series = set(), {}, {}
    for path in sorted((output.parent / "wandb").glob("offline-run-*/*.wandb")):
        for record in records(path.read_bytes()):
            if record.WhichOneof("record_type") == "run":
                names.add((record.run.project, record.run.run_id))
            for item in record.config.update:
                configs[item.key] = item.value_json
            line = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for name, value in line.items():
                series.setdefault(name, {})[line["step"]] = value
    ((project, _),) = names
    assert project == "secateur"
    return len(names), f"sparsity: {configs['sparsity']}\n", series


def of_mlflow(output: Path) -> tuple[int, str, Series]:
    import mlflow

    client = mlflow.MlflowClient()
    runs = client.search_runs([client.get_experiment_by_name("secateur").experiment_id])
    assert {found.info.status for found in runs} == {"FINISHED"}
    series = {
        name: {point.step: point.value for point in client.get_metric_history(runs[0].info.run_id, name)}
        for name in runs[0].data.metrics
    }
    return len(runs), f"sparsity: {runs[0].data.params['sparsity']}\n", series


def of_trackio(output: Path) -> tuple[int, str, Series]:
    from trackio.sqlite_storage import SQLiteStorage

    names, series = SQLiteStorage.get_runs("secateur"), {}
    for line in SQLiteStorage.get_logs("secateur", names[0]):
        for name, value in line.items():
            series.setdefault(name, {})[line["step"]] = value
    return len(names), f"sparsity: {SQLiteStorage.get_run_config('secateur', names[0])['sparsity']}\n", series


READERS: dict[str, Callable[[Path], tuple[int, str, Series]]] = {
    "tensorboard": of_tensorboard, "wandb": of_wandb, "mlflow": of_mlflow, "trackio": of_trackio,
}  # fmt: skip


@pytest.mark.filterwarnings("default")  # of packages that are others'
@pytest.mark.parametrize("tracker", list(READERS))
def test_a_resumed_run_is_one_run_with_all_its_figures(place, tmp_path, monkeypatch, tracker) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip(tracker)
    real = RecordingCallback.on_log

    def stopping(self, args, state, control, logs=None, **kwargs):
        real(self, args, state, control, logs=logs, **kwargs)
        if state.global_step == 6:
            raise Stopped

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(RecordingCallback, "on_log", stopping)
        run(place, tmp_path / "out", report_to=(tracker,), eval_steps=3)
    run(place, tmp_path / "out", report_to=(tracker,), eval_steps=8, resume=True)
    runs, said, series = READERS[tracker](tmp_path / "out")
    assert runs == 1
    assert "sparsity: 0.3\n" in said
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "learning_rate", "sparsity", "parameters"):
        assert series[f"train/{name}"] == pytest.approx({line["step"]: line[name] for line in lines}, rel=1e-6)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    pools = json.loads((tmp_path / "out" / "units.json").read_text())["pools"]
    for name, pool in pools.items():
        assert series[f"units/{name}"][0] == pool["units"]
        last = max(series[f"units/{name}"])
        assert series[f"units/{name}"][last] == len(pool["kept"])
    asked = {line["step"]: line["eval_perplexity"] for line in lines if "eval_perplexity" in line}
    before, after = (result[which]["perplexity"]["perplexity"] for which in ("dense", "pruned"))
    told = series["eval/perplexity"]
    assert {step: told[step] for step in (0, *asked)} == pytest.approx({0: before, **asked}, rel=1e-6)
    assert series["result/perplexity"] == pytest.approx({8: after}, rel=1e-6)
    assert series["result/parameters"] == {8: result["pruned"]["parameters"]}


def listening(told: list[tuple[int, dict[str, float]]], fails_at: int | None = None) -> Callable[..., tracking.Tracker]:
    def log(values: dict[str, float], step: int) -> None:
        told.append((step, values))
        if step == fails_at:
            raise ConnectionError("the server\nis gone")

    return lambda run: tracking.Tracker("it", "here", log, lambda good: told.append((-1, {"good": good})))


def test_a_tracker_that_fails_is_told_no_more_and_the_run_goes_on(place, tmp_path, monkeypatch) -> None:
    told, others = [], []
    monkeypatch.setitem(tracking.OPENED_BY, "tensorboard", listening(told, fails_at=3))
    monkeypatch.setitem(tracking.OPENED_BY, "wandb", listening(others))
    monkeypatch.setattr("secateur.config.run.find_spec", lambda name: type("Spec", (), {"origin": name}))
    said = run(place, tmp_path / "out", report_to=("tensorboard", "wandb"))
    assert said.count("warning: tensorboard is told no more, as it fails (the server is gone)") == 1
    assert [step for step, _ in told] == [0, 1, 2, 3]
    assert [step for step, _ in others] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, -1]
    assert others[-1] == (-1, {"good": True})


def test_one_that_cannot_begin_is_refused_before_the_model_is_loaded(place, tmp_path, monkeypatch, capsys) -> None:
    def unreachable(run: tracking.Told) -> tracking.Tracker:
        raise ConnectionError("no route")

    monkeypatch.setitem(tracking.OPENED_BY, "tensorboard", unreachable)
    monkeypatch.setattr("secateur.runs.prune.load_base", None)
    given = options(place, tmp_path / "out", sparsity=0.3, report_to="tensorboard")
    given |= {"data": str(place / "text.txt")}
    argv = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    assert main(["prune", *argv]) == 2
    assert "--report-to tensorboard: it cannot begin (no route): see that" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_ranks_of_every_layer(place, tmp_path, monkeypatch) -> None:
    told: list[tuple[int, dict[str, float]]] = []
    monkeypatch.setitem(tracking.OPENED_BY, "tensorboard", listening(told))
    given = options(place, tmp_path / "out", init_rank=8, rank=2, report_to=("tensorboard",))
    job = prepare_adapt(build(AdaptConfig, given))
    adapt(job, Progress(job.total_steps, stream=StringIO()))
    ranks: dict[str, float] = {}
    for _, values in told:
        ranks |= {name: value for name, value in values.items() if name.startswith("rank/")}
    assert told[0][1]["rank/" + next(iter(ranks)).removeprefix("rank/")] == 8
    assert sum(ranks.values()) / len(ranks) == 2
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert told[-2][1]["result/perplexity"] == result["adapted"]["perplexity"]["perplexity"]
    assert told[-2][1]["result/parameters"] == result["adapter"]["parameters"]
