"""Commands as functions: what they return is what `load_result` reads, and both are what the files hold."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny import save_tiny
from transformers import AutoModelForCausalLM, AutoTokenizer
from zygote import run

import secateur
from secateur.evaluation.perplexity import Paired
from secateur.report import plots
from secateur.report.runs import Run
from secateur.results.commands import _given
from secateur.system.errors import InputError
from secateur.system.records import FORMAT
from secateur.system.voice import NAMES
from tests.report.test_report import HOSTILE, records, unfinished, with_tasks, write_run

WORDS = "the quick brown fox jumps over the lazy dog while seven wizards box and quarrel about nothing at all. "
TRAIN = {"steps": 8, "batch_size": 2, "seq_len": 32, "frequency": 2, "dtype": "float32", "lr": 5e-3}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    save_tiny(folder / "model", layers=3)
    (folder / "text.txt").write_text(WORDS * 60)
    (folder / "other.txt").write_text(WORDS[::-1] * 20)
    return folder


@pytest.fixture(scope="module")
def pruned(place):
    """Layers of different sizes, which stock transformers reads with the checkpoint's own code alone."""
    return secateur.prune(
        model=place / "model", data=(place / "text.txt",), eval_data=str(place / "other.txt"), output=place / "small",
        sparsity=0.4, allocation="global", attention="none", criterion="magnitude", round_to=1, **TRAIN,
    )  # fmt: skip


def ids() -> torch.Tensor:
    return torch.randint(3, 99, (2, 20), generator=torch.Generator().manual_seed(1))


def test_prune_returns_what_its_folder_says(place, pruned) -> None:
    assert isinstance(pruned, secateur.PruneResult)
    assert secateur.load_result(place / "small") == pruned
    assert secateur.load_result(str(place / "small")) == pruned
    stock = AutoModelForCausalLM.from_pretrained(place / "small", trust_remote_code=True)
    dense = AutoModelForCausalLM.from_pretrained(place / "model")
    units = json.loads((place / "small" / "units.json").read_text())["pools"]
    prunable = sum(weight.numel() for name, weight in dense.named_parameters() if "_proj" in name)
    gone = dense.num_parameters() - stock.num_parameters()
    assert (pruned.parameters, pruned.dense_parameters) == (stock.num_parameters(), dense.num_parameters())
    assert pruned.sparsity == gone / prunable
    assert pruned.sparsity_of_model == gone / dense.num_parameters()
    removed = sum(len(gone) * units[name]["unit_params"] for cut in pruned.cuts for name, gone in cut.removed.items())
    assert removed == gone
    assert pruned.cuts[-1].sparsity == pruned.sparsity == pruned.metrics[-1]["sparsity"]
    assert [shape["ffn"] for shape in pruned.shapes] == [len(pool["kept"]) for pool in units.values()]
    assert len({shape["ffn"] for shape in pruned.shapes}) > 1, "the layers are alike: nothing was shown"
    assert [line["step"] for line in pruned.metrics] == list(range(1, 9))
    assert (pruned.steps, pruned.trained_tokens) == (8, 8 * 2 * 32)
    assert pruned.record == json.loads((place / "small" / "result.json").read_text())
    assert pruned.options["criterion"] == "magnitude"
    assert f"{pruned.parameters:,} of {pruned.dense_parameters:,} parameters" in repr(pruned)


def test_its_model_is_the_checkpoint(place, pruned) -> None:
    stock = AutoModelForCausalLM.from_pretrained(place / "small", trust_remote_code=True)
    found = pruned.model()
    assert not found.training
    assert torch.equal(found(ids()).logits, stock(ids()).logits)
    assert pruned.model(dtype="bfloat16").dtype == torch.bfloat16
    text = "the lazy dog"
    assert pruned.tokenizer()(text).input_ids == AutoTokenizer.from_pretrained(place / "model")(text).input_ids


