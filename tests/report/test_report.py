"""A report says what the records say, loads nothing, and trusts no text in them."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from secateur.cli import main
from secateur.evaluation.figures import SEVEN_TASKS
from secateur.report import plots, write_report
from secateur.report.quality import headline, measures
from secateur.report.runs import load_runs
from secateur.report.units import Scores, layers_over_time
from secateur.system.errors import InputError
from secateur.system.records import FORMAT

HOSTILE = "<script>alert('x')</script>\x1b[31m\"'&{{ 7 * 7 }}$x$\ud800"
VOID = {"meta", "link", "br", "img", "hr", "input"}
LOADING = {"src", "srcset", "data", "poster", "action", "formaction", "background"}


class Page(HTMLParser):
    """Collects tags, text and what a browser would fetch; fails on tags that do not nest."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source, self.open, self.tags, self.loads, self.ids, self.words = source, [], [], [], [], []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for key, value in attributes:
            if key in LOADING or (key.endswith("href") and not value.startswith("#")):
                self.loads.append((tag, key, value))
            if key == "id":
                self.ids.append(value)
            assert not key.startswith("on"), f"event handler {key}"

    def handle_startendtag(self, tag, attributes) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def records(name: str = "smollm2") -> dict[str, object]:
    """A finished run's result.json: two layers, a quarter of the channels of one gone."""
    speed = {"spread_ms": 1.5, "repeats": 7, "batch": 1, "seq_len": 256, "dtype": "bfloat16"}
    perplexity = {"mean_nll": 3.0, "tokens_scored": 12264, "segments": 24, "seq_len": 512, "dtype": "bfloat16"}
    return {
        "config": {"model": name, "data": ["my data.jsonl"], "output": "out", "sparsity": 0.25, "lr": 5e-4,
                   "shrink": False, "criterion": "lora", "allocation": "uniform", "targets": []},
        "environment": {"record_format": FORMAT, "secateur": "0.1.0", "versions": {"torch": "2.13.0"},
                        "memory_bytes": 24_000_000_000, "gpus": []},
        "data": {"training": [{"name": "my data.jsonl", "rows": 1000, "characters": 2189457, "sha256": "c74d"}],
                 "evaluation": {"data": "wiki.txt", "joined": "one text"}, "trained_tokens": 204800, "steps": 100},
        "dense": {"parameters": 134515008, "bytes": 269060552, "perplexity": {"perplexity": 25.954, **perplexity}},
        "pruned": {"parameters": 113260608, "bytes": 226551728, "perplexity": {"perplexity": 31.417, **perplexity}},
        "sparsity": {"reached": 0.2001953125, "model": 0.158},
        "shapes": [{"heads": 4, "kv_heads": 2, "ffn": 100}, {"heads": 2, "kv_heads": 1, "ffn": 75}],
        "speed": {"dense": {"median_ms": 291.85, **speed}, "pruned": {"median_ms": 248.93, **speed},
                  "flop_speedup": 1.1877},
        "export": {"loads_with": 'model = AutoModelForCausalLM.from_pretrained("out")'},
        "total_seconds": 974.0,
    }  # fmt: skip


def units() -> dict[str, object]:
    pools = {
        "layer.0.kv_group": {"units": 2, "kept": [0, 1]},
        "layer.0.ffn": {"units": 100, "kept": list(range(100))},
        "layer.1.kv_group": {"units": 2, "kept": [1]},
        "layer.1.ffn": {"units": 100, "kept": list(range(25, 100))},
    }
    cuts = [
        {"step": 20, "removed": {"layer.1.ffn": list(range(25))}, "sparsity": 0.125},
        {"step": 60, "removed": {"layer.1.kv_group": [0]}, "sparsity": 0.2002},
    ]
    scores = {name: [(1 + unit) * 1e-9 for unit in range(pool["units"])] for name, pool in pools.items()}
    return {"pools": pools, "cuts": cuts, "scores_before_cuts": scores}


def write_run(folder: Path, result=None, *, with_units: bool = True, with_metrics: bool = True) -> Path:
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result or records()))
    if with_units:
        (folder / "units.json").write_text(json.dumps(units()))
    if with_metrics:
        lines = [{"step": i, "loss": 4 - i / 100, "sparsity": min(i / 300, 0.2)} for i in range(1, 101)]
        lines[50]["loss"] = float("nan")
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def page_of(*folders: Path, **options) -> Page:
    [path] = write_report([str(folder) for folder in folders], folders[0].parent / "page.html", **options)
    return Page(path.read_text(encoding="utf-8"))


