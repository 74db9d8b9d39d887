"""What docs/ shows is run as it is printed: every block marked `run`, on a tiny model in place of the reader's."""

import functools
import json
import shlex
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import save_tiny, tiny_llama, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from secateur import Pruner
from secateur.architecture.families import FAMILIES
from secateur.cli import main
from secateur.criteria import CRITERIA
from tests.architecture.rows import IDS, SIZES, unregister
from tests.docs.pages import PAGES, Block, blocks, commands, text_of
from tests.pruning.test_pruner import STEPS, adapted, pruner_for, rows, train_bare

TRAINING = "--steps 6 --seq-len 32 --batch-size 4"
SHORTER = {
    "prune": f"{TRAINING} --frequency 1",
    "adapt": f"{TRAINING} --init-rank 16",
    "compare": f"{TRAINING} --frequency 1",
    "sparsify": "--seq-len 32 --batch-size 4 --calibration-tokens 500",
    "eval": "--seq-len 32",
    "bench": "--seq-len 16 --decode-tokens 4 --repeats 3 --no-memory",
    "sample": "--max-new-tokens 4",
}
"""Command -> what is added to it, so that it takes a second: the last one of a flag counts."""
UNTRAINED = "--seq-len 32 --batch-size 4 --calibration-tokens 500"
"""The same for commands that say `--steps 0`."""
OF_THEIR_OWN = {"add-a-criterion.md", "add-a-family.md"}
"""Pages whose example registers something, so that it has a test of its own here."""
FOUND_THERE = {
    "first-run.md": ("secateur-quickstart",),
    "evaluate.md": ("my-llama-small", "my-llama-other"),
    "deploy.md": ("my-llama-small",),
}
"""Page -> folders with a pruned model, which another page's command has made."""


def example(name: str) -> str:
    return "\n".join(block.code for block in blocks(text_of(name)) if block.language == "python")


def runs(page: str) -> list[Block]:
    return [block for block in blocks(text_of(page)) if block.mark in ("run", "file")]


def fill(folder: Path) -> None:
    """A reader's folder: a model, and texts of each kind that the pages name."""
    save_tiny(folder / "my-llama")
    story = [
        f"The {word} fox of day {day} jumps over the lazy dog. " * 4 for day in range(40) for word in ("red", "big")
    ]
    lines = [json.dumps({"text": text}) for text in story]
    (folder / "notes.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "held-out.txt").write_text("Another text, which no run has seen.\n" * 20, encoding="utf-8")
    tasks = [json.dumps({"question": f"What is {n} + {n}?", "answer": f"It is {2 * n}." * 4}) for n in range(200)]
    (folder / "gsm8k.jsonl").write_text("\n".join(tasks), encoding="utf-8")
    for name, numbers in (("task", range(200)), ("task-held-out", range(200, 220))):
        words = [json.dumps({"question": f"Is {n} odd?", "answer": "yes" if n % 2 else "no"}) for n in numbers]
        (folder / f"{name}.jsonl").write_text("\n".join(words), encoding="utf-8")


@functools.cache
def pruned() -> tempfile.TemporaryDirectory[str]:
    """A folder with a model that `prune` has made, once for all pages."""
    made = tempfile.TemporaryDirectory()
    fill(Path(made.name))
    model, data, output = (str(Path(made.name, name)) for name in ("my-llama", "notes.jsonl", "small"))
    words = f"prune --model {model} --data {data} --sparsity 0.2 --output {output} {SHORTER['prune']}"
    assert main(shlex.split(words)) == 0
    return made


def names_of_loops() -> dict[str, Any]:
    """What the page on loops takes for granted: models, batches, a tokenizer, a data set."""
    batches = [{"input_ids": ids, "labels": ids} for ids in rows(48).split(4)]
    dataset = [{"input_ids": ids, "labels": ids} for ids in rows(48)]
    base = {name: tiny_llama() for name in ("model", "base")}
    return {**base, "loader": batches, "dataset": dataset, "tokenizer": tiny_tokenizer(), "peft_model": adapted()}


GRANTED: dict[str, Callable[[], dict[str, Any]]] = {"loops.md": names_of_loops}


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")  # Trainer, where there is no GPU
@pytest.mark.parametrize("page", [page for page in PAGES if runs(page) and page not in OF_THEIR_OWN])
def test_what_a_page_shows_runs(page, tmp_path, monkeypatch) -> None:
    """All blocks of a page in their order, in one folder and one namespace, as a reader goes through them."""
    monkeypatch.chdir(tmp_path)
    if any(block.language == "bash" for block in runs(page)) or page in (*FOUND_THERE, "reference/results.md"):
        fill(tmp_path)
    for name in FOUND_THERE.get(page, ()):
        shutil.copytree(Path(pruned().name, "small"), tmp_path / name)
    names = GRANTED.get(page, dict)()
    for block in runs(page):
        if block.mark == "file":
            (tmp_path / block.words).write_text(block.code, encoding="utf-8")
        elif block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.code, f"docs/{page}", "exec"), names)
        else:
            for command in commands(block.code):
                program, *arguments = shlex.split(command, comments=True)
                assert program == "secateur", f"docs/{page}: only secateur's commands are run, not {command!r}"
                shorter = UNTRAINED if "--steps 0" in command else SHORTER.get(arguments[0], "")
                assert main([*arguments, *shorter.split()]) == 0, command