def test_a_run_that_is_done_is_loaded(place, pruned, capsys) -> None:
    before = (place / "small" / "result.json").stat().st_mtime_ns
    again = secateur.prune(
        **{name: value for name, value in pruned.options.items() if value is not None} | {"resume": True}
    )
    assert again == pruned
    assert (place / "small" / "result.json").stat().st_mtime_ns == before


def test_a_run_that_a_newer_version_ended_is_not(tmp_path) -> None:
    """It is no run to go on with, and none to write over."""
    write_run(tmp_path / "out", {**records(), "environment": {"record_format": FORMAT + 1}})
    with pytest.raises(InputError, match=r"result\.json was written by a newer secateur .*choose another output"):
        secateur.prune(model="m", data="d", output=tmp_path / "out", resume=True)


def test_its_plot_is_the_metrics(pruned) -> None:
    figure = pruned.plot()
    upper, lower, layers = figure.axes
    losses = [line["loss"] for line in pruned.metrics]
    assert any(list(line.get_ydata()) == losses for line in upper.lines)
    (sparsity,) = [line for line in lower.lines if len(line.get_xdata()) == len(losses)]
    assert list(sparsity.get_ydata()) == [line["sparsity"] for line in pruned.metrics]
    dense = secateur.load_result(pruned.folder).record["config"]
    assert dense["sparsity"] == 0.4
    shares = [bar.get_alpha() for bar in layers.patches if bar.get_alpha() is not None]
    assert shares == [shape["ffn"] / 96 for shape in pruned.shapes]
    left = sum(shape["ffn"] for shape in pruned.shapes) / (3 * 96)
    assert [label.get_text() for label in layers.get_yticklabels()] == [f"FFN channels\n{left:.0%} of all"]


def test_adapt_returns_an_adapter(place) -> None:
    found = secateur.adapt(
        model=place / "model", data=place / "text.txt", output=place / "adapter", init_rank=6, rank=2, **TRAIN
    )
    assert isinstance(found, secateur.AdaptResult)
    assert secateur.load_result(place / "adapter") == found
    assert (found.init_rank, found.mean_rank, found.merged) == (6, 2.0, False)
    assert set(found.ranks.values()) == {2}
    assert found.ranks_after[max(found.ranks_after)] == found.ranks
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(place / "model"), place / "adapter")
    assert found.parameters == sum(p.numel() for name, p in plain.named_parameters() if "lora_" in name)
    model = found.model()
    assert torch.equal(model(ids()).logits, plain.eval()(ids()).logits)
    with model.disable_adapter():
        assert not torch.equal(model(ids()).logits, plain(ids()).logits), "the adapter does nothing"
    assert found.tokenizer()("a fox").input_ids == AutoTokenizer.from_pretrained(place / "model")("a fox").input_ids
    assert "rank 6 -> 2" in repr(found)
    assert "Adapter&#39;s rank" in found._repr_html_()
    _, lower, _ = found.plot().axes
    assert any(list(line.get_ydata()) == [line["rank"] for line in found.metrics] for line in lower.lines)