def test_figures_are_those_of_the_records(tmp_path) -> None:
    page = page_of(write_run(tmp_path / "run"))
    for shown in ("134.5M", "113.3M", "−15.8%", "269.1 MB", "226.6 MB", "291.9 ms", "248.9 ms", "1.17× as fast",
                  "1.19× by FLOPs", "25.95", "31.42", "1.210 ×", "12,264 tokens scored in segments of 512",
                  "25 FFN channels", "1 KV group", "20.02%", "75 of 100", "2 of 4", "sha256 c74d",
                  "torch 2.13.0", "24.0 GB"):  # fmt: skip
        assert shown in page.text, shown
    assert page.tags.count("figure") == 8  # quality, training, three heat maps, three of scores
    assert "layer 1: 75 of 100 left" in page.text
    assert "secateur prune \\\n    --model smollm2 \\\n    --data &#39;my data.jsonl&#39;" in page.source
    assert "--sparsity 0.25" in page.source
    assert "--no-shrink" in page.source
    assert "--lr 0.0005 \\" not in page.source  # the default


def test_loads_nothing_and_works_in_the_dark(tmp_path) -> None:
    page = page_of(write_run(tmp_path / "run"))
    assert page.loads == []
    assert "script" not in page.tags
    assert not re.search(r"@import|url\((?!#)", page.source)
    assert "default-src 'none'" in page.source
    assert "prefers-color-scheme: dark" in page.source
    assert "@media print" in page.source
    drawn = set(re.findall(r"#[0-9a-f]{6}", " ".join(re.findall(r"<svg.*?</svg>", page.source, re.DOTALL))))
    assert drawn <= set(plots.VARIABLES), "a plot has a colour that dark mode does not change"
    assert len(page.ids) == len(set(page.ids))


def test_accessible(tmp_path) -> None:
    page = page_of(write_run(tmp_path / "run"))
    assert page.tags.count("h1") == 1
    assert page.tags.count("table") == page.tags.count("caption")
    assert page.source.count('role="img"') == page.tags.count("figure")
    assert 'lang="en"' in page.source
    assert ":focus-visible" in page.source


def test_hostile_text_stays_text(tmp_path) -> None:
    result = records(HOSTILE)
    result["config"][HOSTILE] = HOSTILE
    result["samples"] = [{"prompt": HOSTILE, "answers": {HOSTILE: HOSTILE}}]
    result["environment"]["cpu"] = HOSTILE
    folder = write_run(tmp_path / "<b>run$1$</b>", result)
    (folder / "units.json").write_text(json.dumps(units()).replace("ffn", "<script>'"))
    for page in (page_of(folder), page_of(folder, write_run(tmp_path / "other"))):
        assert "script" not in page.tags
        assert "b" not in page.tags
        assert "\x1b" not in page.source
        assert "<script>alert('x')</script>\"'&{{ 7 * 7 }}$x$" in page.text


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("missing", list(records()))
def test_a_missing_record_leaves_its_section_out(tmp_path, missing) -> None:
    result = records()
    del result[missing]
    page_of(write_run(tmp_path / "run", result))
    wrong = {**records(), missing: [None, "text", {"a": [1]}]}
    page_of(write_run(tmp_path / "odd", wrong))


def test_result_alone(tmp_path) -> None:
    page = page_of(write_run(tmp_path / "run", with_units=False, with_metrics=False))
    assert "layer by layer" not in page.text
    assert "Training and cuts" not in page.text
    assert "113.3M" in page.text


def test_several_runs(tmp_path) -> None:
    other = records()
    other["config"]["sparsity"] = 0.5
    other["pruned"]["perplexity"]["perplexity"] = 170.2
    page = page_of(write_run(tmp_path / "a"), write_run(tmp_path / "b", other))
    assert "2 runs compared" in page.text
    assert "--sparsity 0.25 0.5" in page.text
    assert "31.42 from 25.95 170.20 from 25.95" in page.text


