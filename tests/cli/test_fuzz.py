"""Random input for every parser of ours: whatever comes, only our own errors come out.

Most of it is built from the valid forms, so that it gets past the first check. `SECATEUR_FUZZ=10000` makes
`make reliability` thorough: so many inputs in all.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secateur.config.adapt import AdaptConfig
from secateur.config.evaluation import EvalConfig
from secateur.config.options import build, known_options
from secateur.config.prune import ExportConfig, PruneConfig
from secateur.config.sparsify import SparsifyConfig
from secateur.data.documents import read_documents
from secateur.report.page import run_page
from secateur.report.runs import load_runs
from secateur.system.errors import InputError
from secateur.training.checkpoints import MANIFEST, check_same_run, find_latest
from secateur.training.checkpoints import RUN as RUN_RECORD
from tests.pruning.test_pruner import adapted, pruner_for
from tests.ranks.test_ranks import prune_to

PARSERS = 9  # the pruner state counts twice
WANTED = int(os.environ.get("SECATEUR_FUZZ", "0"))
EXAMPLES = max(20, -(-WANTED // PARSERS))
TRIED = {"all": 0, "valid": 0}


def count(valid: bool = True) -> None:
    """One input more; `valid` says whether it is JSON or YAML (with whatever in it)."""
    TRIED["all"] += 1
    TRIED["valid"] += valid


def is_json(content: bytes) -> bool:
    try:
        json.loads(content.decode())
    except (ValueError, RecursionError):
        return False
    return True


fuzz = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
    st.sampled_from(["", "lora", "uniform", "0.5", "-1", "1e999", "\x00", "\x1b[31m", "../..", "\ud800"]),
)  # fmt: skip
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
TURN = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "gpt", "x"]) | JSON, "content": JSON})
ROW = st.one_of(
    JSON,
    st.fixed_dictionaries({"text": JSON}),
    st.fixed_dictionaries({"text": st.text(max_size=40)}),
    st.fixed_dictionaries({"instruction": JSON, "output": JSON}, optional={"input": JSON}),
    st.fixed_dictionaries({"question": st.text(), "answer": st.text()}),
    st.fixed_dictionaries({"messages": st.lists(TURN, max_size=3) | JSON}),
    st.fixed_dictionaries({"conversations": st.lists(TURN, max_size=3)}),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@fuzz
@given(rows=st.lists(ROW, min_size=1, max_size=4))
def test_valid_json_rows(folder, rows) -> None:
    count()
    (folder / "rows.jsonl").write_bytes(b"\n".join(json.dumps(row).encode() for row in rows))
    (folder / "rows.json").write_bytes(json.dumps(rows).encode())
    for name in ("rows.jsonl", "rows.json"):
        try:
            documents = read_documents(str(folder / name))
        except InputError as error:
            assert name in str(error)
            continue
        assert all(isinstance(document.raw, str) for document in documents)
        "".join(document.raw for document in documents).encode()  # no half surrogates get through


@fuzz
@given(content=st.binary(max_size=200) | st.text(alphabet='{}[]":,\\ntext 0', max_size=60).map(str.encode))
def test_any_bytes(folder, content) -> None:
    count(is_json(content))
    for name in ("bytes.jsonl", "bytes.json", "bytes.txt"):
        (folder / name).write_bytes(content)
        try:
            read_documents(str(folder / name))
        except InputError as error:
            assert name in str(error)


CLASSES = (PruneConfig, AdaptConfig, SparsifyConfig, EvalConfig, ExportConfig)
OPTIONS = sorted({name for cls in CLASSES for name in known_options(cls)})


@fuzz
@given(
    cls=st.sampled_from(CLASSES),
    options=st.dictionaries(st.sampled_from(OPTIONS) | st.text(max_size=8), JSON, max_size=6),
    plausible=st.booleans(),
)
def test_yaml_options(folder, cls, options, plausible) -> None:
    count()
    file = folder / "run.yaml"
    file.write_bytes(yaml.safe_dump(options).encode("utf-8", "replace"))
    given_options = {"model": "m", "data": ("d",), "output": "o"} if plausible else {}
    given_options = {name: value for name, value in given_options.items() if name in known_options(cls)}
    try:
        config = build(cls, given_options, str(file))
    except InputError:
        return
    assert config.faults() == []


RUN = {
    "status": "done",
    "config": {"model": "m", "criterion": "lora", "allocation": "uniform", "sparsity": 0.2, "data": ["x"]},
    "environment": {"secateur": "0.1.0", "versions": {"torch": "2"}, "cpu": "c"},
    "data": {"training": [{"name": "x", "rows": 3, "sha256": "0"}], "trained_tokens": 100, "steps": 5},
    "dense": {"parameters": 100, "bytes": 400, "perplexity": {"perplexity": 10.0, "nll": 2.3, "seq_len": 32}},
    "pruned": {"parameters": 80, "bytes": 320, "perplexity": {"perplexity": 11.0, "nll": 2.4, "seq_len": 32}},
    "sparsity": {"target": 0.2, "reached": 0.2, "model": 0.2, "removed_parameters": 20},
    "shapes": [{"heads": 4, "kv_heads": 2, "ffn": 96}],
    "speed": {"dense": {"median_ms": 2.0, "spread_ms": 0.1}, "pruned": {"median_ms": 1.0}, "speedup": 2.0},
    "alternatives": {"uniform": 0.1, "global": "no"},
    "export": {"folder": "o", "format": "stock", "loads_with": "x", "max_logit_difference": 0.0},
}
UNITS = {
    "pools": {"layer.0.ffn": {"units": 4, "unit_params": 5, "kept": [0, 2]}},
    "cuts": [{"step": 3, "removed": {"layer.0.ffn": [1, 3]}, "scores": {"layer.0.ffn": [0.1, 0.2]}, "sparsity": 0.2}],
    "scores_before_cuts": {"layer.0.ffn": [1.0, 0.1, 2.0, 0.2]},
}


@st.composite
def damaged(draw, record):
    """A record with one to three places replaced, dropped or added to."""
    record = json.loads(json.dumps(record))
    for _ in range(draw(st.integers(1, 3))):
        place = record
        while isinstance(place, dict | list) and place:
            key = draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
            if draw(st.booleans()) or not isinstance(place[key], dict | list) or not place[key]:
                if draw(st.integers(0, 4)) == 0:
                    del place[key]
                else:
                    place[key] = draw(JSON)
                break
            place = place[key]
    return record


@fuzz
@given(result=damaged(RUN), units=damaged(UNITS), metrics=st.lists(JSON, max_size=3))
def test_records_of_a_run(folder, result, units, metrics) -> None:
    count()
    run = folder / "run"
    run.mkdir(exist_ok=True)
    (run / "result.json").write_text(json.dumps(result), encoding="utf-8")
    (run / "units.json").write_text(json.dumps(units), encoding="utf-8")
    lines = [{"step": 1, "loss": 2.0, "sparsity": 0.1, "learning_rate": 1e-3}, *metrics]
    (run / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    try:
        (loaded,) = load_runs([str(run)])
    except InputError:
        return
    page = run_page(loaded, {})
    page.encode()
    assert "\x1b" not in page


@pytest.fixture(scope="module", params=["units", "ranks"])
def saved(request, folder):
    """A function that makes a pruner, and the files of a state that it wrote."""
    make = (
        (lambda: pruner_for(adapted(layers=2), total_steps=20))
        if request.param == "units"
        else (lambda: prune_to(adapted(layers=2)))
    )
    place = folder / request.param
    place.mkdir()
    make().save(place)
    return make, place


@fuzz
@given(data=st.data())
def test_pruner_states(folder, saved, data) -> None:
    make, place = saved
    copy = folder / "state"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(place, copy)
    (file,) = copy.glob("*.json")
    valid = data.draw(st.booleans())
    count(valid)
    if valid:
        file.write_text(json.dumps(data.draw(damaged(json.loads(file.read_text())))))
    else:
        (tensors,) = copy.glob("*.safetensors")
        content = bytearray(tensors.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            position = data.draw(st.integers(0, min(len(content) - 1, 3000)))
            content[position] = data.draw(st.integers(0, 255))
        tensors.write_bytes(bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2]))]))
    with torch.random.fork_rng():
        try:
            make().load(copy)
        except InputError as error:
            assert "saved state" in str(error)


RECORD = {
    "options": {"model": "m", "batch_size": 2, "lr": 1e-4, "dropout": 0.1, "data": ["x"]},
    "data": [{"name": "x", "rows": 3, "characters": 10, "sha256": "ab"}],
    "model": "cd",
    "processes": 1,
}


@fuzz
@given(record=damaged(RECORD) | JSON)
def test_run_records(folder, record) -> None:
    count()
    (folder / RUN_RECORD).write_text(json.dumps(record))
    try:
        check_same_run(folder, RECORD["options"], RECORD["data"], ("lr",), RECORD["model"])
    except InputError as error:
        assert "--resume" in str(error)


@fuzz
@given(manifest=damaged({"files": {"weights": {"bytes": 3, "sha256": "ab"}, "b": {"bytes": 1, "sha256": "cd"}}}) | JSON)
def test_manifests(folder, manifest) -> None:
    count()
    checkpoint = folder / "work" / "checkpoint-5"
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / "weights").write_bytes(b"abc")
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))
    files = manifest.get("files") if isinstance(manifest, dict) else None
    found, skipped = find_latest(folder / "work")
    assert (found is None) == bool(skipped)
    assert found is None or files == {}  # a manifest that lists nothing


CONFIG = {
    "peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM",
    "rank_pattern": {}, "alpha_pattern": {}, "use_dora": False, "use_rslora": False, "lora_dropout": 0.1,
}  # fmt: skip


@fuzz
@given(config=damaged(CONFIG) | JSON)
def test_adapter_configurations(folder, config) -> None:
    reader = pytest.importorskip("secateur.models.adapter").read_adapter
    count()
    place = folder / "adapter"
    place.mkdir(exist_ok=True)
    (place / "adapter_config.json").write_text(json.dumps(config))
    try:
        reader(str(place))
    except InputError as error:
        assert "--adapter" in str(error)


@pytest.mark.skipif(not WANTED, reason="counts what `make reliability` tries, in one process")
def test_enough_was_tried() -> None:
    print(f"{TRIED['all']:,} inputs, {TRIED['valid'] / TRIED['all']:.0%} of them valid JSON or YAML")
    assert TRIED["all"] >= WANTED
    assert TRIED["valid"] >= TRIED["all"] / 2