def test_sparsify_returns_what_its_folder_says(place) -> None:
    given = {"model": place / "model", "data": place / "text.txt", "eval_data": str(place / "other.txt"), "seq_len": 32}
    found = secateur.sparsify(output=place / "zeros", pattern="2:4", method="wanda", calibration_tokens=320, **given)
    assert isinstance(found, secateur.SparsifyResult)
    assert secateur.load_result(place / "zeros") == found
    stock = AutoModelForCausalLM.from_pretrained(place / "zeros")
    linears = [weight for name, weight in stock.named_parameters() if name.endswith("_proj.weight")]
    assert found.zeros == sum(int((weight == 0).sum()) for weight in linears)
    assert found.share == found.zeros / sum(weight.numel() for weight in linears) == 0.5
    assert found.share_of_model == found.zeros / stock.num_parameters()
    assert (found.parameters, found.method, found.pattern) == (stock.num_parameters(), "wanda", "2:4")
    assert found.perplexity == found.record["pruned"]["perplexity"]["perplexity"] != found.dense_perplexity
    assert (found.steps, found.metrics, found.untrained_perplexity) == (0, (), None)
    assert torch.equal(found.model()(ids()).logits, stock(ids()).logits)
    assert "wanda 2:4, 50.00% zeros, perplexity" in repr(found)
    assert "<table>" in found._repr_html_()
    trained = secateur.sparsify(output=place / "pst", pattern=0.3, method="pst", steps=4, batch_size=2, **given)
    assert trained.share == pytest.approx(0.3, abs=1e-3)
    losses = [line["loss"] for line in trained.metrics]
    assert any(list(line.get_ydata()) == losses for axes in trained.plot().axes for line in axes.lines)
    with pytest.raises(InputError, match="mask_lora goes with training"):
        secateur.sparsify(output=place / "no", mask_lora=True, **given)


def test_eval_returns_its_record(place, pruned) -> None:
    given = {"model": place / "small", "against": place / "model", "data": place / "other.txt", "seq_len": 64}
    found = secateur.eval(**given, dtype="float32", output=place / "eval.json")
    assert isinstance(found, secateur.EvalResult)
    assert secateur.load_result(place / "eval.json") == found
    assert secateur.eval(**given, dtype="float32").models.keys() == found.models.keys()  # no file needed
    tokens = pruned.tokenizer()((place / "other.txt").read_text(), return_tensors="pt").input_ids[0]
    segments = tokens[: len(tokens) // 64 * 64].view(-1, 64)
    for name, figures in found.models.items():
        model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True)
        with torch.no_grad():
            loss = float(model(segments, labels=segments).loss)
        assert figures.perplexity == pytest.approx(math.exp(loss), rel=1e-4)
        assert figures.parameters == model.num_parameters()
        assert (figures.tokens_scored, figures.seq_len) == (len(segments) * 63, 64)
    first, second = (math.log(figures.perplexity) for figures in found.models.values())
    assert isinstance(found.paired, Paired)
    assert found.paired.mean_difference_nll == pytest.approx(first - second, abs=1e-6)
    assert found.perplexity == found.models[str(place / "small")].perplexity
    assert torch.equal(found.model()(ids()).logits, pruned.model()(ids()).logits)
    assert found.model(str(place / "model")).num_parameters() == pruned.dense_parameters
    with pytest.raises(InputError, match="'small' was not evaluated"):
        found.model("small")
    (axes,) = found.plot().axes
    assert [bar.get_width() for bar in axes.patches] == [figures.perplexity for figures in found.models.values()]
    assert f"{found.perplexity:.2f}" in found._repr_html_()


def test_tasks_are_read(tmp_path) -> None:
    folder = with_tasks(write_run(tmp_path / "run"))
    found = secateur.load_result(folder / "eval-tasks.json")
    assert found.tasks["boolq"] == secateur.results.TaskScore("acc", 0.3, 0.035, 200, 0)
    assert "boolq 30.0 %" in repr(found)
    assert len(found.plot().axes) == 7
    assert "<td>30.0 %</td><td>37.0 %</td>" in found._repr_html_()