def test_records_of_eval_and_sample_are_found(tmp_path) -> None:
    folder = write_run(tmp_path / "run")
    task = {"metric": "acc", "rows": 887, "version": 1.0, "num_fewshot": 0, "stderr": 0.016}
    figures = {"perplexity": 40.0, "tokens_scored": 1000, "seq_len": 128, "dtype": "float32"}
    evaluation = {
        "data": {"data": "ptb.txt", "text": "Penn Treebank", "joined": "spaces"},
        "models": {
            str(folder): {**figures, "tasks": {"winogrande": {"value": 0.521, **task}}},
            "smollm2": {**figures, "perplexity": 30.0, "tasks": {"winogrande": {"value": 0.533, **task}}},
            "/elsewhere": {**figures, "perplexity": 1.0},
        },
        "warnings": ["12 of 100 n-grams overlap"],
        "config": {"model": str(folder), "against": "smollm2"},
        "paired": {"verdict": "clearly worse"},
        "paired_tasks": {"winogrande": {"difference": -0.012, "stderr": 0.02, "within_noise": True}},
    }
    (folder / "eval-ptb.json").write_text(json.dumps(evaluation))
    samples = tmp_path / "said.json"
    samples.write_text(json.dumps({"samples": [{"prompt": "Why?", "answers": {"dense": "So.", "pruned": "No."}}]}))
    page = page_of(folder, records=[str(samples)])
    for shown in ("Perplexity, Penn Treebank", "30.00 40.00 1.333 ×", "53.3 % ± 1.6 52.1 % ± 1.6 −1.2 points",
                  "887 rows", "12 of 100 n-grams overlap", "clearly worse",
                  "−1.2 ± 2.0 points (paired, one standard error): within the noise",
                  "Why?", "So.", "No."):  # fmt: skip
        assert shown in page.text, shown


@pytest.mark.usefixtures("unrendered")
def test_a_difference_from_another_model_is_not_shown(tmp_path) -> None:
    folder = write_run(tmp_path / "run")
    figures = {"perplexity": 40.0, "tokens_scored": 1000, "seq_len": 128, "dtype": "float32"}
    for model, against in ((str(folder), "other"), ("smollm2", str(folder))):
        record = {"config": {"model": model}, "data": {"data": "x.txt"}, "paired": {"verdict": "clearly worse"},
                  "models": {model: figures, against: figures}}  # fmt: skip
        (folder / "eval.json").write_text(json.dumps(record))
        assert "clearly worse" not in page_of(folder).text


def test_dense_figure_may_come_from_a_file_of_its_own(tmp_path) -> None:
    folder = write_run(tmp_path / "run")
    figures = {"tokens_scored": 1000, "seq_len": 128, "dtype": "float32"}
    for name, model, value in (("eval-a", str(folder), 40.0), ("eval-b", "smollm2", 30.0)):
        one = {"data": {"data": "x.txt"}, "models": {model: {**figures, "perplexity": value}}}
        (folder / f"{name}.json").write_text(json.dumps(one))
    found = measures(load_runs([str(folder)])[0])
    assert [(m.dense, m.pruned) for m in found] == [(25.954, 31.417), (30.0, 40.0)]


def test_threshold_is_the_score_below_which_as_many_lie_as_went() -> None:
    scores = Scores(0, kept=[3.0, 1.0, 5.0], gone=[2.0, 0.5])
    assert scores.threshold == 2.0  # 0.5 and 1.0 lie below it
    assert Scores(0, kept=[1.0], gone=[]).threshold is None


def test_layers_over_time_are_shown_where_they_differ(tmp_path) -> None:
    found = layers_over_time(load_runs([str(write_run(tmp_path / "run"))])[0])
    counts = {kind: {step: [c.kept for c in cells] for step, cells in steps.items()} for kind, steps in found.items()}
    assert counts == {
        "KV groups": {"step 20": [2, 2], "step 60": [2, 1]},
        "FFN channels": {"step 20": [100, 75], "step 60": [100, 75]},
    }
    many = units()
    many["cuts"] = [{"step": i, "removed": {"layer.1.ffn": [i]}, "sparsity": 0.1} for i in range(100)]
    (tmp_path / "run" / "units.json").write_text(json.dumps(many))
    shown = layers_over_time(load_runs([str(tmp_path / "run")])[0])["FFN channels"]
    assert len(shown) == 12
    assert list(shown)[-1] == "step 99"
    assert [cell.kept for cell in shown["step 99"]] == [100, 0]
    alike = units()
    alike["cuts"] = [{"step": 5, "removed": {"layer.0.ffn": [1], "layer.1.ffn": [2]}}]
    (tmp_path / "run" / "units.json").write_text(json.dumps(alike))
    assert layers_over_time(load_runs([str(tmp_path / "run")])[0]) == {}


