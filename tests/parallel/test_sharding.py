"""A frozen base sharded over two processes by FSDP2: the same scores, cuts and weights as of one that is whole."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_llama
from torch import nn
from transformers import AutoModelForCausalLM
from two_sharded import CASES, CUTS
from zygote import launch

from secateur.architecture.experts import ExpertList
from secateur.cli import main
from secateur.parallel.sharding import shard_base
from secateur.system.errors import InputError
from tests.parallel.test_distributed import assert_cuts, assert_same

SCRIPT = Path(__file__).parents[1] / "two_sharded.py"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """What one process and two leave behind, all cases in one launch each."""
    found = []
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"sharded-{processes}")
        done = launch(processes, str(SCRIPT), str(folder))
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(folder)
    return found


@pytest.mark.parametrize("name", list(CASES))
def test_sharded_is_whole(folders, name) -> None:
    one, two = (load_file(folder / f"{name}.safetensors") for folder in folders)
    assert_cuts(one, CUTS)
    assert_same(one, two)


def test_read_into_shards_is_whole(folders) -> None:
    """The checkpoint of the model that the other cases make in memory, with the same LoRA."""
    _, held = facts(folders, "loaded")
    assert held["held"] == facts(folders, "lora-shrink")[1]["held"], "each has its half from the start"
    made, loaded = (load_file(folders[0] / f"{name}.safetensors") for name in ("lora-shrink", "loaded"))
    assert_same(made, loaded)


def test_a_mixture_of_experts_is_refused() -> None:
    """Its processes would wait for each other's experts."""
    with pytest.raises(InputError, match="mixture of experts is not sharded"):
        shard_base(nn.Sequential(ExpertList([])))


def test_export_of_a_sharded_model_names_the_way(folders) -> None:
    _, sharded = facts(folders, "lora-shrink")
    assert "export_streamed, in every process" in sharded["refused"]


def test_each_process_holds_half(folders) -> None:
    whole, sharded = facts(folders, "lora-shrink")
    assert whole["dense"] == whole["held"]
    assert sharded["held"] == pytest.approx(whole["held"] / 2, rel=0.02)  # norms stay whole


@pytest.mark.parametrize("name", ["lora-shrink", "taylor-mask", "gate-lstsq-shrink", "wanda-shrink"])
def test_scoring_sends_nothing_between_cuts(folders, name) -> None:
    """What a plain LoRA step sends is LoRA's gradients, and when sharded the weights, forwards and backwards. A step
    after a cut, and at the end, 64 bytes say that all hold the same."""
    _, sharded = facts(folders, name)
    cuts = [str(step) for step in sharded["cuts"]]
    assert cuts
    compared = {*(str(step + 1) for step in sharded["cuts"]), max(sharded["traffic"], key=int)}
    for step, sent in sharded["traffic"].items():
        assert step in cuts or sent["scoring"] == {}
        assert step in cuts or sent["cutting"] == ({"allgather": 64} if step in compared else {})
    first = sharded["traffic"]["1"]["training"]
    assert first["allreduce"] == sharded["lora"]
    assert first["allgather_base"] == pytest.approx(2 * sharded["dense"], rel=0.15)
    cut = sharded["traffic"][cuts[0]]["cutting"]
    assert cut["allreduce"] == 8 * sharded["units"], "the units' scores, in float64"


def test_written_from_shards(folders) -> None:
    """Without the small model in memory, in several files; a fresh process has read them back."""
    whole, sharded = facts(folders, "lora-shrink")
    assert len(list((folders[1] / "lora-shrink").glob("model-*-of-*.safetensors"))) > 2
    small = AutoModelForCausalLM.from_pretrained(folders[1] / "lora-shrink")
    assert sum(p.numel() for p in small.parameters()) == sharded["parameters"] == whole["parameters"]
    tied = AutoModelForCausalLM.from_pretrained(folders[1] / "tied")
    assert tied.lm_head.weight is tied.model.embed_tokens.weight


def facts(folders, name):
    return tuple(json.loads((folder / f"{name}.json").read_text()) for folder in folders)


def test_the_plan_command_is_what_two_processes_take(folders, tmp_path) -> None:
    """`secateur plan --devices 2` from the configuration alone, against what the processes held and sent."""
    _, found = facts(folders, "lora-shrink")
    config = tiny_llama(layers=2).config
    config.dtype = torch.float64
    config.save_pretrained(tmp_path)
    options = ["--sparsity", "0.4", "--rank", "4", "--batch-size", "4", "--seq-len", "24", "--devices", "2"]
    more = ["--dtype", "bfloat16", "--json", str(tmp_path / "plan.json")]  # so that the base stays in float64
    assert main(["plan", "--model", str(tmp_path), *options, *more]) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())["devices"]
    # The plan counts buffers, too; LoRA's factors are in float32 in a run, and in float64 here.
    assert plan["replicated"]["weights"] == pytest.approx(found["dense"], rel=1e-3)
    assert plan["sharded"]["weights"] == pytest.approx(found["held"], rel=1e-3)
    assert plan["sharded"]["gathered"] == found["largest_gathered"]
    sent, counted = plan["sent_bytes_per_step"]["sharded"], found["traffic"]["1"]["training"]
    assert 2 * sent["all_reduce"] == counted["allreduce"] == found["lora"]
    # The embedding's and the first linears' weights are not needed backwards: nothing there takes a gradient.
    assert sent["all_gather"] == pytest.approx(counted["allgather_base"] / 2, rel=0.15)
    assert sent["all_gather"] >= counted["allgather_base"] / 2