def test_compare_returns_its_cells(place) -> None:
    given = {"model": place / "model", "data": place / "text.txt", "output": place / "grid", "sparsity": [0.2, 0.4],
             "criterion": "magnitude", "evaluate_on": place / "other.txt", "steps": 0, "seq_len": 32,
             "batch_size": 2, "dtype": "float32", "keep_checkpoints": True}  # fmt: skip
    found = secateur.compare(**given)
    assert isinstance(found, secateur.CompareResult)
    assert secateur.load_result(place / "grid") == found
    assert secateur.compare(**given) == found  # nothing is left to run
    assert [cell.name for cell in found.cells] == ["dense", "sparsity0.2", "sparsity0.4"]
    for cell in found.cells[1:]:
        record = json.loads((place / "grid" / cell.name / "result.json").read_text())
        assert cell.perplexity["other.txt"] == record["perplexity"][str(place / "other.txt")]["perplexity"]
        assert found.model(cell.name).num_parameters() == cell.parameters < found.cells[0].parameters
        assert isinstance(secateur.load_result(place / "grid" / cell.name / "checkpoint"), secateur.PruneResult)
    with pytest.raises(InputError, match=r"no cell is called 'sparsity0\.3'"):
        found.model("sparsity0.3")
    with pytest.raises(InputError, match="run the comparison with keep_checkpoints to load its models"):
        found.model("dense")
    with pytest.raises(InputError, match="is a cell of a comparison: load the comparison"):
        secateur.load_result(place / "grid" / "dense")
    (axes,) = found.plot().axes
    drawn = {(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in axes.lines}
    assert drawn == {(cell.parameters, cell.perplexity["other.txt"]) for cell in found.cells}
    assert "<th>sparsity0.4</th>" in found._repr_html_()
    assert repr(found).endswith("3 cells; on other.txt)")


def test_records_are_text_in_a_notebook(tmp_path) -> None:
    folder = write_run(tmp_path / "<b>run</b>", records(HOSTILE))
    shown = secateur.load_result(folder)._repr_html_()
    assert "<b>" not in shown
    assert "<script>" not in shown
    assert "\x1b" not in shown
    for words in ("script&gt;", "31.42", "25.95", "113.3M", "1.210 ×"):
        assert words in shown


def test_what_a_record_lacks_is_none(tmp_path) -> None:
    whole = records()
    lean = {key: whole[key] for key in ("config", "sparsity", "dense", "pruned")}
    lean["pruned"] = {"parameters": 5}
    found = secateur.load_result(write_run(tmp_path / "lean", lean, with_units=False, with_metrics=False))
    assert (found.parameters, found.perplexity, found.train_seconds, found.cuts, found.metrics) == (
        5,
        None,
        None,
        (),
        (),
    )
    assert repr(found).endswith("gone)")
    assert found.plot().axes
    assert isinstance(found.run, Run)


BAD = {
    "nothing": (lambda at: at / "none", "there is no such folder or file: give the output folder"),
    "an empty folder": (lambda at: at, "holds no result: give the output folder of prune, adapt, sparsify or compare"),
    "a run that goes on": (lambda at: unfinished(at / "run"), "has no result yet: its run has not ended"),
    "its working folder": (lambda at: Path(f"{unfinished(at / 'run')}.run"), "has no result yet"),
    "no JSON": (lambda at: written(at / "eval.json", "{"), "eval.json is not valid JSON"),
    "another record": (lambda at: written(at / "x.json", '{"samples": []}'), "is no record of eval: give the output"),
    "a record without models": (lambda at: written(at / "x.json", '{"models": {}}'), "has no models: was it cut short"),
    "a result without sizes": (
        lambda at: write_run(at / "run", {key: value for key, value in records().items() if key != "pruned"}),
        "has no number at pruned.parameters: was it cut short",
    ),
    "a result without options": (
        lambda at: write_run(at / "run", {key: value for key, value in records().items() if key != "config"}),
        "has no object at config",
    ),
    "a result of another command": (
        lambda at: write_run(at / "run", {**records(), "kind": "dream"}), "is a result of dream, for whose",
    ),
    "a newer version": (
        lambda at: write_run(at / "run", {**records(), "environment": {"record_format": FORMAT + 1}}),
        "was written by a newer secateur",
    ),
    "a comparison by a newer version": (
        lambda at: written(
            at / "comparison.json",
            json.dumps({"cells": [], "conditions": {"environment": {"record_format": FORMAT + 1}}}),
        ).parent,
        "comparison.json was written by a newer secateur",
    ),
    "a comparison of nothing": (
        lambda at: written(at / "comparison.json", '{"cells": []}').parent, "comparison.json has no cells",
    ),
}  # fmt: skip


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_result_is_refused(kind, tmp_path) -> None:
    make, words = BAD[kind]
    with pytest.raises(InputError) as refused:
        secateur.load_result(make(tmp_path))
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("call", "options", "words"),
    [
        (secateur.prune, {"modle": "m", "data": "d", "output": "o"}, "unknown option 'modle'. Did you mean 'model'?"),
        (secateur.prune, {"sparsity": 1.5, "model": "m", "data": "d", "output": "o"}, "sparsity is 1.5"),
        (secateur.prune, {"steps": "x", "model": "m", "data": "d", "output": "o"}, "steps is 'x': expected a whole"),
        (secateur.prune, {"lr": -1, "model": "m", "data": "d", "output": "o"}, "lr is -1"),
        (secateur.adapt, {"model": "m", "data": "d", "output": "o", "dry_run": True}, "a dry run has no result"),
        (secateur.eval, {"model": "m"}, "nothing to evaluate on: give data, preset"),
        (secateur.compare, {"model": "m", "data": "d", "output": "o", "evaluate_on": "x", "cells": "odd"}, "odd"),
        (secateur.prune, {"config": "none.yaml"}, "none.yaml"),
        (
            secateur.prune,
            {"model": range(3), "data": "d", "output": "o"},
            "model is range(0, 3): expected text, in",
        ),
        (
            secateur.adapt,
            {"learning_rate": 1.0, "model": "m", "data": "d", "output": "o"},
            "Did you mean 'lr'? See",
        ),
    ],
)
def test_bad_options(call, options, words, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as refused:
        call(**options)
    assert words in str(refused.value)
    assert not set(NAMES.values()) & set(re.findall(r"the learning rate|\w+", str(refused.value)))  # those of Pruner
    assert list(tmp_path.iterdir()) == []


def test_options_are_as_in_a_file() -> None:
    given = {"data": (Path("a"), "b"), "model": Path("m"), "lr": 1e-3, "sparsity": [0.2, 0.5]}
    assert _given(given) == {"data": ["a", "b"], "model": "m", "lr": 1e-3, "sparsity": [0.2, 0.5]}


def test_several_processes_take_the_command(monkeypatch) -> None:
    monkeypatch.setattr("secateur.results.commands.launched", lambda: 2)
    for call, name in ((secateur.prune, "prune"), (secateur.eval, "eval"), (secateur.compare, "compare")):
        with pytest.raises(InputError, match=rf"torchrun \.\.\. -m secateur {name}"):
            call(model="m")


WITHOUT = """
import sys
for name in [name for name in sys.modules if name.startswith(("matplotlib", "secateur.report", "secateur.results"))]:
    del sys.modules[name]
sys.modules["matplotlib"] = None
import secateur, secateur.results
found = secateur.load_result(sys.argv[1])
print(found, len(found._repr_html_()) > 500)
try:
    found.plot()
except secateur.SecateurError as error:
    print(error)
"""


def test_matplotlib_is_needed_for_plots_alone(tmp_path) -> None:
    done = run(str(write_run(tmp_path / "run")), source=WITHOUT)
    assert done.returncode == 0, done.stderr
    shown, refused = done.stdout.splitlines()
    assert shown.startswith("PruneResult(")
    assert shown.endswith("True")
    assert refused == "plot() draws with matplotlib, which is not installed: pip install matplotlib."


def test_a_notebook_gets_a_figure_once(tmp_path, monkeypatch) -> None:
    from matplotlib import pyplot

    monkeypatch.setitem(__import__("sys").modules, "ipykernel", object())
    found = secateur.load_result(write_run(tmp_path / "run")).plot()
    assert pyplot.get_fignums() == [], "it would be shown twice"
    assert found.axes
    assert plots.LAYOUT
