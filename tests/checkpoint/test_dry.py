"""What would make the end of a run fail is found before its first step."""

import copy
import errno
import json
import os
from dataclasses import replace
from functools import partial

import pytest
import torch
from tiny import save_tiny
from tiny_gguf import save_gguf
from transformers import AutoConfig, AutoModelForCausalLM

from secateur import Pruner
from secateur.architecture.config_faults import size_faults
from secateur.architecture.discovery import find_units
from secateur.architecture.experts import unstack_experts
from secateur.architecture.families import FAMILIES, Family
from secateur.architecture.stock import accepts
from secateur.checkpoint.card import plain_card
from secateur.checkpoint.dry import check_config, check_export
from secateur.checkpoint.export import build_small, small_class
from secateur.checkpoint.streaming import _write_tensors
from secateur.cli import main
from secateur.config.prune import PruneConfig
from secateur.models.benchmark import parameter_count
from secateur.models.surgery import merged_and_sliced
from secateur.pruning.allocation import make_budget
from secateur.pruning.budget import budget_goal
from secateur.system.errors import InputError
from secateur.training.prepare import plan_budget
from tests.architecture.rows import SIZES, tiny
from tests.architecture.test_families import SOME

ALLOCATIONS = ("uniform", "protected", "global")


def without_weights(name):
    base = tiny(name, layers=2)
    with torch.device("meta"):
        empty = type(base)(copy.deepcopy(base.config))
    unstack_experts(empty)
    return base, empty


@pytest.mark.parametrize(("name", "attention"), SOME)
def test_a_dry_export_agrees_with_the_end_of_a_run(name, attention, tmp_path) -> None:
    """For every family, unit, allocation and class: the one passes where the others make a model of the right size, in
    memory and streamed; what is merged is written under the config as it is."""
    family = FAMILIES[name.split("/")[0]]
    base, empty = without_weights(name)
    units = find_units(base, family, attention)
    check_config(base.config)
    agreed = []
    for allocation in ALLOCATIONS[: 1 if family.alike_only else 3]:
        for model_class in ("keep", *((family.twin,) if family.twin and allocation == "uniform" else ())):
            goal = budget_goal(PruneConfig(model="m", data=("d",), output="o", allocation=allocation), 0.3, "raw")
            legal = partial(accepts, base.config, family, model_class=model_class)
            try:
                budget = make_budget(units, goal, legal)
            except InputError:
                continue  # refused before anything else
            generator = torch.Generator().manual_seed(0)
            everything = {pool.name: torch.ones(pool.size, dtype=torch.bool) for pool in units.pools}
            scores = {pool: torch.rand(len(mask), generator=generator) for pool, mask in everything.items()}
            keep = budget.select(scores, everything, 1.0)
            dry = outcome(check_export, empty, units, budget.example(), model_class)
            tensors = merged_and_sliced(base, units, keep)
            shapes = units.shapes_after(keep)
            small = outcome(build_small, base.config, units.family, shapes, tensors, torch.float32, model_class)
            assert isinstance(dry, InputError) == isinstance(small, InputError), (allocation, model_class, dry, small)
            if not isinstance(small, InputError):
                assert parameter_count(base) - parameter_count(small) == units.removed_params(keep)
                cls, config = small_class(base.config, units.family, shapes, model_class)
                with torch.device("meta"):
                    skeleton = cls._from_config(config)
                _write_tensors(merged_and_sliced(base, units, keep), skeleton, tmp_path, torch.float32, 10**9)
            agreed.append(allocation)
    assert agreed


def outcome(act, *arguments):
    try:
        return act(*arguments)
    except InputError as error:
        return error


HELIUM = {"hidden_size": 96, "head_dim": 16}


def helium(**more):
    options = {k: v for k, v in {**SIZES, **HELIUM, **more}.items() if v is not None}
    return AutoConfig.for_model("helium", **options)