def test_pools_of_another_kind_are_shown_by_their_names(tmp_path) -> None:
    folder = write_run(
        tmp_path / "run", {"kind": "adapt", "config": {"model": "m", "init_rank": 16, "rank": 8}}, with_units=False
    )
    pools = {f"layer.{i}.q_proj": {"units": 16, "kept": list(range(8 + i))} for i in range(2)}
    cuts = [{"step": 10, "removed": {"layer.0.q_proj": list(range(8)), "layer.1.q_proj": list(range(7))}}]
    (folder / "units.json").write_text(json.dumps({"pools": pools, "cuts": cuts}))
    page = page_of(folder)
    assert "15 q proj" in page.text
    assert "9 of 16" in page.text
    assert "secateur adapt" in page.text


def test_a_report_that_fails_leaves_the_run_alone(tmp_path) -> None:
    from secateur.runs.outcome import report_on
    from secateur.system.progress import Progress

    said = io.StringIO()
    report_on(tmp_path / "nothing here", Progress(1, stream=said))
    assert "no report.html (InputError: " in said.getvalue()
    assert "try again with: secateur report" in said.getvalue()
    report_on(write_run(tmp_path / "run"), Progress(1, stream=said))
    assert (tmp_path / "run" / "report.html").exists()


def test_plot_files(tmp_path) -> None:
    folder = write_run(tmp_path / "run")
    written = write_report([str(folder)], plot_files="both")
    assert written[0] == folder / "report.html"
    kinds = [path.suffix for path in written[1:]]
    assert kinds.count(".svg") == kinds.count(".png") == 5
    assert all(path.parent == folder / "report-plots" for path in written[1:])
    svg = next(path for path in written if path.suffix == ".svg").read_text()
    assert svg.startswith("<?xml")
    assert "var(--series-1, #0b62a8)" in svg