def test_a_block_that_is_wrong_would_be_noticed() -> None:
    found = blocks(
        "<!-- run -->\n```python\nassert 1 == 2\n```\n\n"
        "<!-- skip: a GPU -->\n```bash\nsecateur x\n```\n\n```bash\ny\n```\n"
    )
    assert [(block.mark, block.words, block.language) for block in found] == [
        ("run", "", "python"), ("skip", "a GPU", "bash"), ("", "", "bash"),
    ]  # fmt: skip
    with pytest.raises(AssertionError):
        exec(found[0].code, {})
    assert main(["prune", "--model", "nowhere", "--data", "nothing.txt", "--output", "out"]) == 2
    assert sum(len(runs(page)) for page in PAGES) > 40


@pytest.fixture
def criteria_page(monkeypatch):
    monkeypatch.setattr(CRITERIA, "_entries", dict(CRITERIA))  # what the example registers goes again
    exec(compile(example("add-a-criterion.md"), "add-a-criterion.md", "exec"), {})


@pytest.mark.parametrize("criterion", ["activity", "sensitivity"])
def test_add_a_criterion(criteria_page, criterion) -> None:
    pruner = pruner_for(adapted(layers=2), criterion=criterion, total_steps=STEPS)
    train_bare(pruner.model, pruner)
    assert pruner.sparsity == pytest.approx(0.4, abs=0.01)
    assert all(pool.name in pruner.scores_before_cuts for pool in pruner.units.pools)
    gone = pruner.cuts[0]
    for name, units in gone.removed.items():
        kept = pruner.scores_before_cuts[name].clone()
        kept[units] = float("inf")
        assert max(gone.scores[name]) <= kept.min()
    assert criterion in dict(CRITERIA.items())


def test_add_a_family(tmp_path, monkeypatch) -> None:
    entries = dict(FAMILIES)
    monkeypatch.setattr(FAMILIES, "_entries", entries)  # what the example registers goes again
    exec(compile(example("add-a-family.md"), "add-a-family.md", "exec"), names := {})
    unregister("starcoder2", monkeypatch)
    FAMILIES.register("starcoder2", names["DECODER"])  # a type of that layout
    assert {"minicpm", "my_decoder"} < set(FAMILIES)
    torch.manual_seed(0)
    options = {key: value for key, value in SIZES.items() if value is not None and key != "rms_norm_eps"}
    config = AutoConfig.for_model("starcoder2", **options, initializer_range=0.2)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    pruner = Pruner(
        model, sparsity=0.5, total_steps=2, prune_start=0, prune_end=1, frequency=1, criterion="taylor", shrink=False,
        allocation="protected", protect_first=0, protect_last=0,
    )  # fmt: skip
    dense = model(IDS).logits.detach()
    model(IDS, labels=IDS).loss.backward()
    pruner.observe()
    pruner.step()
    model.zero_grad()
    masked = model(IDS).logits
    pruner.export(tmp_path / "out")  # which compares with the masked model, and reads back in a fresh process
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(small) is type(model)
    assert small.config.num_key_value_heads < model.config.num_key_value_heads
    torch.testing.assert_close(small(IDS).logits, masked, rtol=0.0, atol=float(2e-5 * dense.abs().max()))
    assert (masked - dense).abs().max() > 2e-3 * dense.abs().max()
