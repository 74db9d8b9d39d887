"""A frozen base sharded over two processes by FSDP2: the same scores, cuts and weights as of one that is whole."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_distributed import launch
from torch import nn
from transformers import AutoModelForCausalLM
from two_sharded import CASES

from secateur.errors import InputError
from secateur.experts import ExpertList
from secateur.fleet import sent_bytes, sharded
from secateur.footprint import Footprint
from secateur.sharding import shard_base

SCRIPT = Path(__file__).parent / "two_sharded.py"


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
    assert one.keys() == two.keys()
    for key, value in one.items():
        if key.startswith("keep."):
            assert torch.equal(two[key], value), key
        else:
            torch.testing.assert_close(two[key], value, rtol=1e-3, atol=1e-5, msg=key)
    assert any(not value.all() for key, value in one.items() if key.startswith("keep."))


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


@pytest.mark.parametrize("name", ["lora-shrink", "taylor-shrink", "gate-lstsq-shrink", "wanda-mask"])
def test_scoring_sends_nothing_between_cuts(folders, name) -> None:
    """What a plain LoRA step sends is LoRA's gradients, and when sharded the weights, forwards and backwards."""
    _, sharded = facts(folders, name)
    cuts = [str(step) for step in sharded["cuts"]]
    assert cuts
    for step, sent in sharded["traffic"].items():
        assert step in cuts or sent["scoring"] == sent["cutting"] == {}
    first = sharded["traffic"]["1"]["training"]
    assert first["allreduce"] == sharded["lora"]
    assert first["allgather_base"] == pytest.approx(2 * sharded["dense"], rel=0.15)
    cut = sharded["traffic"][cuts[0]]["cutting"]
    assert cut["allreduce"] == 4 * sharded["units"], "the units' scores, in float32"


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


def test_the_plan_for_several_devices_is_what_two_processes_take(folders) -> None:
    """`secateur plan --devices 2`: its share of the base, and what it says is sent, against what was counted."""
    _, found = facts(folders, "lora-shrink")
    trained = found["lora"]
    memory = Footprint(
        weights=found["dense"],
        lora=trained,
        gradients=trained,
        optimizer=2 * trained,
        activations=0,
        logits=0,
        allocator=0,
    )
    assert sharded(memory, 2, 0).weights == pytest.approx(found["held"], rel=0.02)
    sent, counted = sent_bytes(memory, 2, 1), found["traffic"]["1"]["training"]
    assert sent["all_reduce"] == counted["allreduce"]  # a ring of two sends each byte once from each
    # A device sends its half of what is gathered; the first layer's weights are not needed for gradients backwards.
    assert sent["all_gather"] == pytest.approx(counted["allgather_base"] / 2, rel=0.15)