def test_a_registered_family_is_checked_as_a_named_one(monkeypatch) -> None:
    """Helium's `o_proj` is width x width whatever the heads."""
    monkeypatch.setitem(FAMILIES._entries, "helium", Family(name="helium"))
    model = AutoModelForCausalLM.from_config(helium())
    options = {"sparsity": 0.3, "attention_sparsity": 1 / 3, "criterion": "magnitude", "protect_first": 0}
    with pytest.raises(InputError, match="a helium is built as something else"):
        Pruner(model, allocation="uniform", protect_last=0, **options)
    config = PruneConfig(model="m", data=("d",), output="o", sparsity=0.3, attention_sparsity=1 / 3, criterion="gate")
    with pytest.raises(InputError, match=r"could not be written: the helium layout leaves"):
        plan_budget(config, model.config)
    plan_budget(replace(config, allocation="global"), model.config)  # its modelling file sets each layer's sizes
    Pruner(model, allocation="uniform", protect_last=0, **options | {"attention": "none", "attention_sparsity": None})


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["prune", "--allocation", "global"], "a layered LayeredLlamaForCausalLM of "),
        (["prune", "--allocation", "global", "--stream-export"], "a layered LayeredLlamaForCausalLM of "),
        (["prune", "--load-in", "8bit", "--model-class", "mistral"], "a stock MistralForCausalLM of "),
        (["prune", "--load-in", "8bit", "--stream-export"], "a stock LlamaForCausalLM of "),
        (["prune", "--compensate", "lstsq"], "a stock LlamaForCausalLM of "),
        (["prune", "--recipe", "best", "--accumulation", "1"], "a layered LayeredLlamaForCausalLM of "),
        (["prune", "--model", "model.gguf"], "a stock LlamaForCausalLM of "),
        (["adapt", "--init-rank", "4", "--rank", "2"], "a LoRA adapter of rank 2, "),
        (["adapt", "--init-rank", "4", "--rank", "2", "--merge", "--load-in", "8bit"], "with the adapter merged, "),
        (["compare", "--criterion", "gate,lora", "--evaluate-on", "text.txt"], ": dry run: "),
    ],
)
def test_the_option(command, said, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "model", layers=2)
    if "model.gguf" in command:
        save_gguf(tmp_path / "model.gguf")
    (tmp_path / "text.txt").write_text("a quick brown fox jumps over the lazy dog. " * 60)
    before = sorted(os.listdir(tmp_path))
    model = [] if "--model" in command else ["--model", "model"]
    common = [*model, "--data", "text.txt", "--steps", "4", "--batch-size", "2", "--seq-len", "32"]
    assert main([*command, *common, "--output", "new/out", "--dry-run"]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert said in out
    assert " would hold " in out
    assert "nothing was trained" in out
    assert sorted(os.listdir(tmp_path)) == before


RUN = ["--data", "text.txt", "--steps", "4", "--batch-size", "2", "--seq-len", "32", "--output", "out"]


@pytest.fixture
def ready(tmp_path, monkeypatch):
    """A model and a text in the current folder; -> the model's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("a quick brown fox jumps over the lazy dog. " * 60)
    return save_tiny(tmp_path / "model", layers=2)


@pytest.mark.parametrize("command", [["prune"], ["adapt", "--init-rank", "4", "--rank", "2"]])
def test_what_lies_beside_the_weights_is_tried_before_the_first_step(command, ready, capsys, monkeypatch) -> None:
    def broken(*_, **__):
        raise TypeError("Object of type Odd is not JSON serializable")

    monkeypatch.setattr("secateur.checkpoint.dry.write_tokenizer", broken)
    assert main([*command, "--model", "model", *RUN]) == 2
    said = capsys.readouterr().err
    assert "the result could not be written: the tokenizer fails (TypeError: Object of type Odd" in said
    assert "computing in" not in said  # nothing was loaded
    assert sorted(os.listdir()) == ["model", "text.txt"]


def test_a_place_where_no_folder_is_renamed_is_known_before(ready, capsys, monkeypatch) -> None:
    """As in a bucket that is mounted."""
    rename = os.rename

    def refused(old, new, **more):
        if os.path.isdir(old):
            raise OSError(errno.ENOSYS, "Function not implemented")
        rename(old, new, **more)

    monkeypatch.setattr(os, "rename", refused)
    assert main(["prune", "--model", "model", *RUN]) == 2
    said = capsys.readouterr().err
    assert "does not rename a folder (Function not implemented): choose another place." in said
    assert "computing in" not in said


def test_a_place_without_modes_locks_and_syncs_of_folders_will_do(ready, monkeypatch) -> None:
    """As CIFS, vfat or a Lustre without `flock` are."""

    def refused(*_, **__):
        raise OSError(errno.ENOSYS, "Function not implemented")

    fsync = os.fsync

    def of_files(handle):
        refused() if os.path.isdir(f"/proc/self/fd/{handle}") else fsync(handle)

    for name, act in (
        ("os.chmod", refused),
        ("secateur.system.locks.lock_descriptor", refused),
        ("os.fsync", of_files),
    ):
        monkeypatch.setattr(name, act)
    assert main(["prune", "--model", "model", *RUN, "--save-steps", "2"]) == 0
    assert os.path.isfile("out/model.safetensors")


def test_a_base_card_of_any_metadata_gives_a_card(ready, tmp_path) -> None:
    front = 'license: [1, {a: b}, 2024-01-01, "\\ud800"]\nlicense_name: 2024-01-01\nlicense_link: [x, 3]\n'
    (ready / "README.md").write_text(f"---\n{front}---\n")
    card = plain_card("model", 1, "", "", ready)
    assert "The base model's licence applies: 1, {'a': 'b'}, 2024-01-01, ? (" in card
    card.encode()


def test_outputs_that_a_config_asks_for_are_left_out(ready, capsys) -> None:
    """`return_dict: false` made every forward pass a traceback, `output_attentions` the writing of the result."""
    config = json.loads((ready / "config.json").read_text())
    (ready / "config.json").write_text(json.dumps(config | {"return_dict": False, "output_attentions": True}))
    assert main(["prune", "--model", "model", *RUN]) == 0
    assert main(["adapt", "--model", "model", "--init-rank", "4", "--rank", "2", *RUN[:-1], "adapter"]) == 0


def test_windows_that_no_cache_takes_are_faults() -> None:
    """They failed after training; where no layer has a window, its size says nothing."""
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    for window, fits in ((-1, False), (0, False), (1, False), (2, True), (None, True)):
        found = size_faults(AutoConfig.for_model("mistral", sliding_window=window, **sizes))
        assert (not found) == fits, found
    kinds = ["full_attention", "sliding_attention"]
    config = AutoConfig.for_model("qwen3", layer_types=kinds, **sizes)
    assert size_faults(config) == ["sliding_window is null, and layer_types has sliding_attention"]
    assert not size_faults(AutoConfig.for_model("qwen3", layer_types=kinds[:1] * 2, sliding_window=0, **sizes))