def test_refusals(tmp_path, capsys) -> None:
    with pytest.raises(InputError, match="has no result.json"):
        write_report([str(tmp_path)])
    folder = write_run(tmp_path / "run")
    (folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2')
    with pytest.raises(InputError, match=r"metrics\.jsonl:2 is not valid JSON"):
        write_report([str(folder)])
    assert main(["report"]) == 2
    assert "OUT is required" in capsys.readouterr().err
    (folder / "metrics.jsonl").unlink()
    assert main(["report", str(folder)]) == 0
    assert main(["report", str(folder)]) == 0  # our own page may be written again
    assert main(["report", str(folder), "--output", str(folder / "report.html")]) == 2
    assert "pass --overwrite" in capsys.readouterr().err


def test_a_run_of_adapt_shows_its_ranks(tmp_path) -> None:
    ranks = {f"model.layers.{n}.self_attn.q_proj": 8 for n in range(3)}
    after = dict(zip(ranks, (2, 5, 2), strict=True))
    (tmp_path / "result.json").write_text(json.dumps({
        "kind": "adapt", "config": {"model": "m"}, "adapter": {"init_rank": 8, "mean_rank": 3.0, "parameters": 4096},
        "dense": {"perplexity": {"perplexity": 20.5}}, "adapted": {"perplexity": {"perplexity": 10.25}},
    }))  # fmt: skip
    (tmp_path / "ranks.json").write_text(json.dumps({"start": ranks, "cuts": [{"step": 5, "ranks": after}]}))
    [path] = write_report([str(tmp_path)])
    text = Page(path.read_text()).text
    assert "Adapter's rank 3 from 8" in text
    assert "10.25" in text
    assert "rank of q proj" in text
    assert "2 of 8" in text
    assert "5 of 8" in text
    assert "15 rank of q proj" in text


def unfinished(folder: Path) -> Path:
    """What a run that is still at work has on disk: nothing in its output folder."""
    work = folder.with_name(folder.name + ".run")
    work.mkdir(parents=True)
    (work / "run.json").write_text(json.dumps({"options": records()["config"], "data": records()["data"]["training"]}))
    lines = [json.dumps({"step": step, "loss": 4 - step / 100, "sparsity": 0.1}) for step in range(1, 38)]
    (work / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 38, "lo')  # killed while it wrote
    return folder


def test_an_unfinished_and_a_failed_run_say_so(tmp_path) -> None:
    folder = unfinished(tmp_path / "run")
    page = page_of(folder)
    assert "This run has no result: its records end at step 37." in page.text
    assert "--sparsity 0.25" in page.source
    assert "Training and cuts" in page.text
    assert "Parameters" not in page.text
    assert page_of(folder.with_name("run.run")).text == page.text
    (folder.with_name("run.run") / "failure.json").write_text(json.dumps({"reason": f"loss is NaN {HOSTILE}"}))
    page = page_of(folder, write_run(tmp_path / "other"))
    assert "run: This run failed after step 37: loss is NaN <script>" in page.text
    assert "script" not in page.tags


@pytest.mark.usefixtures("unrendered")
def test_records_of_other_versions(tmp_path) -> None:
    old = records()
    del old["environment"]["record_format"]
    assert "of an older version of secateur" in page_of(write_run(tmp_path / "old", old)).text
    assert "older version" not in page_of(write_run(tmp_path / "now")).text
    new = records()
    new["environment"]["record_format"] = FORMAT + 1
    with pytest.raises(InputError, match="was written by a newer secateur"):
        write_report([str(write_run(tmp_path / "new", new))])
    assert main(["report", str(tmp_path / "new")]) == 2
    failed = write_run(tmp_path / "failed", {**records(), "status": "failed", "reason": "no finite loss"})
    assert "This run's status is failed: no finite loss" in page_of(failed).text


SEVEN = {name: (metric, 0.3 + i / 100) for i, (name, metric) in enumerate(SEVEN_TASKS.items())}


def task(metric: str, value: float, **more: object) -> dict[str, object]:
    return {"metric": metric, "value": value, "stderr": 0.035, "rows": 200, "num_fewshot": 0, "version": 1.0,
            "source": "lm-evaluation-harness 0.4", "metrics": {f"{metric},none": value}, **more}  # fmt: skip


def with_tasks(folder: Path, *, older: bool = False) -> Path:
    """An eval record in the run's folder, as `eval --model RUN --against smollm2` writes it."""
    dense = {name: task(metric, value + 0.07) for name, (metric, value) in SEVEN.items()}
    pruned = {name: task(metric, value) for name, (metric, value) in SEVEN.items()}
    if older:  # preferred acc_norm; the standard error of acc is not noted
        pruned["piqa"] = task("acc_norm", 0.9, metrics={"acc,none": SEVEN["piqa"][1], "acc_norm,none": 0.9})
    record = {
        "config": {"model": "here", "against": "smollm2"},
        "models": {"here": {"tasks": pruned}, "smollm2": {"tasks": dense}},
        "folders": {"here": str(folder.resolve())},
        "paired_average": {"difference": -0.07, "stderr": 0.01, "within_noise": False},
    }
    (folder / "eval-tasks.json").write_text(json.dumps(record))
    return folder


def test_the_seven_task_average_leads(tmp_path) -> None:
    folder = with_tasks(write_run(tmp_path / "run"))
    [run] = load_runs([str(folder)])
    found = measures(run)
    assert [measure.label for measure in headline(found)] == ["Perplexity, wiki.txt", "Seven-task average"]
    average = found[1]
    assert (average.dense, average.pruned) == (pytest.approx(0.40), pytest.approx(0.33))
    assert average.pruned_stderr == pytest.approx(0.035 / 7**0.5)
    page = page_of(folder)
    assert "Seven-task average 33.0 % from 40.0 % −7.0 points" in page.text
    assert "−7.0 ± 1.0 points (paired, one standard error): outside the noise" in page.text
    assert "zero-shot, 1,400 rows; boolq acc, piqa acc, hellaswag acc_norm" in page.text
    with_tasks(folder, older=True)
    assert [m.pruned for m in measures(load_runs([str(folder)])[0])][1] == pytest.approx(0.33)
    record = json.loads((folder / "eval-tasks.json").read_text())
    del record["models"]["here"]["tasks"]["boolq"]
    (folder / "eval-tasks.json").write_text(json.dumps(record))
    labels = [m.label for m in headline(measures(load_runs([str(folder)])[0]))]
    assert labels == ["Perplexity, wiki.txt", "piqa, acc_norm"]


def test_perplexity_comes_with_its_error_and_split(tmp_path) -> None:
    result = records()
    result["data"]["evaluation"] |= {"text": "WikiText-2 raw", "split": "test", "joined": "4 rows joined"}
    for side in ("dense", "pruned"):
        result[side]["perplexity"]["stderr_nll"] = 0.01
    page = page_of(write_run(tmp_path / "run", result))
    assert "25.95 ± 0.26" in page.text
    assert "31.42 ± 0.31" in page.text
    assert "test split, 4 rows joined, 12,264 tokens" in page.text


@pytest.mark.usefixtures("unrendered")
def test_records_about_other_models_are_named(tmp_path) -> None:
    folder, other = write_run(tmp_path / "run"), write_run(tmp_path / "other")
    record = {"config": {"model": "x"}, "models": {"x": {"perplexity": 9.0}, "y": {"perplexity": 8.0}}}
    (folder / "eval-x.json").write_text(json.dumps(record))
    said = "eval-x.json is not shown: it is about x and y, not this run's checkpoint or its dense model."
    assert said in page_of(folder).text
    assert said in page_of(folder, other).text
    shared = tmp_path / "shared.json"
    shared.write_text(json.dumps({"models": {str(other): {"perplexity": 9.0}}}))
    assert "shared.json is not shown" in page_of(folder, records=[str(shared)]).text
    (folder / "eval-x.json").unlink()
    assert "is not shown" not in page_of(folder, other, records=[str(shared)]).text, "it is about one of the two"


def test_kinds_that_are_not_in_all_layers(tmp_path) -> None:
    """Channels went from layers 5 and 10 only: columns and ticks stand at layers, not at places in the record."""
    found = units()
    found["pools"] = {
        **{f"layer.{n}.kv_group": {"units": 2, "kept": [0]} for n in range(12)},
        **{f"layer.{n}.ffn": {"units": 10, "kept": list(range(n))} for n in (5, 10)},
    }
    found["scores_before_cuts"] = {"layer.5.ffn": [-0.5 - i / 100 for i in range(10)]}
    folder = write_run(tmp_path / "run", with_units=False)
    (folder / "units.json").write_text(json.dumps(found))
    page = page_of(folder)
    drawn = r'FFN channels, layer 10: (.*?) left</title>\s*<rect class="ground" x="(\d+)"'
    [(at_ten, left)] = re.findall(drawn, page.source)
    tick = re.findall(r'<text class="tick" x="(\d+)" y="\d+">10</text>', page.source)[0]
    assert (at_ten, int(left) + 9) == ("10 of 10", int(tick))
    assert re.search(r'<th scope="row">5</th>\s*<td>1 of 2</td>\s*<td>5 of 10</td>', page.source)
    assert re.search(r'<th scope="row">6</th>\s*<td>1 of 2</td>\s*<td></td>', page.source)


def test_scores_below_zero_are_drawn() -> None:
    layers = [Scores(0, [-1.0, -0.5] * 40, [-3.0] * 40), Scores(1, [2.0] * 80, [1.0] * 40)]
    for draw in (plots.score_histogram, plots.score_layers):
        assert plots.png(lambda figure, draw=draw: draw(layers, "channels", figure), (4, 3))


def test_no_cuts_are_not_counted(tmp_path) -> None:
    assert "Loss and sparsity over the run." in page_of(unfinished(tmp_path / "run")).text
    assert "with its 2 cuts" in page_of(write_run(tmp_path / "done")).text


def test_ranks_beside_units(tmp_path) -> None:
    """`prune --init-rank` cuts both."""
    folder = write_run(tmp_path / "run")
    ranks = {"start": {"model.layers.0.q_proj": 8}, "cuts": [{"step": 20, "ranks": {"model.layers.0.q_proj": 3}}]}
    (folder / "ranks.json").write_text(json.dumps(ranks))
    page = page_of(folder)
    assert "25 FFN channels, 5 rank of q proj" in page.text
    assert "3 of 8" in page.text
    assert "75 of 100" in page.text


def test_a_cell_of_compare_is_a_run(tmp_path) -> None:
    measured = {"perplexity": 26.0, "stderr_nll": 0.01, "tokens_scored": 1000, "seq_len": 128, "dtype": "bfloat16",
                "text": {"data": "wiki.txt", "joined": "one text"}}  # fmt: skip
    common = {"status": "done", "config": records()["config"], "environment": records()["environment"]}
    dense = {"name": "dense", "kind": "dense", "parameters": 134515008, "perplexity": {"wiki.txt": measured}, **common}
    cell = {"name": "lora", "kind": "prune", "parameters": 113260608, "sparsity": 0.2, "units": units(),
            "training_data": records()["data"]["training"], "shapes": records()["shapes"],
            "perplexity": {"wiki.txt": measured | {"perplexity": 31.5}}, **common}  # fmt: skip
    folders = [write_run(tmp_path / record["name"], record, with_units=False) for record in (dense, cell)]
    page = page_of(folders[1])
    for shown in ("113.3M from 134.5M", "31.50 from 26.00", "75 of 100", "20.00% of the prunable", "sha256 c74d"):
        assert shown in page.text, shown
    assert "26.00" in page_of(*folders).text
